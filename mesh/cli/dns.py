"""`mesh dns`: the name server."""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import ip_address

import click

from mesh.cli.errors import Failure
from mesh.cli.lazy import AliasedGroup
from mesh.cli.options import DURATION, Parsed
from mesh.cli.text import TextError

DEFAULT_TTL = "5s"


@click.group(cls=AliasedGroup)
def dns() -> None:
    """The name server. Each node runs one for its tasks; `serve` runs one on its own."""


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
