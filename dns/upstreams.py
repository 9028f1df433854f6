"""Which servers to ask for names that are not ours: read from resolv.conf(5). Pure.

Only `nameserver` lines count. `search` and `options` are for the programs of the host, not for a server: the question
is complete when it gets here. What cannot be read is skipped, as libc does.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import ip_address

from dns.plan import Address

PORT = 53
# As many as libc reads. Who is asked fourth answers a client that has given up.
UPSTREAMS_MAX = 3
# Where systemd-resolved answers, and the file in which it lists whom it asks (systemd-resolved(8)).
STUBS = frozenset({"127.0.0.53", "127.0.0.54"})
BEHIND_STUB = "/run/systemd/resolve/resolv.conf"
# A file longer than this is no resolver configuration.
FILE_MAX = 64 * 1024


@dataclass(frozen=True, slots=True, order=True)
class Upstream:
    """Another name server. `scope` is the interface of a link-local address."""

    address: str
    port: int = PORT
    scope: str = ""

    def __str__(self) -> str:
        host = f"[{self.address}]" if ":" in self.address else self.address
        return f"{host}:{self.port}"


def parse_resolv_conf(text: str) -> tuple[Upstream, ...]:
    """The servers of a resolv.conf, in order, each once."""
    found: dict[Upstream, None] = {}
    for line in text[:FILE_MAX].splitlines():
        words = line.split()
        if len(words) < 2 or words[0] != "nameserver" or line[0] in "#;":
            continue
        host, _, scope = words[1].partition("%")
        try:
            found[Upstream(str(ip_address(host)), PORT, scope)] = None
        except ValueError:
            continue
    return tuple(found)


def parse_upstream(text: str) -> Upstream:
    """`ADDRESS`, `ADDRESS:PORT` or `[V6]:PORT`. Raises ValueError with a sentence."""
    try:
        return Upstream(str(ip_address(text)))
    except ValueError:
        host, _, port = text.rpartition(":")
        try:
            address = str(ip_address(host.removeprefix("[").removesuffix("]")))
        except ValueError:
            raise ValueError(f'"{text}" is not the address of a name server') from None
        if not port.isdigit() or not 0 < int(port) < 1 << 16:
            raise ValueError(f'"{text}" has no port from 1 to 65535') from None
        return Upstream(address, int(port))


def choose(found: Iterable[Upstream], own: Iterable[tuple[Address, int]]) -> tuple[Upstream, ...]:
    """Those to ask: without ourselves (the host may be set to ask us: a question would go round), not too many."""
    taken = {(str(address), port) for address, port in own}
    return tuple(u for u in found if (u.address, u.port) not in taken)[:UPSTREAMS_MAX]
