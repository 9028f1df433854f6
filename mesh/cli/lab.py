"""`mesh lab`: several machines on this one."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

from mesh.cli.errors import ExitCode, Failure

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mesh.lab.lab import Lab


@click.group()
@click.option("--name", default="lab", show_default=True, help="There may be several labs.")
@click.pass_context
def lab(ctx: click.Context, name: str) -> None:
    """Several machines on this one, for trying things out.

    Each host is a bundle of namespaces with a meshd of its own; an outside client is called "client". Needs root.

    \b
    Examples:
      mesh lab up --hosts 3
      mesh lab exec h1 -- mesh init
      mesh lab exec client -- curl http://10.66.0.11:8080/
      mesh lab kill h3
      mesh lab down
    """
    ctx.meta["lab"] = name


def _lab(ctx: click.Context) -> Lab:
    from mesh.lab.lab import Lab

    return Lab(ctx.meta["lab"])


@contextmanager
def _said() -> Iterator[None]:
    """Errors of the lab as failures of the command; a request to end as an interruption, so that all is cleaned up."""
    from mesh.lab.demo import DemoError
    from mesh.lab.lab import LabConflictError, LabError, LabMissingError, LabRefusedError

    codes: dict[type[Exception], ExitCode] = {
        LabMissingError: ExitCode.NOT_FOUND,
        LabConflictError: ExitCode.CONFLICT,
        LabRefusedError: ExitCode.REFUSED,
    }
    before = {number: signal.signal(number, signal.default_int_handler) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    except (LabError, DemoError) as error:
        raise Failure(str(error), codes.get(type(error), ExitCode.FAILED)) from error
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _hosts(ctx: click.Context, _: click.Parameter, beginning: str) -> list[str]:
    """Completion: the hosts of the lab."""
    from mesh.lab.lab import Lab, LabError

    group = ctx.parent
    try:
        names = Lab(str(group.params.get("name") or "lab") if group is not None else "lab").hosts()
    except LabError:
        return []
    return [name for name in (*names, "client") if name.startswith(beginning)]


def _on_host(help_: str) -> Callable[[Callable[[click.Context, str], None]], click.Command]:
    """A command whose one argument is a host."""

    def decorate(function: Callable[[click.Context, str], None]) -> click.Command:
        argument = click.argument("host", shell_complete=_hosts)
        name = function.__name__.replace("_", "-")
        return lab.command(name, help=help_)(argument(click.pass_context(function)))

    return decorate


_executor = click.option(
    "--executor",
    type=click.Choice(["process", "docker"]),
    default="process",
    show_default=True,
    help="With docker, each host has an engine of its own, with the images mesh-lab and busybox.",
)


@lab.command()
@click.option("--hosts", default=3, show_default=True, type=click.IntRange(1, 20), help="How many hosts.")
@click.option("--managers", default=0, type=click.IntRange(0, 20), help="Make a cluster with so many. [0: no cluster]")
@_executor
@click.pass_context
def up(ctx: click.Context, hosts: int, managers: int, executor: str) -> None:
    """Make the hosts, wire them, and start a meshd in each; with --managers, make them one cluster.

    \b
    Examples:
      mesh lab up --hosts 3
      mesh lab up --hosts 5 --managers 3
      mesh lab up --executor docker
      mesh lab exec h1 -- mesh service create --name api --image mesh-lab --network web -- python3 /whoami.py
    """
    from mesh.lab.form import form

    with _said():
        made = _lab(ctx)
        if managers > hosts:
            raise click.UsageError(f"{hosts} hosts cannot have {managers} managers", ctx)
        made.up(hosts, tell=_progress, engines=executor == "docker")
        if managers:
            form(made, managers, _progress)
    _progress("")
    _print_status(made)


def _progress(what: str) -> None:
    """What is being done, on one line of a terminal."""
    if sys.stderr.isatty():
        click.echo(f"\r\033[K{what}", nl=False, err=True)


@lab.command()
@click.pass_context
def status(ctx: click.Context) -> None:
    """The hosts and what they do."""
    with _said():
        _print_status(_lab(ctx))


def _print_status(made: Lab) -> None:
    from mesh.cli.text.table import table

    rows = [[s.name, s.address, s.state, s.daemon, str(s.pid or "")] for s in made.status()]
    click.echo(table(["HOST", "ADDRESS", "STATE", "MESHD", "PID"], rows), nl=False)


@lab.command(context_settings={"allow_interspersed_args": False})
@click.argument("host", shell_complete=_hosts)
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED, metavar="[--] COMMAND [ARG...]")
@click.pass_context
def exec(ctx: click.Context, host: str, command: Sequence[str]) -> None:  # noqa: A001 - the command's name
    """Run a command inside a host, or as the outside "client".

    \b
    Examples:
      mesh lab exec h1 -- mesh node ls
      mesh lab exec client -- curl -s http://10.66.0.12:8080/
      mesh lab exec h2 bash
    """
    words = command[1:] if command[0] == "--" else command
    if not words:
        raise click.UsageError("no command: write it at the end, after --", ctx)
    with _said():
        argv, environment = _lab(ctx).command(host, words)
    os.execvpe(argv[0], argv, environment)


@_on_host("Power off: all that runs in the host dies at once. Its disk stays.")
def kill(ctx: click.Context, host: str) -> None:
    with _said():
        _lab(ctx).kill(host)


@_on_host("Boot a host that is off, with its disk.")
def start(ctx: click.Context, host: str) -> None:
    with _said():
        _lab(ctx).start(host)


@_on_host("kill -9 of a host's meshd alone; its tasks and connections go on.")
def kill_daemon(ctx: click.Context, host: str) -> None:
    with _said():
        _lab(ctx).kill_daemon(host)


@_on_host("Start a host's meshd again.")
def start_daemon(ctx: click.Context, host: str) -> None:
    with _said():
        _lab(ctx).start_daemon(host)


@_on_host("End a host's meshd in order and start it again; its tasks and connections go on.")
def restart_daemon(ctx: click.Context, host: str) -> None:
    with _said():
        _lab(ctx).restart_daemon(host)


@lab.command()
@click.pass_context
def down(ctx: click.Context) -> None:
    """Remove the lab with all that is in it. May be repeated."""
    with _said():
        _lab(ctx).down()


@lab.command()
@click.option("--hosts", default=3, show_default=True, type=click.IntRange(2, 20))
@_executor
@click.pass_context
def demo(ctx: click.Context, hosts: int, executor: str) -> None:
    """Show the main job end to end, and leave the machine as it was."""
    from mesh.cli.text.table import table
    from mesh.lab.demo import Demo
    from mesh.lab.machine import difference, is_of_a_lab, snapshot

    made = _lab(ctx)
    if ctx.meta["lab"] == "lab" and made.exists():
        raise Failure('a lab is up already: "mesh lab down" first', ExitCode.CONFLICT)
    before = snapshot(made.name)
    show = Demo(made, hosts, click.echo, containers=executor == "docker")
    with _said():
        try:
            show.run()
        finally:
            click.echo("\n=== clean-up: everything is removed again")
            made.down()
    changed = difference(before, snapshot(made.name))
    left = [line for line in changed if is_of_a_lab(line)]
    if left:
        result = f"{len(left)} things are left"
    else:
        result = "nothing is left; other things changed meanwhile" if changed else "the machine is as before"
    rows = [[r.step, r.result, f"{r.seconds:.1f} s"] for r in show.rows]
    rows.append(["clean-up", result, ""])
    click.echo("\n" + table(["STEP", "RESULT", "TOOK"], rows), nl=False)
    for line in changed:
        click.echo(f"{'left over' if is_of_a_lab(line) else 'changed meanwhile'}: {line}", err=True)
    ctx.exit(ExitCode.FAILED if left else ExitCode.OK)


@lab.command()
@click.option("--port", default=80, show_default=True, type=click.IntRange(1, 65535), help="TCP, for HTTP.")
@click.option("--udp-port", default=0, type=click.IntRange(0, 65535), help="Answer datagrams there as well.")
def whoami(port: int, udp_port: int) -> None:
    """Serve HTTP that says who answered and which client it saw: something to run as a task.

    \b
    Examples:
      mesh service create --name api --replicas 4 --network web -- mesh lab whoami --port 80
      curl http://api/         one line of text
      curl http://api/json     the same as JSON
      curl -N http://api/stream   a line each 200 ms, for as long as the connection lives
    """
    from mesh.lab.whoami import serve

    try:
        serve(port, udp_port)
    except OSError as error:
        raise Failure(
            f"cannot listen on port {port}{f' or {udp_port}' if udp_port else ''}: {error.strerror}"
        ) from error
