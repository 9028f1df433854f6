"""What control groups have counted, in both of their versions."""

from __future__ import annotations

import os
from pathlib import Path

from mesh.executor.usage import Usage, read_usage


def made(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")


def test_version_2(tmp_path: Path) -> None:
    made(tmp_path, {
        "proc/7/cgroup": "0::/a/b", "g/a/b/cpu.stat": "usage_usec 1500000\nuser_usec 1", "g/a/b/memory.max": "max",
        "g/a/b/memory.current": "5000", "g/a/b/memory.stat": "anon 1\ninactive_file 2000", "g/a/b/pids.current": "3",
    })  # fmt: skip
    assert read_usage(7, tmp_path / "proc", tmp_path / "g") == Usage(1.5, 3000, 0, 3)


def test_version_1(tmp_path: Path) -> None:
    made(tmp_path, {
        "proc/7/cgroup": "3:memory:/m\n2:cpu,cpuacct:/c\n1:pids:/p\n0::/", "g/cpuacct/c/cpuacct.usage": "2000000000",
        "g/memory/m/memory.limit_in_bytes": "4096", "g/memory/m/memory.usage_in_bytes": "100",
        "g/memory/m/memory.stat": "total_inactive_file 200", "g/pids/p/pids.current": "1",
    })  # fmt: skip
    assert read_usage(7, tmp_path / "proc", tmp_path / "g") == Usage(2.0, 0, 4096, 1)


def test_who_is_gone_or_in_no_group_has_none(tmp_path: Path) -> None:
    assert read_usage(7, tmp_path, tmp_path) is None
    made(tmp_path, {"7/cgroup": "nonsense"})
    assert read_usage(7, tmp_path, tmp_path) is None
    read_usage(os.getpid())  # raises nothing, whatever this machine has
