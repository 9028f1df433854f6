"""`mesh trace`: where a connection goes, and where it would be lost."""

from __future__ import annotations

import click

from mesh.cli.errors import ExitCode
from mesh.cli.session import Session, pass_session, styled
from mesh.cli.text import TextError


def split_target(text: str) -> tuple[str, int]:
    """(name or address, port; 0 for any) of NAME, NAME:PORT, [V6]:PORT. Raises TextError."""
    host, bracket, rest = text.removeprefix("[").partition("]") if text.startswith("[") else (text, "", "")
    if not bracket:
        host, _, port = text.partition(":") if text.count(":") == 1 else (text, "", "")
        rest = f":{port}" if port or text.endswith(":") else ""
    if not rest:
        return host, 0
    port = rest.removeprefix(":")
    if not (port.isascii() and port.isdigit() and len(port) <= 5 and 0 < int(port) <= 65535):
        raise TextError(f'"{text}" must be NAME or NAME:PORT, such as api:80')
    return host, int(port)


@click.command("trace")
@click.argument("source", metavar="TASK")
@click.argument("target", metavar="NAME[:PORT]")
@click.option("--protocol", type=click.Choice(["tcp", "udp", "sctp"]), default="tcp", show_default=True)
@pass_session
def trace(session: Session, source: str, target: str, protocol: str) -> None:
    """Follow a connection from a task of this machine: name, virtual address, backends, routes, tunnels, counters.

    The exit code is 7 when packets would be lost on the way.

    \b
    Examples:
      mesh trace web.1 api:80
      mesh trace web.1 10.128.0.7
    """
    from control.rpc import control_pb2 as pb

    host, port = split_target(target)
    steps = session.client().trace(pb.TraceRequest(source=source, target=host, port=port, protocol=protocol))
    for step in steps:
        mark = styled("lost", "red") if step.lost else "    "
        click.echo(f"{mark} {step.what:<9} {step.found}")
    if any(step.lost for step in steps):
        raise click.exceptions.Exit(ExitCode.DEGRADED)
