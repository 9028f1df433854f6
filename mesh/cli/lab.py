"""`mesh lab`: several machines on this one."""

from __future__ import annotations

import os
from collections.abc import Sequence
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
    """Errors of the lab as failures of the command."""
    from mesh.lab.demo import DemoError
    from mesh.lab.lab import LabError

    try:
        yield
    except (LabError, DemoError) as error:
        raise Failure(str(error)) from error


@lab.command()
@click.option("--hosts", default=3, show_default=True, help="How many hosts, 1 to 20.")
@click.pass_context
def up(ctx: click.Context, hosts: int) -> None:
    """Make the hosts, wire them, and start a meshd in each."""
    with _said():
        made = _lab(ctx)
        made.up(hosts)
    _print_status(made)


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


@lab.command(context_settings={"ignore_unknown_options": True})
@click.argument("host")
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
@click.pass_context
def exec(ctx: click.Context, host: str, command: Sequence[str]) -> None:  # noqa: A001 - the command's name
    """Run a command inside a host, or as the outside "client"."""
    with _said():
        argv, environment = _lab(ctx).command(host, command)
    os.execvpe(argv[0], argv, environment)


@lab.command()
@click.argument("host")
@click.pass_context
def kill(ctx: click.Context, host: str) -> None:
    """Power off: all that runs in the host dies at once. Its disk stays."""
    with _said():
        _lab(ctx).kill(host)


@lab.command()
@click.argument("host")
@click.pass_context
def start(ctx: click.Context, host: str) -> None:
    """Boot a host that is off, with its disk."""
    with _said():
        _lab(ctx).start(host)


@lab.command("kill-daemon")
@click.argument("host")
@click.pass_context
def kill_daemon(ctx: click.Context, host: str) -> None:
    """kill -9 of a host's meshd alone."""
    with _said():
        _lab(ctx).kill_daemon(host)


@lab.command("start-daemon")
@click.argument("host")
@click.pass_context
def start_daemon(ctx: click.Context, host: str) -> None:
    """Start a host's meshd again."""
    with _said():
        _lab(ctx).start_daemon(host)


@lab.command()
@click.pass_context
def down(ctx: click.Context) -> None:
    """Remove the lab with all that is in it. May be repeated."""
    with _said():
        _lab(ctx).down()


@lab.command()
@click.option("--hosts", default=3, show_default=True, type=click.IntRange(2, 20))
@click.pass_context
def demo(ctx: click.Context, hosts: int) -> None:
    """Show the main job end to end, and leave the machine as it was."""
    from mesh.cli.text.table import table
    from mesh.lab.demo import Demo
    from mesh.lab.machine import difference, snapshot

    made = _lab(ctx)
    if ctx.meta["lab"] == "lab" and made.exists():
        raise Failure('a lab is up already: "mesh lab down" first', ExitCode.CONFLICT)
    before = snapshot()
    show = Demo(made, hosts, click.echo)
    with _said():
        try:
            show.run()
        finally:
            click.echo("\n=== clean-up: everything is removed again")
            made.down()
    left = difference(before, snapshot())
    rows = [[r.step, r.result, f"{r.seconds:.1f} s"] for r in show.rows]
    rows.append(["clean-up", "the machine is as before" if not left else f"{len(left)} things are left", ""])
    click.echo("\n" + table(["STEP", "RESULT", "TOOK"], rows), nl=False)
    for line in left:
        click.echo(f"left over: {line}", err=True)
    ctx.exit(ExitCode.FAILED if left else ExitCode.OK)
