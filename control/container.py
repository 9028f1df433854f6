"""What a user may ask of a container beyond what every task has. Pure: a spec in, all its mistakes out."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from ipaddress import ip_address

from control.model import ContainerSpec, Mount, Ulimit
from control.registry import auth_mistakes

MOUNTS_MAX = 64
LIST_MAX = 64  # groups, capabilities, limits, lines of /etc/hosts, options: nobody needs more
PATH_MAX = 4095
VALUE_MAX = 1024
TMPFS_MIN_BYTES = 4096  # a page
# setrlimit(2), as engines name them.
ULIMITS = frozenset(
    ("core", "cpu", "data", "fsize", "locks", "memlock", "msgqueue", "nice", "nofile", "nproc", "rss", "rtprio")
) | {"rttime", "sigpending", "stack"}
# Where the container finds what we put there.
TAKEN = frozenset(("/", "/.mesh", "/.mesh/gate", "/.mesh/door", "/etc/hosts", "/etc/resolv.conf"))
_VOLUME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{1,254}")
_CAPABILITY = re.compile(r"ALL|(CAP_)?[A-Z][A-Z_]{1,30}")
_SYSCTL = re.compile(r"[a-z0-9][A-Za-z0-9_.\-]{0,254}")
_GROUP = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,31}")
_WORD = re.compile(r"[a-z0-9][A-Za-z0-9_./:-]{0,127}")
_HOST = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_.-]{0,252})")


def container_mistakes(container: ContainerSpec) -> list[str]:
    """All mistakes in the fields that only containers have, one sentence each."""
    return [
        *_counts(container),
        *_mounts(container.mounts),
        *_ulimits(container.ulimits),
        *_names("group", container.groups, _GROUP),
        *_names("capability", (*container.cap_add, *container.cap_drop), _CAPABILITY),
        *_names("sysctl", container.sysctls, _SYSCTL),
        *_names("log driver", (container.log_driver,) if container.log_driver else (), _WORD),
        *_names("log option", container.log_options, _WORD),
        *_values("sysctl", container.sysctls.items()),
        *_values("log option", container.log_options.items()),
        *(sentence for line in container.hosts for sentence in _host(line)),
        *auth_mistakes(container),
    ]


def _counts(container: ContainerSpec) -> Iterator[str]:
    limits = {
        "mounts": (len(container.mounts), MOUNTS_MAX),
        "groups": (len(container.groups), LIST_MAX),
        "limits of processes": (len(container.ulimits), LIST_MAX),
        "capabilities": (len(container.cap_add) + len(container.cap_drop), LIST_MAX),
        "sysctls": (len(container.sysctls), LIST_MAX),
        "host entries": (len(container.hosts), LIST_MAX),
        "log options": (len(container.log_options), LIST_MAX),
    }
    for what, (count, most) in limits.items():
        if count > most:
            yield f"at most {most} {what} are possible, not {count}"


def _mounts(mounts: tuple[Mount, ...]) -> Iterator[str]:
    seen: set[str] = set()
    for mount in mounts:
        target = mount.target.rstrip("/") or "/"
        if not _is_path(mount.target):
            yield f'target of a mount must be an absolute path, not "{_short(mount.target)}"'
        elif target in TAKEN:
            yield f"nothing can be mounted at {target}: meshd has its own there"
        elif target in seen:
            yield f"two mounts have the target {_short(target)}"
        seen.add(target)
        yield from _source(mount)


def _source(mount: Mount) -> Iterator[str]:
    where = f"mount at {_short(mount.target)}"
    match mount.kind:
        case "bind":
            if not _is_path(mount.source):
                yield f'{where}: source must be an absolute path on the node, not "{_short(mount.source)}"'
        case "volume":
            if mount.source and not _VOLUME.fullmatch(mount.source):
                yield f'{where}: "{_short(mount.source)}" cannot be the name of a volume'
        case "tmpfs":
            if mount.source:
                yield f"{where}: a tmpfs has no source"
    if mount.size_bytes and (mount.kind != "tmpfs" or mount.size_bytes < TMPFS_MIN_BYTES):
        yield f"{where}: a size is for a tmpfs, and at least {TMPFS_MIN_BYTES} bytes"


def _ulimits(ulimits: tuple[Ulimit, ...]) -> Iterator[str]:
    for limit in ulimits:
        if limit.name not in ULIMITS:
            yield f'"{_short(limit.name)}" is no limit of processes: there are {", ".join(sorted(ULIMITS))}'
        endless = limit.hard == -1
        if limit.soft < -1 or limit.hard < -1 or (not endless and (limit.soft == -1 or limit.soft > limit.hard)):
            yield f"limit {_short(limit.name)}: {limit.soft} must not be above {limit.hard}"
    if len({limit.name for limit in ulimits}) < len(ulimits):
        yield "a limit of processes is given twice"


def _names(what: str, names: Iterable[str], pattern: re.Pattern[str]) -> Iterator[str]:
    for name in names:
        if not pattern.fullmatch(name):
            yield f'"{_short(name)}" cannot be the name of a {what}'


def _values(what: str, pairs: Iterable[tuple[str, str]]) -> Iterator[str]:
    for name, value in pairs:
        if len(value) > VALUE_MAX or "\0" in value or "\n" in value:
            yield f"{what} {_short(name)}: its value must be one line of at most {VALUE_MAX} characters"


def _host(line: str) -> Iterator[str]:
    address, *names = line.split(" ")
    try:
        ip_address(address)
        known = bool(names) and all(_HOST.fullmatch(name) for name in names) and len(line) <= VALUE_MAX
    except ValueError:
        known = False
    if not known:
        yield f'a host entry must be an address and names such as "10.0.0.9 store", not "{_short(line)}"'


def _is_path(path: str) -> bool:
    return path.startswith("/") and len(path) <= PATH_MAX and not set("\0\n") & set(path)


def _short(text: str) -> str:
    return text if len(text) <= 40 else f"{text[:37]}..."
