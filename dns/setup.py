"""How a machine is set to ask its own node for names that end in .mesh, and how that is undone. Pure.

Two ways, by what the machine has:

- systemd-resolved: a drop-in that sends questions for .mesh to our server (resolved.conf(5), "routing-only domain").
- a plain resolv.conf: our server before the others, which stay as they are behind it. libc asks the next one at once
  while nobody listens on ours, so a machine whose meshd is stopped loses only the names of the mesh; and our server
  finds there whom to ask for all other names.
"""

from __future__ import annotations

from dns.upstreams import parse_resolv_conf

DOMAIN = "mesh"
_MARK = "# meshd"
_HEADER = f'{_MARK}: first this machine\'s own name server; "mesh dns setup --undo" takes this out again\n'
_DROP_IN_HEADER = '# Written by "mesh dns setup"; "mesh dns setup --undo" removes it.\n'


class SetupError(Exception):
    """The machine cannot be set so. One sentence."""


def with_server(text: str, address: str) -> str:
    """A resolv.conf that asks `address` first. The same text if it does already."""
    clean = without_server(text)
    found = [server.address for server in parse_resolv_conf(clean)]
    if address in found:
        raise SetupError(f"resolv.conf names {address} already, by somebody else's hand")
    return f"{_HEADER}nameserver {address}  {_MARK}\n{clean}"


def without_server(text: str) -> str:
    """The resolv.conf as it was before `with_server`, with what others changed since."""
    return "".join(line for line in text.splitlines(keepends=True) if _MARK not in line)


def drop_in(address: str, port: int) -> str:
    """The drop-in for systemd-resolved."""
    host = f"[{address}]" if ":" in address else address
    server = host if port == 53 else f"{host}:{port}"
    return f"{_DROP_IN_HEADER}[Resolve]\nDNS={server}\nDomains=~{DOMAIN}\n"
