"""Small JSON files that are written whole and tell one process from every other that ever had its pid. Light."""

from __future__ import annotations

import json
import os
from typing import Any

from mesh.executor import namespaces

_BOOT_ID = "/proc/sys/kernel/random/boot_id"


def write(path: str, value: dict[str, Any], *, durable: bool = False) -> None:
    """Write a file so that a reader sees all of it or none; `durable` ones survive a power cut. Raises OSError."""
    with open(f"{path}.new", "w", encoding="utf-8") as file:
        json.dump(value, file)
        if durable:
            file.flush()
            os.fsync(file.fileno())
    os.replace(f"{path}.new", path)


def read(path: str) -> dict[str, Any] | None:
    """The value of a file; None when it is not there, or is not what `write` wrote (a power cut empties files)."""
    try:
        with open(path, encoding="utf-8") as file:
            value = json.load(file)
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None


def identify(pid: int) -> dict[str, Any]:
    """What tells this process from all others: pid, start time, and the boot that both count from."""
    return {"pid": pid, "start": namespaces.start_time(pid), "boot": _boot_id()}


def living(record: dict[str, Any] | None) -> int | None:
    """The pid in a record made by `identify`, while that very process lives."""
    if record is None or record.get("boot") != _boot_id() or record.get("start") is None:
        return None
    pid = int(record["pid"])
    return pid if namespaces.start_time(pid) == record["start"] else None


def _boot_id() -> str:
    with open(_BOOT_ID, encoding="ascii") as file:
        return file.read().strip()
