"""Published ports, in Docker's two forms: `8080:80/tcp`, and `published=8080,target=80,protocol=tcp,mode=ingress`."""

from __future__ import annotations

import re
from ipaddress import ip_address

from control.model import NamedPort, PortSpec, Protocol, PublishMode
from mesh.cli.text import TextError

PROTOCOLS: dict[str, Protocol] = {"tcp": "tcp", "udp": "udp", "sctp": "sctp"}
MODES: dict[str, PublishMode] = {"ingress": "ingress", "host": "host"}
# One argument can name this many ports: as many as a service may publish (control.spec).
RANGE_MAX = 256

_KEYS = ("published", "target", "protocol", "mode", "address", "constraint")
_SHORT = "such as 8080:80, or 8080:80/udp"
_RANGE = re.compile(r"([0-9]{1,5})(?:-([0-9]{1,5}))?")


def parse_publish(text: str) -> tuple[PortSpec, ...]:
    """One value of `--publish`: one port, or several if it has a range. Raises TextError."""
    return _long(text) if "=" in text else _short(text)


def _short(text: str) -> tuple[PortSpec, ...]:
    ports, slash, protocol_text = text.partition("/")
    protocol = PROTOCOLS.get(protocol_text.lower() if slash else "tcp")
    if protocol is None:
        raise TextError(f'port "{text}": the protocol must be tcp, udp or sctp')
    published_text, colon, target_text = ports.rpartition(":")
    address_text, address_colon, published_text = published_text.rpartition(":")
    address = _address(text, address_text) if address_colon else ""
    targets = _range(text, target_text)
    published = _range(text, published_text) if colon and published_text else []
    if colon and not published_text and not address:
        raise TextError(f'"{text}" is not a port to publish: {_SHORT}')
    if not published:
        return tuple(PortSpec(target=target, protocol=protocol, address=address) for target in targets)
    if len(published) != len(targets):
        raise TextError(f'port "{text}": both ranges must have the same length')
    return tuple(
        PortSpec(target=target, published=port, protocol=protocol, address=address)
        for port, target in zip(published, targets, strict=True)
    )


def _address(text: str, address: str) -> str:
    """An address in canonical form; IPv6 ones are written in brackets, as in URLs. Raises TextError."""
    inner = address[1:-1] if address.startswith("[") and address.endswith("]") else address
    try:
        return str(ip_address(inner))
    except ValueError as error:
        raise TextError(f'port "{text}": "{address}" is not an address of a node') from error


def _range(text: str, ports: str) -> list[int]:
    match = _RANGE.fullmatch(ports)
    if match is None:
        raise TextError(f'"{text}" is not a port to publish: {_SHORT}')
    first, last = int(match[1]), int(match[2] or match[1])
    if not 1 <= first <= last <= 65535:
        raise TextError(f'port "{text}": ports are 1 to 65535, in rising order')
    if last - first >= RANGE_MAX:
        raise TextError(f'port "{text}": a range has at most {RANGE_MAX} ports')
    return list(range(first, last + 1))


def _long(text: str) -> tuple[PortSpec, ...]:
    fields: dict[str, str] = {}
    constraints: list[str] = []
    for part in text.split(","):
        key, equals, value = part.partition("=")
        key, value = key.strip().lower(), value.strip()
        if not equals or key not in _KEYS:
            raise TextError(f'port "{text}": "{part}" is not understood: there are {", ".join(_KEYS)}')
        if key == "constraint":
            constraints.append(value)
            continue
        if key in fields:
            raise TextError(f'port "{text}": {key} is given twice')
        fields[key] = value
    if "target" not in fields:
        raise TextError(f'port "{text}": target=PORT is missing')
    protocol, mode = PROTOCOLS.get(fields.get("protocol", "tcp")), MODES.get(fields.get("mode", "ingress"))
    if protocol is None:
        raise TextError(f'port "{text}": the protocol must be tcp, udp or sctp')
    if mode is None:
        raise TextError(f'port "{text}": the mode must be ingress or host')
    return (
        PortSpec(
            target=_number(text, "target", fields["target"], 1),
            published=_number(text, "published", fields.get("published", "0"), 0),
            protocol=protocol,
            mode=mode,
            address=_address(text, fields["address"]) if "address" in fields else "",
            constraints=tuple(constraints),
        ),
    )


def _number(text: str, what: str, value: str, low: int) -> int:
    if not re.fullmatch(r"[0-9]{1,5}", value) or not low <= int(value) <= 65535:
        raise TextError(f'port "{text}": {what} must be {low} to 65535, not "{value}"')
    return int(value)


def parse_named_port(text: str) -> NamedPort:
    """One value of `--port`: http=8080, or dns=53/udp. Raises TextError."""
    name, equals, rest = text.partition("=")
    number, slash, protocol_text = rest.partition("/")
    protocol = PROTOCOLS.get(protocol_text.lower() if slash else "tcp")
    if not name or not equals:
        raise TextError(f'"{text}" is not a named port: such as http=8080, or dns=53/udp')
    if protocol is None:
        raise TextError(f'port "{text}": the protocol must be tcp, udp or sctp')
    return NamedPort(name=name, port=_number(text, "the port", number, 1), protocol=protocol)


def format_port(port: PortSpec) -> str:
    """As Docker lists it: *:8080->80/tcp."""
    address = f"[{port.address}]" if ":" in port.address else port.address or "*"
    return f"{address}:{port.published}->{port.target}/{port.protocol}"
