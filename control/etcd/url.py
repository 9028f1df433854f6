"""`etcd://host:2379[,host…]/prefix[?…]`: where the store is kept, as the operator writes it.

`etcds://` is the same over TLS, with `ca=`, and `cert=` and `key=` together (paths of PEM files). `ttl=` is how many
seconds a manager that has gone silent stays leader. No passwords: a command line is seen by everybody on the machine.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import parse_qsl, urlsplit

DEFAULT_PORT = 2379
# etcd takes nothing below one and a half of its own election time-out (1 s unless configured); a minute of nobody
# leading is more than anybody wants.
TTL_MIN_S, TTL_MAX_S, TTL_DEFAULT_S = 2, 60, 5
ENDPOINTS_MAX = 16  # etcd's own advice is seven members at most
PREFIX_MAX = 200

_HOST = re.compile(r"^(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?)$")
_PREFIX = re.compile(r"^(/[A-Za-z0-9._-]+)+$")


class BadStoreUrl(ValueError):
    """One sentence for whoever wrote it."""


@dataclass(frozen=True, slots=True)
class Tls:
    """Paths of PEM files; "" for none. An own certificate is `cert` and `key` together."""

    ca: str = ""
    cert: str = ""
    key: str = ""


@dataclass(frozen=True, slots=True)
class EtcdOptions:
    """Which etcd, and where in it."""

    endpoints: tuple[str, ...]  # host:port
    prefix: str  # begins with "/", does not end with it
    tls: Tls | None = None
    ttl_s: int = TTL_DEFAULT_S


def parse_url(text: str) -> EtcdOptions:
    """Raises BadStoreUrl with one clear sentence."""
    try:
        parts = urlsplit(text)
    except ValueError as error:
        raise BadStoreUrl(f'the store "{text}" is no URL: {error}') from error
    if parts.scheme not in ("etcd", "etcds"):
        raise BadStoreUrl(f'the store "{text}" must begin with etcd:// or etcds://')
    if "@" in parts.netloc:
        # The text is not shown: it holds a password.
        raise BadStoreUrl("the URL of the store holds a user name: use etcds:// with cert= and key= instead")
    if parts.fragment:
        raise BadStoreUrl(f'the store "{text}" has a "#" in it')
    endpoints = tuple(_endpoint(text, one) for one in parts.netloc.split(","))
    if len(set(endpoints)) != len(endpoints):
        raise BadStoreUrl(f'the store "{text}" names a host twice')
    if len(endpoints) > ENDPOINTS_MAX:
        raise BadStoreUrl(f'the store "{text}" names more than {ENDPOINTS_MAX} hosts')
    prefix = parts.path.rstrip("/")
    if not prefix:
        example = text.partition("?")[0].rstrip("/") + "/meshd"
        raise BadStoreUrl(f'the store "{text}" needs a prefix that no other cluster uses, like {example}')
    if not _PREFIX.match(prefix) or len(prefix) > PREFIX_MAX:
        raise BadStoreUrl(
            f'the prefix "{prefix}" of the store may only have letters, digits, ".", "_", "-" between its slashes, '
            f"and {PREFIX_MAX} characters"
        )
    options = _parameters(text, parts.query)
    ttl_s = _ttl(options.pop("ttl", str(TTL_DEFAULT_S)))
    return EtcdOptions(endpoints, prefix, _tls(text, parts.scheme == "etcds", options), ttl_s)


def _endpoint(text: str, one: str) -> str:
    host, colon, port = one.rpartition(":")
    if not colon or one.endswith("]"):
        host, port = one, str(DEFAULT_PORT)
    if not _HOST.match(host):
        raise BadStoreUrl(f'the store "{text}" has no host name or address where "{one}" is')
    if not (port.isascii() and port.isdigit() and 0 < int(port) < 65_536):
        raise BadStoreUrl(f'the store "{text}" has a bad port in "{one}"')
    return f"{host}:{int(port)}"


def _parameters(text: str, query: str) -> dict[str, str]:
    try:
        pairs = parse_qsl(query, keep_blank_values=True, strict_parsing=bool(query))
    except ValueError as error:
        raise BadStoreUrl(f'the store "{text}" must have name=value after the "?"') from error
    options: dict[str, str] = {}
    for name, value in pairs:
        if name not in ("ca", "cert", "key", "ttl"):
            raise BadStoreUrl(f'the store "{text}" has an unknown option "{name}": there are ca, cert, key and ttl')
        if name in options:
            raise BadStoreUrl(f'the store "{text}" has the option "{name}" twice')
        if not value:
            raise BadStoreUrl(f'the store "{text}" has nothing after "{name}="')
        options[name] = value
    return options


def _ttl(text: str) -> int:
    if not (text.isascii() and text.isdigit() and TTL_MIN_S <= int(text) <= TTL_MAX_S):
        raise BadStoreUrl(f'the option ttl of the store must be {TTL_MIN_S} to {TTL_MAX_S} seconds, not "{text}"')
    return int(text)


def _tls(text: str, wanted: bool, options: dict[str, str]) -> Tls | None:
    if not wanted:
        if options:
            raise BadStoreUrl(f'the store "{text}" has certificates but no TLS: write etcds://')
        return None
    if ("cert" in options) != ("key" in options):
        raise BadStoreUrl(f'the store "{text}" needs cert= and key= together')
    return Tls(**options)
