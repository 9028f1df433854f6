"""`mesh task`: the running instances of services; entering them, and reading what they print."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from control.model import Node, Task
from mesh.cli.complete import names
from mesh.cli.errors import ExitCode, Failure
from mesh.cli.lazy import AliasedGroup
from mesh.cli.output import Listing, ListOptions, inspect_option, list_options, print_list, print_objects
from mesh.cli.remote_logs import print_logs
from mesh.cli.session import Session, pass_session
from mesh.cli.show.names import named, node_names, task_name
from mesh.cli.show.tasks import LS_COLUMNS, LS_MORE, sorted_tasks, task_records, task_rows
from mesh.cli.stats import stats
from mesh.cli.text.pairs import parse_env

if TYPE_CHECKING:
    from mesh.cli.client import Client

# What a command in a task finds, unless the service or the caller says otherwise (as the process executor has it).
DEFAULT_ENV = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/"}


@click.group(cls=AliasedGroup)
def task() -> None:
    """Tasks: the running instances of services. They are called <service>.<slot>."""


@task.command("ls")
@list_options
@pass_session
def ls(session: Session, options: ListOptions) -> None:
    """List the tasks of all services, ended ones included.

    \b
    Filters: id, name, service, node, desired-state.
    Examples:
      mesh task ls --filter desired-state=running
      mesh task ls --filter node=h2 --format '{{.Name}} {{.Addresses}}'
    """
    client = session.client()
    found = sorted_tasks(client.list(Task, options.filters))
    nodes = node_names(client.list(Node))
    rows = task_rows(found, nodes, now_ms=session.wall_ms(), no_trunc=options.no_trunc)
    print_list(options, Listing(LS_COLUMNS, rows, task_records(found, nodes), LS_MORE))


@task.command("inspect")
@click.argument("tasks", nargs=-1, required=True, metavar="TASK...", shell_complete=names("task"))
@inspect_option
@pass_session
def inspect(session: Session, tasks: Sequence[str], format_: str) -> None:
    """Show everything about tasks.

    \b
    Examples:
      mesh task inspect api.1
      mesh task inspect --format '{{.Status.State}} {{.Status.Error}}' api.1
    """
    client = session.client()
    found = [client.get(Task, name) for name in tasks]
    print_objects(format_, task_records(found, node_names(client.list(Node))))


# --- exec -----------------------------------------------------------------------------------------------------------


task.add_command(stats)


@task.command("exec", context_settings={"allow_interspersed_args": False})
@click.option("-i", "--interactive", is_flag=True, help="As with Docker: input is always passed on.")
@click.option("-t", "--tty", is_flag=True, help="Refuse when this is no terminal; the command has it if it is one.")
@click.option("-e", "--env", metavar="NAME[=VALUE]", multiple=True, help="Environment variable.")
@click.option("-w", "--workdir", metavar="DIR", help="Working directory. [/]")
@click.argument("name", metavar="TASK", shell_complete=names("task"))
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED, metavar="[--] COMMAND [ARG...]")
@pass_session
def exec_(
    session: Session,
    interactive: bool,
    tty: bool,
    env: Sequence[str],
    workdir: str | None,
    name: str,
    command: Sequence[str],
) -> None:
    """Run a command inside a task of this node, as root.

    \b
    Examples:
      mesh task exec api.1 -- ip address
      mesh task exec client.1 -- curl -s http://api/
      mesh task exec -it api.1 sh
    """
    if tty and not sys.stdin.isatty():
        raise Failure("the input is no terminal: leave out --tty")
    words = command[1:] if command[0] == "--" else command
    if not words:
        raise click.UsageError("no command: write it at the end, after --")
    added = parse_env(env, os.environ)
    nsenter = shutil.which("nsenter")
    if nsenter is None:
        raise Failure("nsenter is not installed: apt-get install util-linux")
    client = session.client()
    task_id, pid = _local_process(client, name)
    environment = {**DEFAULT_ENV, "TERM": os.environ.get("TERM", "dumb"), **_task_env(client, task_id, pid), **added}
    arguments = ["nsenter", f"--target={pid}", "--net", "--mount", "--pid", "--uts", "--ipc"]
    arguments += [f"--wdns={workdir or '/'}", "--", *words]
    session.close()
    try:
        session.execute(nsenter, arguments, environment)
    except OSError as error:
        raise Failure(f'cannot enter task "{name}": {error.strerror}') from error


def _local_process(client: Client, name: str) -> tuple[str, int]:
    """Id and process of a task here. Raises Failure, which says where the task is if it is not."""
    try:
        return client.task_process(name)
    except Failure as failure:
        if failure.code is not ExitCode.NOT_FOUND:
            raise
        raise _elsewhere(client, name) or failure from failure


def _elsewhere(client: Client, name: str) -> Failure | None:
    """Why a task cannot be reached from here, if the managers know of it."""
    try:
        found = client.get(Task, name)
        nodes = node_names(client.list(Node))
        here = client.node_id
    except Failure as failure:
        return failure if failure.code is not ExitCode.UNAVAILABLE else None
    shown, state = task_name(found), found.status.state.name.lower()
    if not found.node_id:
        return Failure(f'task "{shown}" is {state} and on no node yet: {found.status.error or found.status.message}')
    if found.node_id == here:
        return Failure(f'task "{shown}" is {state}: nothing of it runs on this node')
    return Failure(f'task "{shown}" is on node "{named(nodes, found.node_id)}": run this there')


def _task_env(client: Client, task_id: str, pid: int) -> dict[str, str]:
    """The task's own environment; without a manager a command still runs, with less."""
    try:
        spec = client.get(Task, task_id).spec
    except Failure:
        return {}
    if spec.container is not None:
        return _process_env(pid) | spec.container.env
    return dict(spec.process.env) if spec.process is not None else {}


