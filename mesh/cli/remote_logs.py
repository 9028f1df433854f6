"""`mesh service logs`, and `mesh task logs` of a task on another node: by way of a manager."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from mesh.cli.complete import names
from mesh.cli.errors import ExitCode, Failure
from mesh.cli.session import Session, pass_session
from mesh.cli.show.logs import Interleaver

if TYPE_CHECKING:
    from mesh.cli.client import Client


@click.command("logs")
@click.option("-f", "--follow", is_flag=True, help="Go on, also with tasks that come later.")
@click.option("-n", "--tail", type=click.IntRange(0, 1_000_000), metavar="LINES", help="Only the last of each. [all]")
@click.option("--raw", is_flag=True, help="Without the names of tasks.")
@click.argument("name", metavar="SERVICE|TASK", shell_complete=names("service"))
@pass_session
def service_logs(session: Session, follow: bool, tail: int | None, raw: bool, name: str) -> None:
    """Print what the tasks of a service have printed, wherever they run.

    \b
    Examples:
      mesh service logs api
      mesh service logs --follow --tail 10 api
      mesh service logs --raw api.2
    """
    client = session.client()
    try:
        print_logs(client, service=name, follow=follow, tail=tail, raw=raw)
    except Failure as failure:
        if failure.code is not ExitCode.NOT_FOUND or "." not in name:
            raise
        print_logs(client, task=name, follow=follow, tail=tail, raw=raw)


def print_logs(client: Client, *, service: str = "", task: str = "", follow: bool, tail: int | None, raw: bool) -> None:
    """Print until the end. Raises Failure, also when a part of it could not be read."""
    lines, out, errors = Interleaver(), sys.stdout.buffer, []
    for piece in client.read_logs(service=service, task=task, follow=follow, tail=tail):
        if piece.error:
            errors.append(f"{piece.task_name}: {piece.error}")
            click.echo(errors[-1], err=True)
        elif raw:
            out.write(piece.data)
        else:
            out.writelines(lines.add(f"{piece.task_name}@{piece.node}", piece.data))
        out.flush()
    out.writelines(lines.flush())
    out.flush()
    if errors:
        raise Failure("not all of it could be read")
