import asyncio
import random
import shutil

import pytest

from control.quorum import seat
from control.quorum.backend import RaftBackend
from control.quorum.seat import Seat, enrol, found, next_epoch, recover
from control.store.backup import VERSION_JUMP, Backup, read_backup, restore
from control.store.disk import RealDisk
from control.store.errors import BackendFailed, Damaged, WrongCluster
from control.store.record import Row, SnapshotMeta
from control.store.sealing import PlainRing
from control.store.snapshots import write_snapshot
from control.store.state import State
from tests.control.conformance.seen import names, outcome, put
from tests.control.quorum.lab import SEGMENT_BYTES


async def restored(directory, count: int) -> None:
    """A store as it is made of a backup: rows, and no managers."""
    rows = (Row("k", str(i), i, b"") for i in range(1, count + 1))
    backup = Backup("c1", 2, State.of_rows(count, rows))
    await asyncio.to_thread(lambda: restore(backup, directory, segment_bytes=SEGMENT_BYTES))


async def test_a_restored_store_becomes_a_cluster_of_one_that_grows(lab):
    await restored(lab.path("a"), 30)
    a = await lab.start("a")
    assert a.version == 30 + VERSION_JUMP
    await a.leading()
    assert await outcome(a.commit(put("31"))) == "done"
    b = await lab.join("a", "b")
    await b.at(31 + VERSION_JUMP)
    assert b.rows == a.rows
    await lab.stop("b", "a")
    again = await lab.start("a", peers={"b": "127.0.0.1:9"})
    assert again.version == 31 + VERSION_JUMP
    assert [m.node_id for m in lab.backends["a"].members()] == ["a", "b"]


async def test_taking_over_that_is_interrupted_is_done_again(lab, monkeypatch):
    """The log has the configuration, and the seat is not written."""
    await restored(lab.path("a"), 3)
    with monkeypatch.context() as patch:
        patch.setattr(seat, "write_seat", broken)
        with pytest.raises(BackendFailed, match="cannot write"):
            await lab.start("a")
    lab.backends.clear()
    a = await lab.start("a")
    assert a.version == 3 + VERSION_JUMP
    assert lab.backends["a"].quorum().member_id == "a.1"


def broken(*_):
    raise OSError(5, "Input/output error")


async def test_a_restored_backup_becomes_a_cluster_of_one(lab, tmp_path):
    a = await lab.first()
    for i in range(3):
        await a.commit(put(f"{i}"))
    state = lab.backends["a"]._engine.pipeline.ledger
    write_snapshot(RealDisk(tmp_path), "c1", PlainRing(), SnapshotMeta(3, 2), state.freeze().chunks(), "backup")
    backup = read_backup(tmp_path / "backup")
    await lab.in_thread(restore, backup, lab.path("b"), segment_bytes=SEGMENT_BYTES)
    b = await lab.start("b")
    assert b.version == 3 + VERSION_JUMP
    assert b.rows.keys() == a.rows.keys()
    await b.leading()
    assert await outcome(b.commit(put("more"))) == "done"


async def test_a_directory_is_used_once(lab, tmp_path):
    await lab.first()
    await lab.stop()
    with pytest.raises(BackendFailed, match="already"):
        await found(lab.path("a"), "c1", "a", segment_bytes=SEGMENT_BYTES)
    with pytest.raises(BackendFailed, match="already"):
        await enrol(lab.path("a"), "c1", Seat("a.7", 0), segment_bytes=SEGMENT_BYTES)
    for node, what in (("b", "not of node b"), ("", "not of node")):
        backend = RaftBackend(lab.path("a"), "c1", node)
        with pytest.raises(WrongCluster, match=what):
            await backend.load()
    backend = RaftBackend(tmp_path / "nothing", "c1", "a")
    with pytest.raises(BackendFailed, match="holds no manager"):
        await backend.load()


async def test_a_damaged_seat_is_refused(lab):
    await lab.first()
    await lab.stop()
    (lab.path("a") / seat.SEAT_NAME).write_bytes(b"{")
    with pytest.raises(Damaged, match="damaged"):
        await RaftBackend(lab.path("a"), "c1", "a").load()


# --- recovery ---------------------------------------------------------------------------------------------------------


