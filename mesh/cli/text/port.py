"""Published ports, in Docker's two forms: `8080:80/tcp`, and `published=8080,target=80,protocol=tcp,mode=ingress`."""

from __future__ import annotations

import re

from control.model import PortSpec, Protocol, PublishMode
from mesh.cli.text import TextError

PROTOCOLS: dict[str, Protocol] = {"tcp": "tcp", "udp": "udp", "sctp": "sctp"}
MODES: dict[str, PublishMode] = {"ingress": "ingress", "host": "host"}
# One argument can name this many ports: as many as a service may publish (control.spec).
RANGE_MAX = 256

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
    if ":" in published_text:
        raise TextError(
            f'port "{text}": a service is published on every node, not on one address: leave the address out'
        )
    targets = _range(text, target_text)
    published = _range(text, published_text) if colon and published_text else []
    if colon and not published_text:
        raise TextError(f'"{text}" is not a port to publish: {_SHORT}')
    if not published:
        return tuple(PortSpec(target=target, protocol=protocol) for target in targets)
    if len(published) != len(targets):
        raise TextError(f'port "{text}": both ranges must have the same length')
    return tuple(
        PortSpec(target=target, published=port, protocol=protocol)
        for port, target in zip(published, targets, strict=True)
    )


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
    for part in text.split(","):
        key, equals, value = part.partition("=")
        key = key.strip().lower()
        if not equals or key not in ("published", "target", "protocol", "mode"):
            raise TextError(f'port "{text}": "{part}" is not understood: there are published, target, protocol, mode')
        if key in fields:
            raise TextError(f'port "{text}": {key} is given twice')
        fields[key] = value.strip()
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
        ),
    )


def _number(text: str, what: str, value: str, low: int) -> int:
    if not re.fullmatch(r"[0-9]{1,5}", value) or not low <= int(value) <= 65535:
        raise TextError(f'port "{text}": {what} must be {low} to 65535, not "{value}"')
    return int(value)


def format_port(port: PortSpec) -> str:
    """As Docker lists it: *:8080->80/tcp."""
    return f"*:{port.published}->{port.target}/{port.protocol}"
