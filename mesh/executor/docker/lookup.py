"""Where a command lies in the root file system of a container, seen from outside.

Links are followed as the container would: absolute ones begin at its root, and none leads out of it. Blocking.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass

LINKS_MAX = 40  # as in the kernel


@dataclass(frozen=True, slots=True)
class Program:
    """A command: the path to give to execve(2), or why there is none."""

    path: str = ""
    error: str = ""


def find_program(root: str, name: str, search: Sequence[str]) -> Program:
    """The command `name` in the root file system at `root`; a name without "/" is looked for in `search`."""
    if "/" in name and not name.startswith("/"):
        return Program(name)  # begins in its working directory, where it will see for itself
    error = "is not found"
    for path in (name,) if name.startswith("/") else [f"{directory.rstrip('/')}/{name}" for directory in search]:
        found = resolve(root, path)
        if found is None:
            continue
        mode = os.stat(found).st_mode
        if stat.S_ISREG(mode) and mode & 0o111:
            return Program(path)
        error = "cannot be executed"
    return Program(error=error)


def resolve(root: str, path: str) -> str | None:
    """The true place of a container's path, from outside; None if nothing is there."""
    here, links = "", 0  # below root
    left = path.split("/")
    while left:
        part = left.pop(0)
        if part in ("", "."):
            continue
        if part == "..":
            here = here.rpartition("/")[0]
            continue
        try:
            target = os.readlink(f"{root}{here}/{part}")
        except OSError:
            here = f"{here}/{part}"  # no link, or nothing
            continue
        links += 1
        if links > LINKS_MAX:
            return None
        here = "" if target.startswith("/") else here
        left = [*target.split("/"), *left]
    return f"{root}{here}" if os.path.lexists(f"{root}{here}") else None
