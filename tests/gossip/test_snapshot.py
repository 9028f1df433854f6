"""The restart file: what it says comes back, whatever happened to it."""

from __future__ import annotations

from pathlib import Path

import pytest

from gossip.delegate import Address
from gossip.snapshot import COMPACT_MIN_BYTES, SnapshotFile, parse

# Written by a real agent, in this order of words.
WRITTEN = """alive: n1 127.0.0.1:7946
alive: two words [fd00::1]:7946
alive: n3 127.0.0.1:7948
clock: 4
event-clock: 17
query-clock: 2
not-alive: n3
coordinate: {}
# a comment
junk
alive: torn 127.0.0.1:79"""


def test_a_real_agents_file() -> None:
    state = parse(WRITTEN, rejoin_after_leave=False)
    assert state.alive == {"n1": Address("127.0.0.1", 7946), "two words": Address("fd00::1", 7946)}
    assert (state.clock, state.event_clock, state.query_clock) == (4, 17, 2)


@pytest.mark.parametrize(("rejoin", "left"), [(False, 0), (True, 1)])
def test_leaving_forgets_unless_told_otherwise(rejoin: bool, left: int) -> None:
    state = parse("alive: n1 127.0.0.1:7946\nclock: 3\nleave\n", rejoin_after_leave=rejoin)
    assert len(state.alive) == left


@pytest.mark.parametrize(
    "line",
    ["alive: n1", "alive: n1 host:1", "alive: n1 1.2.3.4:0", "clock: x", "clock: -1", "clock: " + "9" * 30, "\0"],
)
def test_damaged_lines_are_skipped(line: str) -> None:
    state = parse(f"{line}\nalive: ok 127.0.0.1:1\n", rejoin_after_leave=False)
    assert set(state.alive) == {"ok"}
    assert state.clock == 0


def test_what_was_recorded_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "snapshot"
    file = SnapshotFile(path, rejoin_after_leave=False)
    file.record(["alive: n1 127.0.0.1:7946", "alive: n2 127.0.0.1:7947", "not-alive: n1"])
    file.clocks(5, 6, 7)
    file.clocks(4, 6, 8)  # backwards is no news
    # no close: the process was killed
    again = SnapshotFile(path, rejoin_after_leave=False)
    assert again.previous == {"n2": Address("127.0.0.1", 7947)}
    assert (again.state.clock, again.state.event_clock, again.state.query_clock) == (5, 6, 8)
    file.close()
    again.close()


def test_nothing_is_taken_after_leaving(tmp_path: Path) -> None:
    path = tmp_path / "snapshot"
    file = SnapshotFile(path, rejoin_after_leave=False)
    file.record(["alive: n1 127.0.0.1:7946"])
    file.leave()
    file.record(["alive: n2 127.0.0.1:7946"])
    file.close()
    assert SnapshotFile(path, rejoin_after_leave=False).previous == {}


def test_the_file_does_not_grow_without_bound(tmp_path: Path) -> None:
    path = tmp_path / "snapshot"
    file = SnapshotFile(path, rejoin_after_leave=False)
    for turn in range(10_000):
        file.record([f"alive: n{turn % 10} 127.0.0.1:7946"])
        file.clocks(turn, turn, turn)
        assert file.error is None
    assert path.stat().st_size < COMPACT_MIN_BYTES + 200
    file.close()
    assert len(SnapshotFile(path, rejoin_after_leave=False).previous) == 10


def test_a_full_disk_is_noted_and_does_not_stop_the_node(tmp_path: Path) -> None:
    path = tmp_path / "snapshot"
    file = SnapshotFile(path, rejoin_after_leave=False)
    file._file.close()  # type: ignore[union-attr]
    file._file = open("/dev/full", "w")  # noqa: SIM115  # closed by the code under test
    file.record(["alive: n1 127.0.0.1:7946"])
    assert file.error is not None
    file.record(["alive: n2 127.0.0.1:7946"])
    assert file.error is None
    assert set(SnapshotFile(path, rejoin_after_leave=False).previous) == {"n1", "n2"}
    file.close()


def test_names_with_line_ends_do_not_get_in(tmp_path: Path) -> None:
    path = tmp_path / "snapshot"
    file = SnapshotFile(path, rejoin_after_leave=False)
    file.record(["alive: evil\nleave 127.0.0.1:1", "alive: ok 127.0.0.1:1"])
    file.close()
    assert set(SnapshotFile(path, rejoin_after_leave=False).previous) == {"ok"}
