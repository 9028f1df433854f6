"""Records are read whole or not at all, and mean one process of one boot."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from mesh.executor import namespaces, records


@pytest.mark.parametrize("durable", [False, True])
def test_what_is_written_is_read(tmp_path: Path, durable: bool) -> None:
    path = str(tmp_path / "r.json")
    for value in ({"a": 1}, {"b": "é"}):
        records.write(path, value, durable=durable)
        assert records.read(path) == value
    assert os.listdir(tmp_path) == ["r.json"]


@pytest.mark.parametrize("content", [None, b"", b'{"a": ', b"[1]", b"\xff\x00"])
def test_anything_else_is_nothing(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "r.json"
    if content is not None:
        path.write_bytes(content)
    assert records.read(str(path)) is None


def test_a_process_is_known_by_more_than_its_pid() -> None:
    me = records.identify(os.getpid())
    assert records.living(me) == os.getpid()
    for changed in ({"start": me["start"] + 1}, {"boot": "x"}, {"start": None}):
        assert records.living(me | changed) is None
    assert records.living(None) is None


def test_a_zombie_does_not_live() -> None:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    record = records.identify(child.pid)
    assert records.living(record) == child.pid
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # it has ended, and is there still
    assert Path(f"/proc/{child.pid}").exists()
    assert records.living(record) is None
    child.communicate()
    assert namespaces.start_time(child.pid) is None


def test_mount_points_are_read_with_their_odd_characters() -> None:
    points = namespaces.mount_points()
    assert points
    assert all(point.startswith("/") and "\\" not in point for point in points)
