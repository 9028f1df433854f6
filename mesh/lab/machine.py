"""What of this machine a lab could leave behind: looked at before and after, and compared."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from pathlib import Path

from mesh.lab.lab import ROOT

_LOOKS: Mapping[str, tuple[str, ...]] = {
    "links": ("ip", "-brief", "link"),
    "addresses": ("ip", "-brief", "address"),
    "routes": ("ip", "-4", "route", "show", "table", "all"),
    "rules": ("ip", "-4", "rule"),
    "named namespaces": ("ip", "netns", "list"),
    "nftables": ("nft", "--stateless", "list", "ruleset"),
}
_GROUPS = ("meshd", "*/meshd", "mesh-lab.*", "*/mesh-lab.*")


def snapshot() -> dict[str, frozenset[str]]:
    """All that a lab could leave on the machine, as lines, by kind."""
    seen = {
        name: frozenset(subprocess.run(look, capture_output=True, text=True, check=False).stdout.splitlines())
        for name, look in _LOOKS.items()
    }
    mounts = Path("/proc/self/mounts").read_text(encoding="utf-8").splitlines()
    seen["mounts"] = frozenset(mounts)
    seen["processes"] = frozenset(_our_processes())
    seen["control groups"] = frozenset(str(path) for place in _GROUPS for path in Path("/sys/fs/cgroup").glob(place))
    seen["directories"] = frozenset(str(path) for path in (ROOT, *ROOT.glob("*")) if path.exists())
    return seen


def difference(before: Mapping[str, frozenset[str]], after: Mapping[str, frozenset[str]]) -> list[str]:
    """What is there now and was not, or was and is not: one line each."""
    return [
        f"{kind}: {sign} {line}"
        for kind in before
        for sign, lines in (("+", after[kind] - before[kind]), ("-", before[kind] - after[kind]))
        for line in sorted(lines)
    ]


def _our_processes() -> list[str]:
    """Command lines of processes that belong to a lab."""
    ours = ("mesh/lab/init.py", "mesh/lab/whoami", "mesh.lab.whoami", "bin/meshd", "mesh/executor/shim.py")
    found = []
    for directory in Path("/proc").iterdir():
        if directory.name.isdigit():
            try:
                command = (directory / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except OSError:
                continue
            if any(name in command for name in ours):
                found.append(f"{directory.name} {command.strip()}")
    return found
