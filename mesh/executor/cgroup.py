"""Resource limits by control groups: v2 where its controllers are free to use, else v1 where it is mounted.

A task with limits gets the group `meshd/<task id>`. Where a limit has no controller, that is said once per task in the
log and the task runs without. Blocking; small files only.
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
_PARENT = "meshd"


def place(task_id: str, limits: Resources, root: Path = ROOT) -> list[str]:
    """Make the task's groups with its limits; returns the `cgroup.procs` files that the task must write itself into."""
    wanted = _settings(limits)
    procs: list[str] = []
    for controller, settings in wanted.items():
        group = _group(root, controller, task_id)
        if group is None:
            log.warning("no cgroup controller for a limit", extra={"task": task_id, "controller": controller})
            continue
        group.mkdir(parents=True, exist_ok=True)
        version = 2 if _unified(root) else 1
        for name, value in settings[version].items():
            (group / name).write_text(value)
        procs.append(str(group / "cgroup.procs"))
    return sorted(set(procs))


def remove(task_id: str, root: Path = ROOT) -> None:
    """Remove the task's groups, which must be empty. What is not there is no error."""
    for parent in {root / _PARENT, *(root / c / _PARENT for c in ("cpu", "memory", "pids"))}:
        with contextlib.suppress(OSError):
            os.rmdir(parent / task_id)


def _unified(root: Path) -> bool:
    return (root / "cgroup.controllers").exists()


def _group(root: Path, controller: str, task_id: str) -> Path | None:
    if _unified(root):
        if controller not in (root / "cgroup.controllers").read_text().split():
            return None
        for level in (root, root / _PARENT):
            level.mkdir(exist_ok=True)
            with contextlib.suppress(OSError):  # already enabled, or not ours to enable: writing the limit will tell
                (level / "cgroup.subtree_control").write_text(f"+{controller}")
        return root / _PARENT / task_id
    return root / controller / _PARENT / task_id if (root / controller).is_dir() else None


def _settings(limits: Resources) -> dict[str, dict[int, dict[str, str]]]:
    """controller -> cgroup version -> file -> value, for the limits that are set."""
    wanted: dict[str, dict[int, dict[str, str]]] = {}
    if limits.memory_bytes:
        amount = str(limits.memory_bytes)
        wanted["memory"] = {1: {"memory.limit_in_bytes": amount}, 2: {"memory.max": amount, "memory.swap.max": "0"}}
    if limits.cpus:
        quota = str(int(limits.cpus * PERIOD_US))
        wanted["cpu"] = {
            1: {"cpu.cfs_period_us": str(PERIOD_US), "cpu.cfs_quota_us": quota},
            2: {"cpu.max": f"{quota} {PERIOD_US}"},
        }
    if limits.pids:
        wanted["pids"] = {1: {"pids.max": str(limits.pids)}, 2: {"pids.max": str(limits.pids)}}
    return wanted
