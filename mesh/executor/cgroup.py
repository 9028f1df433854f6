"""Resource limits by control groups: v2 where its controllers are free to use, else v1 where it is mounted.

A task with limits gets the group `meshd/<task id>`. Where the kernel offers no controller for a limit, the task runs
without it, and the log says so. Resource limits of the process (setrlimit) were rejected as a substitute: the one for
processes counts all of the user's on the machine, and the one for memory counts address space. Blocking; small files.
"""

from __future__ import annotations

import contextlib
import logging
import os
from pathlib import Path

from control.model import Resources

log = logging.getLogger(__name__)

ROOT = Path("/sys/fs/cgroup")
PERIOD_US = 100_000  # the kernel's own default for CPU quotas
MIN_QUOTA_US = 1_000  # the kernel refuses less
CONTROLLERS = ("cpu", "memory", "pids")
_PARENT = "meshd"
# `place` of one task and `remove` of another meet at the parent directory: once is enough but for a third.
_ATTEMPTS = 3


def place(task_id: str, limits: Resources, root: Path = ROOT) -> list[str]:
    """Make the task's groups with its limits; returns the `cgroup.procs` files that the task must write itself into.

    Raises OSError when the kernel refuses a limit that it has a controller for.
    """
    procs: set[str] = set()
    for controller, settings in _settings(limits).items():
        group = _group(root, controller, task_id)
        if group is None or not _limit(group, settings[2 if _unified(root) else 1]):
            log.warning("no control group for a limit", extra={"task": task_id, "controller": controller})
            continue
        procs.add(str(group / "cgroup.procs"))
    return sorted(procs)


def remove(task_id: str, root: Path = ROOT) -> None:
    """Remove the task's groups, which must be empty. What is not there is no error. Raises OSError."""
    for parent in (root / _PARENT, *(root / controller / _PARENT for controller in CONTROLLERS)):
        with contextlib.suppress(FileNotFoundError):
            os.rmdir(parent / task_id)
        with contextlib.suppress(OSError):  # in use by others, or not there
            os.rmdir(parent)


def _unified(root: Path) -> bool:
    return (root / "cgroup.controllers").exists()


def _group(root: Path, controller: str, task_id: str) -> Path | None:
    """Where the task's group for a controller belongs; None without that controller."""
    if not _unified(root):
        return root / controller / _PARENT / task_id if (root / controller).is_dir() else None
    if controller not in (root / "cgroup.controllers").read_text().split():
        return None
    for level in (root, root / _PARENT):
        with contextlib.suppress(OSError):  # not ours to enable, or enabled already: `_limit` sees what came of it
            level.mkdir(exist_ok=True)
            (level / "cgroup.subtree_control").write_text(f"+{controller}")
    return root / _PARENT / task_id


def _limit(group: Path, settings: dict[str, str]) -> bool:
    """Make the group and write its limits; False when the kernel has no such files there."""
    for attempt in range(_ATTEMPTS):
        try:
            group.mkdir(parents=True, exist_ok=True)
            break
        except FileNotFoundError:
            if attempt == _ATTEMPTS - 1:
                raise
    written = False
    for name, value in settings.items():
        if (group / name).exists():
            (group / name).write_text(value)
            written = True
    return written


def _settings(limits: Resources) -> dict[str, dict[int, dict[str, str]]]:
    """controller -> cgroup version -> file -> value, for the limits that are set."""
    wanted: dict[str, dict[int, dict[str, str]]] = {}
    if limits.memory_bytes:
        amount = str(limits.memory_bytes)
        wanted["memory"] = {1: {"memory.limit_in_bytes": amount}, 2: {"memory.max": amount, "memory.swap.max": "0"}}
    if limits.cpus:
        quota = str(max(MIN_QUOTA_US, int(limits.cpus * PERIOD_US)))
        wanted["cpu"] = {
            1: {"cpu.cfs_period_us": str(PERIOD_US), "cpu.cfs_quota_us": quota},
            2: {"cpu.max": f"{quota} {PERIOD_US}"},
        }
    if limits.pids:
        wanted["pids"] = {1: {"pids.max": str(limits.pids)}, 2: {"pids.max": str(limits.pids)}}
    return wanted