def _process_env(pid: int) -> dict[str, str]:
    """What a container's first process was started with: half of it is its image's."""
    try:
        data = Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return {}
    return dict(entry.partition("=")[::2] for entry in data.decode(errors="replace").split("\0") if "=" in entry)


# --- logs -----------------------------------------------------------------------------------------------------------


@task.command("logs")
@click.option("-f", "--follow", is_flag=True, help="Go on until the task has ended.")
@click.option("-n", "--tail", type=click.IntRange(min=0), metavar="LINES", help="Only the last lines. [all]")
@click.option("--state-dir", metavar="DIR", help="Of this node's meshd. [as it is configured]")
@click.argument("name", metavar="TASK", shell_complete=names("task"))
@pass_session
def logs(session: Session, follow: bool, tail: int | None, state_dir: str | None, name: str) -> None:
    """Print what a task has printed.

    \b
    Examples:
      mesh task logs api.1
      mesh task logs --follow --tail 20 api.1
    """
    from mesh.executor.logs import NoLogError, write_log
    from mesh.executor.protocol import ExecutorError

    client = session.client()
    if client.context is not None:
        print_logs(client, task=name, follow=follow, tail=tail, raw=True)
        return
    state = Path(state_dir or _configured_state_dir())
    task_id = _task_with_log(client, name, state)
    if task_id is None:
        print_logs(client, task=name, follow=follow, tail=tail, raw=True)
        return
    session.close()
    try:
        write_log(state, task_id, sys.stdout.buffer, tail=tail, follow=follow, sleep=session.sleep)
    except PermissionError as error:
        raise Failure(f"not allowed to read {error.filename or error}: only root is", ExitCode.REFUSED) from error
    except OSError as error:
        raise Failure(f'cannot read the log of task "{name}": {error.filename}: {error.strerror}') from error
    except NoLogError as error:
        raise Failure(str(error), ExitCode.NOT_FOUND) from error
    except ExecutorError as error:
        raise Failure(str(error)) from error


def _task_with_log(client: Client, name: str, state: Path) -> str | None:
    """The id of a task of this node, also one that has ended but is still there; None if it is on another."""
    from mesh.executor.logs import has_log

    elsewhere = False
    try:
        task_id, _ = client.task_process(name)
    except Failure as failure:
        if failure.code is not ExitCode.NOT_FOUND:
            raise
        found = client.get(Task, name)
        task_id, elsewhere = found.id, found.node_id not in ("", client.node_id)
    try:
        if has_log(state, task_id):
            return task_id
    except PermissionError as error:
        raise Failure(f"not allowed to read {state / 'tasks'}: only root is", ExitCode.REFUSED) from error
    if elsewhere:
        return None
    raise _elsewhere(client, name) or Failure(f'task "{name}" has no log in {state / "tasks"}', ExitCode.NOT_FOUND)


def _configured_state_dir() -> str:
    from mesh.config import ConfigError, load

    try:
        return load({}, os.environ, hostname="").config.state_dir
    except ConfigError as error:
        raise Failure(f"the configuration of meshd is not valid:\n{error}") from error
