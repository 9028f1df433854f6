"""Which files of which groups get which limits, on the layouts that machines have. Plain directories stand for them."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from control.model import Resources
from mesh.executor import cgroup

ALL = Resources(cpus=1.5, memory_bytes=1 << 20, pids=7)


def unified(root: Path, controllers: str) -> Path:
    """Version 2, with what the kernel makes in a new group."""
    group = root / "meshd/t1"
    group.mkdir(parents=True)
    (root / "cgroup.controllers").write_text(controllers)
    for name in ("cpu.max", "memory.max", "memory.swap.max", "pids.max"):
        if name.partition(".")[0] in controllers.split():
            (group / name).touch()
    return group


def test_version_2(tmp_path: Path) -> None:
    group = unified(tmp_path, "cpuset cpu io memory pids")
    assert cgroup.place("t1", ALL, tmp_path) == [f"{group}/cgroup.procs"]
    written = {path.name: path.read_text() for path in group.iterdir()}
    assert written == {
        "cpu.max": "150000 100000",
        "memory.max": "1048576",
        "memory.swap.max": "0",
        "pids.max": "7",
    }
    assert (tmp_path / "cgroup.subtree_control").read_text() == "+pids"
    assert (tmp_path / "meshd/cgroup.subtree_control").exists()


def test_version_1_has_a_group_per_controller(tmp_path: Path) -> None:
    for controller, files in {"cpu": ("cpu.cfs_period_us", "cpu.cfs_quota_us"), "pids": ("pids.max",)}.items():
        group = tmp_path / controller / "meshd/t1"
        group.mkdir(parents=True)
        for name in files:
            (group / name).touch()
    procs = [f"{tmp_path}/{controller}/meshd/t1/cgroup.procs" for controller in ("cpu", "pids")]
    assert cgroup.place("t1", Resources(cpus=0.001, pids=7), tmp_path) == procs
    assert (tmp_path / "cpu/meshd/t1/cpu.cfs_quota_us").read_text() == "1000"  # the least that the kernel takes
    assert (tmp_path / "pids/meshd/t1/pids.max").read_text() == "7"


@pytest.mark.parametrize("layout", ["none", "v2 without them", "v2 not delegated"])
def test_a_limit_without_a_controller_is_said_and_left_out(
    layout: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    if layout != "none":
        unified(tmp_path, "io" if layout == "v2 without them" else "cpu memory pids")
        for path in (tmp_path / "meshd/t1").iterdir():
            path.unlink()
    with caplog.at_level(logging.WARNING):
        assert cgroup.place("t1", ALL, tmp_path) == []
    assert [record.__dict__["controller"] for record in caplog.records] == ["memory", "cpu", "pids"]


def test_no_limit_needs_no_group(tmp_path: Path) -> None:
    assert cgroup.place("t1", Resources(), tmp_path) == []
    assert list(tmp_path.iterdir()) == []


def test_remove_takes_the_last_tasks_parent_with_it(tmp_path: Path) -> None:
    for name in ("t1", "t2"):
        (tmp_path / "pids/meshd" / name).mkdir(parents=True)
    cgroup.remove("t1", tmp_path)
    assert (tmp_path / "pids/meshd/t2").exists()
    cgroup.remove("t1", tmp_path)
    cgroup.remove("t2", tmp_path)
    assert list(tmp_path.iterdir()) == [tmp_path / "pids"]
    assert list((tmp_path / "pids").iterdir()) == []


def test_a_group_in_use_is_not_passed_over(tmp_path: Path) -> None:
    (tmp_path / "pids/meshd/t1/child").mkdir(parents=True)
    with pytest.raises(OSError, match="not empty"):
        cgroup.remove("t1", tmp_path)
