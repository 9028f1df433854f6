"""`mesh dns`: the name server."""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import ip_address

import click

from mesh.cli.dns_setup import setup
from mesh.cli.errors import Failure
from mesh.cli.lazy import AliasedGroup
from mesh.cli.options import DURATION, Parsed
from mesh.cli.output import Listing, ListOptions, print_list
from mesh.cli.session import Session, pass_session
from mesh.cli.text import TextError
from mesh.cli.text.template import Record

DEFAULT_TTL = "5s"


@click.group(cls=AliasedGroup)
def dns() -> None:
    """The name server. Each node runs one for its tasks; `serve` runs one on its own."""


@dns.command("query")
@click.argument("name")
@click.option("--type", "-t", "kind", metavar="TYPE", default="A", show_default=True, help="A, AAAA, SRV, PTR, ...")
@click.option("--from", "task", metavar="TASK", default="", help="As this task of the machine gets it. [the machine]")
@pass_session
def query(session: Session, name: str, kind: str, task: str) -> None:
    """Show how a name is answered here, and why.

    \b
    Examples:
      mesh dns query --from web.1 api
      mesh dns query --from web.1 --type SRV _http._tcp.api
      mesh dns query --type PTR 10.128.0.5
    """
    from control.rpc import control_pb2 as pb

    found = session.client().dns_query(pb.DnsQueryRequest(name=name, type=kind, task=task))
    click.echo(f"{found.outcome} (as {found.view})")
    for answer in found.answers:
        click.echo(f"  {answer}")
    for sentence in found.why:
        click.echo(f"because {sentence}")


_DUMP = {"Network": "NETWORK", "Name": "NAME", "Type": "TYPE", "Value": "VALUE"}
_DUMP_MORE = {"Why": "WHY"}


@dns.command("dump")
@click.option("--format", "format_", metavar="FORMAT", default="table", help="table, json, jsonl, or a template.")
@pass_session
def dump(session: Session, format_: str) -> None:
    """List every name that this machine serves.

    \b
    Examples:
      mesh dns dump
      mesh dns dump --format '{{.Name}} {{.Type}} {{.Value}} {{.Why}}'
    """
    found = list(session.client().dns_dump())
    rows = [Record(Network=one.network, Name=one.name, Type=one.type, Value=one.value, Why=one.why) for one in found]
    objects = [{key.lower(): value for key, value in row.items()} for row in rows]
    print_list(ListOptions(format_, quiet=False, no_trunc=True, filters={}), Listing(_DUMP, rows, objects, _DUMP_MORE))


dns.add_command(setup)


def parse_listen(text: str) -> tuple[str, int]:
    """(address, port) of ADDRESS:PORT or [ADDRESS]:PORT. Raises TextError."""
    host, _, port = text.rpartition(":")
    bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    try:
        address = ip_address(bare)
    except ValueError as error:
        raise TextError(f'"{text}" must be ADDRESS:PORT, such as 127.0.0.1:5353') from error
    if not (port.isascii() and port.isdigit() and len(port) <= 5 and 0 < int(port) <= 65535):
        raise TextError(f'"{text}" must be ADDRESS:PORT, such as 127.0.0.1:5353')
    return str(address), int(port)


@dns.command("serve")
@click.option("--records", metavar="FILE", required=True, help="What to answer with, one NAME TYPE VALUE a line.")
@click.option(
    "--listen", type=Parsed("address:port", parse_listen), default="127.0.0.1:5353", show_default=True, help="Where."
)
@click.option("--upstream", "upstreams", metavar="ADDRESS[:PORT]", multiple=True, help="Asked for all other names.")
@click.option("--ttl", type=DURATION, default=DEFAULT_TTL, show_default=True, help="Time to live of the answers.")
def serve(records: str, listen: tuple[str, int], upstreams: Sequence[str], ttl: float) -> None:
    """Answer DNS questions with the records of a file, without a daemon, until Ctrl-C.

    \b
    Examples:
      mesh dns serve --records zone.txt --listen 127.0.0.1:5353
      mesh dns serve --records zone.txt --upstream 9.9.9.9
    """
    from dns.records import RecordsError
    from dns.service import serve_records

    host, port = listen
    click.echo(f"serving {records} on {host} port {port}", err=True)
    try:
        serve_records(records, host, port, upstreams=tuple(upstreams), ttl_s=int(ttl))
    except RecordsError as error:
        raise Failure(f"{records}: {error}") from error
    except OSError as error:
        raise Failure(f"cannot serve {records} on {host} port {port}: {error.strerror}") from error
    except ValueError as error:  # an upstream that is no address
        raise Failure(str(error)) from error