async def lost(lab, commits: int = 5):
    """Three managers, of which two are gone for good."""
    a, *_ = await lab.three()
    for i in range(commits):
        await a.commit(put(f"{i}"))
    await lab.stop("c", "b", "a")
    return a


async def test_a_cluster_that_lost_its_quorum_is_recovered_with_all_there_is(lab):
    before = await lost(lab)
    made = await lab.in_thread(recover, lab.path("a"), "a", random.Random(1), segment_bytes=SEGMENT_BYTES)
    assert (made.seat.member_id, made.version, made.lost) == ("a.4", 5, ("b", "c"))
    a = await lab.start("a")
    await a.leading()
    assert a.rows == before.rows
    assert a.version == 5 + VERSION_JUMP
    status = lab.backends["a"].quorum()
    assert (status.recoveries, [m.node_id for m in status.members]) == (1, ["a"])
    assert await outcome(a.commit(put("new"))) == "done"
    lab.path("b").rename(lab.path("old b"))
    b = await lab.join("a", "b")
    await b.at(a.version)
    assert b.rows == a.rows
    assert (lab.path("a").parent / "a.before-recovery").is_dir()


async def test_the_old_ones_are_not_heard_and_do_not_hear(lab):
    """The two that were believed dead come back: they are a majority of the old cluster, and stay one."""
    await lost(lab)
    await lab.in_thread(recover, lab.path("a"), "a", random.Random(1), segment_bytes=SEGMENT_BYTES)
    a = await lab.start("a")
    await a.leading()
    for node in ("b", "c"):
        await lab.start(node, peers=lab.addresses)
    leader = await lab.leader("b", "c")
    old = lab.seen[leader]
    assert await outcome(old.commit(put("old"))) == "done"
    assert await outcome(a.commit(put("new"))) == "done"
    lab.backends["a"].set_peers(lab.addresses)
    await lab.until(lambda: lab.backends["a"]._transport.counters.refused["other epoch"] > 0)
    assert "old" in names(old)
    assert "old" not in names(a)
    assert "new" not in names(old)


async def test_recovery_that_is_interrupted_goes_on(lab, monkeypatch):
    await lost(lab)
    path = lab.path("a")
    real = seat.os.rename

    def rename(old, new):
        if str(old).endswith(".recovered"):
            raise OSError(5, "Input/output error")
        real(old, new)

    with monkeypatch.context() as patch:
        patch.setattr(seat.os, "rename", rename)
        with pytest.raises(BackendFailed, match="cannot recover"):
            await lab.in_thread(recover, path, "a", random.Random(1), segment_bytes=SEGMENT_BYTES)
    assert not path.exists()
    made = await lab.in_thread(recover, path, "a", random.Random(1), segment_bytes=SEGMENT_BYTES)
    assert made.version == 5
    a = await lab.start("a")
    assert len(a.rows) == 5
    await lab.stop()
    with pytest.raises(BackendFailed, match="earlier recovery"):
        await lab.in_thread(recover, path, "a", random.Random(1), segment_bytes=SEGMENT_BYTES)


async def test_a_store_in_use_is_not_recovered(lab, monkeypatch):
    monkeypatch.setattr("control.store.disk.LOCK_WAIT_S", 0.1)
    await lab.first()
    with pytest.raises(BackendFailed, match="in use by another meshd"):
        await lab.in_thread(recover, lab.path("a"), "a", random.Random(1), segment_bytes=SEGMENT_BYTES)
    with pytest.raises(BackendFailed, match="does not exist"):
        await lab.in_thread(recover, lab.path("x"), "x", random.Random(1), segment_bytes=SEGMENT_BYTES)
    shutil.copytree(lab.path("a"), lab.path("copy"))
    with pytest.raises(WrongCluster, match="not the store of node"):
        await lab.in_thread(recover, lab.path("copy"), "b", random.Random(1), segment_bytes=SEGMENT_BYTES)


def test_no_two_recoveries_of_one_cluster_have_the_same_epoch():
    epochs = {next_epoch(0, random.Random(i)) for i in range(100)}
    assert len(epochs) == 100
    assert {seat.count_of(e) for e in epochs} == {1}
    assert seat.count_of(next_epoch(epochs.pop(), random.Random(1))) == 2
