"""What a container says of itself: the labels mesh.service, mesh.port, mesh.network, mesh.check, mesh.weight. Pure.

The same words as driver options of an endpoint, as labels of a container, and in `mesh attach`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import msgspec

from control.dispatcher.attaching import WEIGHT_MAX
from control.model import HealthCheck, NamedPort, Protocol
from control.spec import is_label

SERVICE, PORT, NETWORK, CHECK = "mesh.service", "mesh.port", "mesh.network", "mesh.check"
WEIGHT, ALIASES, NAME = "mesh.weight", "mesh.aliases", "mesh.name"
KNOWN = (SERVICE, PORT, NETWORK, CHECK, WEIGHT, ALIASES, NAME)
_PORT = re.compile(r"(?:([a-z0-9-]{1,15})=)?([0-9]{1,5})(?:/(tcp|udp|sctp))?")
_PROTOCOLS: dict[str, Protocol] = {"tcp": "tcp", "udp": "udp", "sctp": "sctp"}
_LABEL_MAX = 63


class LabelError(Exception):
    """A label is not what it should be. One sentence for the user."""


class Labels(msgspec.Struct, frozen=True, kw_only=True):
    """Read labels; what is not said is empty."""

    service: str = ""
    network: str = ""
    aliases: tuple[str, ...] = ()
    ports: tuple[NamedPort, ...] = ()
    weight: int | None = None
    check: HealthCheck | None = None

    def over(self, other: Labels) -> Labels:
        """These, and where they say nothing the other ones."""
        return Labels(
            service=self.service or other.service,
            network=self.network or other.network,
            aliases=self.aliases or other.aliases,
            ports=self.ports or other.ports,
            weight=other.weight if self.weight is None else self.weight,
            check=self.check or other.check,
        )

    def __bool__(self) -> bool:
        return self != Labels()


def read_labels(labels: Mapping[str, str]) -> Labels:
    """Labels of a container; others than ours are ignored. Raises LabelError."""
    unknown = sorted(k for k in labels if k.startswith("mesh.") and k not in KNOWN)
    if unknown:
        raise LabelError(f'there is no label "{unknown[0]}": there are {", ".join(KNOWN[:-1])}')
    service = labels.get(SERVICE, "").lower()
    if service and not is_label(service):
        raise LabelError(f"{SERVICE}={service} is no name: letters, digits and hyphens, at most {_LABEL_MAX}")
    aliases = tuple(_words(labels.get(ALIASES, "").lower()))
    for alias in aliases:
        if not is_label(alias):
            raise LabelError(f"{ALIASES}={alias} is no name: letters, digits and hyphens, at most {_LABEL_MAX}")
    ports = tuple(_port(word) for word in _words(labels.get(PORT, "")))
    return Labels(
        service=service,
        network=labels.get(NETWORK, ""),
        aliases=aliases,
        ports=ports,
        weight=_weight(labels[WEIGHT]) if WEIGHT in labels else None,
        check=_check(labels[CHECK], ports) if labels.get(CHECK) else None,
    )


def name_of(text: str) -> str:
    """A name for DNS, made of a container's or a network's name."""
    cleaned = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
    return cleaned[:_LABEL_MAX].strip("-") or "container"


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def _port(text: str) -> NamedPort:
    match = _PORT.fullmatch(text)
    if match is None or not 0 < int(match[2]) < 65536:
        raise LabelError(f'{PORT}={text} is no port: "80", "http=80" or "dns=53/udp"')
    return NamedPort(name=match[1] or f"port-{match[2]}", port=int(match[2]), protocol=_PROTOCOLS[match[3] or "tcp"])


def _weight(text: str) -> int:
    if not text.isascii() or not text.isdigit() or len(text) > 3 or int(text) > WEIGHT_MAX:
        raise LabelError(f"{WEIGHT}={text} is no weight: 0 to {WEIGHT_MAX}, and 1 is usual")
    return int(text)


def _check(text: str, ports: tuple[NamedPort, ...]) -> HealthCheck:
    """ "tcp", "tcp:5432", "http:/healthz", "http::8080/healthz"; the port is the container's first if none is named."""
    kind, _, rest = text.partition(":")
    first = ports[0].port if ports else 0
    if kind == "tcp" and rest.isascii() and (not rest or rest.isdigit()) and 0 < int(rest or first) < 65536:
        return HealthCheck(tcp=int(rest or first))
    path = re.fullmatch(r"(?::([0-9]{1,5}))?(/.*)", rest)
    if kind == "http" and path is not None and 0 < int(path[1] or first) < 65536:
        return HealthCheck(http=f":{path[1] or first}{path[2]}")
    raise LabelError(
        f'{CHECK}={text} is no check: "tcp", "tcp:5432", "http:/healthz", with the port of {PORT} or a own one'
    )
