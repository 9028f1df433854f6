"""What of this machine a lab could leave behind: looked at before and after, and compared.

Other labs may come and go meanwhile: what is theirs is left out.
"""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from pathlib import Path

from mesh.executor import records
from mesh.lab.lab import ROOT

_LOOKS: Mapping[str, tuple[str, ...]] = {
    "links": ("ip", "-brief", "link"),
    "addresses": ("ip", "-brief", "address"),
    "routes": ("ip", "-4", "route", "show", "table", "all"),
    "rules": ("ip", "-4", "rule"),
    "named namespaces": ("ip", "netns", "list"),
    "nftables": ("nft", "--stateless", "list", "ruleset"),
}
# Kinds of which only what is a lab's is looked at. A lab is in namespaces of its own: of the other kinds it has nothing
# here, and the tests compare them where nobody else is (tests/alone.py).
_OF_LABS = ("processes", "control groups", "directories")
_OURS = (
    "mesh/lab/init.py",
    f"dockerd --data-root={ROOT}",
    "mesh/lab/whoami",
    "mesh.lab.whoami",
    "bin/meshd",
    "mesh/executor/shim.py",
)


def snapshot(lab: str = "lab", root: Path = ROOT) -> dict[str, frozenset[str]]:
    """All that the lab of this name could leave on the machine, as lines, by kind."""
    seen = {
        name: frozenset(subprocess.run(look, capture_output=True, text=True, check=False).stdout.splitlines())
        for name, look in _LOOKS.items()
    }
    mounts = Path("/proc/self/mounts").read_text(encoding="utf-8").splitlines()
    seen["mounts"] = frozenset(mounts)
    inits = [records.living(records.read(str(path))) for path in root.glob("*/*/init.json") if path.parts[-3] != lab]
    seen["processes"] = frozenset(_our_processes({pid for pid in inits if pid is not None}))
    groups = (f"mesh-lab.{lab}.*", f"*/mesh-lab.{lab}.*")  # of version 2, of version 1
    seen["control groups"] = frozenset(str(path) for place in groups for path in Path("/sys/fs/cgroup").glob(place))
    seen["directories"] = frozenset([str(root / lab)] if (root / lab).exists() else [])
    return seen


def is_of_a_lab(line: str) -> bool:
    """Whether a line of `difference` is about something that only labs make; the rest may be anybody's."""
    return line.partition(":")[0] in _OF_LABS


def difference(before: Mapping[str, frozenset[str]], after: Mapping[str, frozenset[str]]) -> list[str]:
    """What is there now and was not, or was and is not: one line each."""
    return [
        f"{kind}: {sign} {line}"
        for kind in before
        for sign, lines in (("+", after[kind] - before[kind]), ("-", before[kind] - after[kind]))
        for line in sorted(lines)
    ]


def _our_processes(others: set[int]) -> list[str]:
    """Command lines of processes that belong to a lab, but not those below the first processes in `others`."""
    parents, commands = {}, {}
    for directory in Path("/proc").iterdir():
        if directory.name.isdigit():
            try:
                stat = (directory / "stat").read_text(errors="replace")
                command = (directory / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
            except OSError:
                continue
            parents[int(directory.name)] = int(stat.rpartition(")")[2].split()[1])
            commands[int(directory.name)] = command
    return [
        f"{pid} {command}"
        for pid, command in commands.items()
        if any(name in command for name in _OURS) and not others & _line(pid, parents)
    ]


def _line(pid: int, parents: Mapping[int, int]) -> set[int]:
    """A process and those that it descends from."""
    line = set()
    while pid in parents and pid not in line:
        line.add(pid)
        pid = parents[pid]
    return line
