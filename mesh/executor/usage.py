"""What a process and all of its control group have used: CPU, memory, processes. Versions 1 and 2 of control groups.

Blocking, but only for the kernel's own files.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

GROUPS = Path("/sys/fs/cgroup")
_NO_LIMIT = 1 << 60  # version 1 says a number near 2^63


@dataclass(frozen=True, slots=True)
class Usage:
    """What a control group has used. `memory_limit` 0: none. Memory is without the page cache that can be given up."""

    cpu_s: float
    memory_bytes: int
    memory_limit: int
    pids: int


def read_usage(pid: int, proc: Path = Path("/proc"), groups: Path = GROUPS) -> Usage | None:
    """Of the control groups of a process; None when it is gone."""
    try:
        places = _places((proc / str(pid) / "cgroup").read_text(), groups)
        if "" in places:
            return _unified(places[""])
        return _separate(places)
    except (OSError, ValueError, KeyError, IndexError):
        return None


def _places(text: str, groups: Path) -> dict[str, Path]:
    """Controller -> directory; "" is the one hierarchy of version 2, where there is no other."""
    found: dict[str, Path] = {}
    for line in text.splitlines():
        _, controllers, path = line.split(":", 2)
        for controller in controllers.split(","):
            root = groups / controller if controller else groups
            found[controller] = root / path.lstrip("/")
    if len(found) > 1:
        found.pop("", None)
    return found


def _unified(place: Path) -> Usage:
    cpu = dict(line.split() for line in (place / "cpu.stat").read_text().splitlines())
    limit = (place / "memory.max").read_text().strip()
    cached = _fields(place / "memory.stat").get("inactive_file", 0)
    return Usage(
        cpu_s=int(cpu["usage_usec"]) / 1e6,
        memory_bytes=max(0, int((place / "memory.current").read_text()) - cached),
        memory_limit=0 if limit == "max" else int(limit),
        pids=int((place / "pids.current").read_text()),
    )


def _separate(places: dict[str, Path]) -> Usage:
    limit = int((places["memory"] / "memory.limit_in_bytes").read_text())
    cached = _fields(places["memory"] / "memory.stat").get("total_inactive_file", 0)
    return Usage(
        cpu_s=int((places["cpuacct"] / "cpuacct.usage").read_text()) / 1e9,
        memory_bytes=max(0, int((places["memory"] / "memory.usage_in_bytes").read_text()) - cached),
        memory_limit=0 if limit >= _NO_LIMIT else limit,
        pids=int((places["pids"] / "pids.current").read_text()),
    )


def _fields(file: Path) -> dict[str, int]:
    return {name: int(value) for name, value in (line.split() for line in file.read_text().splitlines())}
