"""What containers get, as it is written: mounts, limits of processes, host entries."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Iterable
from typing import cast

from control.model import Mount, MountKind, Ulimit
from mesh.cli.text import TextError
from mesh.cli.text.size import parse_size

_KINDS = ("bind", "volume", "tmpfs")
_SOURCES, _TARGETS, _READ_ONLY = ("source", "src"), ("target", "dst", "destination"), ("readonly", "ro")
_MOUNT = "such as type=bind,source=/srv,target=/data,readonly"


def parse_mount(text: str) -> Mount:
    """`type=bind,source=/srv,target=/data,readonly`, or in short `/srv:/data:ro`. Raises TextError."""
    if "=" not in text:
        return _short_mount(text)
    kind, source, target, read_only, size = "volume", "", "", False, 0
    for part in text.split(","):
        key, equals, value = part.partition("=")
        if key == "type" and value in _KINDS:
            kind = value
        elif key in _SOURCES:
            source = value
        elif key in _TARGETS:
            target = value
        elif key in _READ_ONLY and (not equals or value in ("true", "1", "false", "0")):
            read_only = not equals or value in ("true", "1")
        elif key == "tmpfs-size":
            size = parse_size(value)
        else:
            raise TextError(f'"{part}" is no part of a mount: {_MOUNT}')
    if not target:
        raise TextError(f'mount "{text}" has no target: {_MOUNT}')
    return Mount(kind=cast(MountKind, kind), source=source, target=target, read_only=read_only, size_bytes=size)


def _short_mount(text: str) -> Mount:
    match = re.fullmatch(r"([^:]+):(/[^:]*)(:ro|:rw)?", text)
    if match is None:
        raise TextError(f'"{text}" is not a mount: {_MOUNT}')
    kind: MountKind = "bind" if match[1].startswith("/") else "volume"
    return Mount(kind=kind, source=match[1], target=match[2], read_only=match[3] == ":ro")


def parse_ulimit(text: str) -> Ulimit:
    """`nofile=1024:4096`, or one number for both; "unlimited" and -1 are none. Raises TextError."""
    match = re.fullmatch(r"([a-z]+)=(-1|\d{1,18}|unlimited)(?::(-1|\d{1,18}|unlimited))?", text)
    if match is None:
        raise TextError(f'"{text}" is not a limit of processes: such as nofile=1024:4096')
    soft, hard = ((-1 if n == "unlimited" else int(n)) for n in (match[2], match[3] or match[2]))
    return Ulimit(name=match[1], soft=soft, hard=hard)


def parse_host(text: str) -> str:
    """A line of /etc/hosts from `store:10.0.0.9`. Raises TextError."""
    name, colon, address = text.partition(":")
    if not colon or not name or not address:
        raise TextError(f'"{text}" is not a host entry: such as store:10.0.0.9')
    return f"{address.strip('[]')} {name}"


def parse_setting(what: str) -> Callable[[str], tuple[str, str]]:
    """A reader of `name=value`. It raises TextError."""

    def read(text: str) -> tuple[str, str]:
        name, equals, value = text.partition("=")
        if not name or not equals:
            raise TextError(f'"{text}" is not a {what}: such as name=value')
        return name, value

    return read


def parse_words(text: str) -> tuple[str, ...]:
    """A command line as words, as a shell splits them. Raises TextError."""
    try:
        return tuple(shlex.split(text))
    except ValueError as error:
        raise TextError(f"cannot read the command {text}: {error}") from error


def as_dict(pairs: Iterable[tuple[str, str]]) -> dict[str, str]:
    """The last one of a name wins."""
    return dict(pairs)
