"""Records written down by hand, for a name server that runs alone. Pure.

One a line, `NAME TYPE VALUE`; `#` begins a comment, empty lines are skipped:

    api.web.mesh     A     10.0.1.2
    _http._tcp.api   SRV   0 1 8080 api.web.mesh
    7.1.0.10.in-addr.arpa  PTR  api.web.mesh
    api.web.mesh     TXT   anything to the end of the line
"""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import ip_address

from dns import wire
from dns.plan import Address
from dns.zone import Data, NetworkZone, Share

# A file with more is a mistake, or needs another kind of server: each record costs about a kilobyte of memory.
RECORDS_MAX = 1_000_000
# Show this many mistakes, and only count the rest.
MISTAKES_SHOWN = 20


class RecordsError(ValueError):
    """What is wrong with a file of records: a sentence for each line."""


def parse_records(text: str) -> list[tuple[bytes, Data]]:
    """(relative name in wire form, record) for each line. Raises RecordsError with all mistakes at once."""
    records: list[tuple[bytes, Data]] = []
    mistakes: list[str] = []
    for number, line in enumerate(text.splitlines(), 1):
        fields = line.split("#", 1)[0].split(maxsplit=2)
        if not fields:
            continue
        try:
            if len(fields) != 3:
                raise ValueError("is not NAME TYPE VALUE")
            name, kind, value = fields
            records.append((wire.to_wire(name)[:-1], static(kind, value.strip())))
        except ValueError as error:
            mistakes.append(f"line {number}: {error}")
    if len(records) > RECORDS_MAX:
        mistakes.append(f"more than {RECORDS_MAX} records")
    if mistakes:
        more = [f"and {len(mistakes) - MISTAKES_SHOWN} more"] if len(mistakes) > MISTAKES_SHOWN else []
        raise RecordsError("\n".join(mistakes[:MISTAKES_SHOWN] + more))
    return records


def records_zone(records: Iterable[tuple[bytes, Data]], ttl_s: int, network_id: str = "records") -> NetworkZone:
    """A network whose names are complete ones."""
    zone = NetworkZone(network_id, "")
    data: dict[bytes, list[Data]] = {}
    for name, item in records:
        data.setdefault(name, []).append(item)
    zone.put("", {name: (Share("written down", ttl_s=ttl_s, data=tuple(items)),) for name, items in data.items()})
    return zone


def static(kind: str, value: str) -> Data:
    """The data of a record written down by hand. Raises ValueError with a sentence."""
    match kind.upper():
        case "A" | "AAAA":
            address: Address = ip_address(value)
            if (address.version == 4) != (kind.upper() == "A"):
                raise ValueError(f"{value} is not an address for a record of type {kind}")
            return (wire.A if address.version == 4 else wire.AAAA), address.packed
        case "PTR":
            return wire.PTR, wire.to_wire(value)
        case "TXT":
            return wire.TXT, wire.txt_data(value)
        case "SRV":
            fields = value.split()
            if len(fields) != 4 or not all(f.isdigit() and int(f) < 1 << 16 for f in fields[:3]):
                raise ValueError(f'"{value}" is not "PRIORITY WEIGHT PORT TARGET"')
            return wire.SRV, wire.srv_data(int(fields[0]), int(fields[1]), int(fields[2]), wire.to_wire(fields[3]))
        case _:
            raise ValueError(f'cannot serve records of type "{kind}": only A, AAAA, PTR, SRV and TXT')
