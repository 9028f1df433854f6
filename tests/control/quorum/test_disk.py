"""Disks that are full, hang, or fail."""

import asyncio
import errno
import threading

import pytest

from control.store.backend import Failed, Replaced
from control.store.errors import BackendFailed
from tests.control.conformance.seen import PATIENCE_S, names, outcome, put


async def test_a_write_without_space_waits_and_everything_else_is_refused_meanwhile(lab):
    """Of a manager alone. What waits is not lost, and goes on by itself."""
    a = await lab.first()
    await a.commit(put("a"))
    lab.disks["a"].code = errno.ENOSPC
    waiting = [a.commit(put(f"b{i}"), version=2 + i) for i in range(3)]
    await lab.until(lambda: lab.backends["a"]._engine.full)
    refused = a.commit(put("c"), version=5)
    assert await outcome(refused) == "Refused"
    assert "space" in str(refused.exception())
    assert "space" in lab.backends["a"].status().message
    assert not any(f.done() for f in waiting)
    lab.disks["a"].code = 0
    assert [await outcome(f) for f in waiting] == ["done"] * 3
    assert await outcome(a.commit(put("c"))) == "done"
    await lab.stop()
    again = await lab.start("a")
    assert names(again) == ["a", "b0", "b1", "b2", "c"]


async def test_a_leader_whose_disk_is_full_hands_over_and_catches_up_later(lab):
    a, *_ = await lab.three()
    await a.commit(put("a"))
    lab.disks["a"].code = errno.ENOSPC
    under_way = a.commit(put("x"))
    leader = await lab.leader("b", "c")
    await a.until(lambda: a.term is None)
    # The others had it: it is agreed on, whoever is told.
    assert await outcome(under_way) in ("done", "OutcomeUnknown")
    new = lab.seen[leader]
    assert await outcome(new.commit(put("y"))) == "done"
    lab.disks["a"].code = 0
    await a.at(new.version)
    assert a.rows == new.rows


async def test_while_there_is_little_space_nothing_is_created_but_all_can_be_removed(lab):
    a = await lab.first()
    await a.commit(put("a"))
    disk = lab.disks["a"]
    disk.free_bytes = lambda: 1
    await lab.until(lambda: lab.backends["a"]._engine.low)
    created = a.commit(put("b"))
    assert await outcome(created) == "Refused"
    assert "disk" in str(created.exception())
    assert await outcome(a.commit(put("a", b"changed", expected=1))) == "done"
    del disk.free_bytes
    await lab.until(lambda: not lab.backends["a"]._engine.low)
    assert await outcome(a.commit(put("b"))) == "done"


async def test_a_leader_with_little_space_hands_over(lab):
    await lab.three()
    lab.disks["a"].free_bytes = lambda: 1
    assert await lab.leader("b", "c")
    await lab.until(lambda: lab.seen["a"].term is None)


async def test_a_leader_whose_disk_hangs_is_replaced(lab):
    a, *_ = await lab.three()
    await a.commit(put("a"))
    goes_on = threading.Event()
    disk = lab.disks["a"]
    sync = disk.sync

    def hang(handle):
        goes_on.wait(PATIENCE_S)
        sync(handle)

    disk.sync = hang
    try:
        a.commit(put("x"))
        leader = await lab.leader("b", "c")
        assert await outcome(lab.seen[leader].commit(put("y"))) == "done"
    finally:
        goes_on.set()
    await a.at(lab.seen[leader].version)
    assert a.rows == lab.seen[leader].rows


async def test_a_failed_sync_is_the_end_and_the_others_go_on(lab):
    a, *_ = await lab.three()
    await a.commit(put("a"))

    def fail(handle):
        raise OSError(errno.EIO, "Input/output error")

    lab.disks["a"].sync = fail
    # Agreed on by the others, perhaps before the disk has said that it failed.
    assert await outcome(a.commit(put("x"))) in ("BackendFailed", "OutcomeUnknown", "done")
    await a.until(lambda: a.failed is not None)
    assert isinstance(a.log[-1], Failed)
    assert isinstance(a.failed, BackendFailed)
    assert await outcome(a.commit(put("z"))) == "BackendFailed"
    with pytest.raises(BackendFailed):
        await lab.backends["a"].barrier()
    leader = await lab.leader("b", "c")
    assert await outcome(lab.seen[leader].commit(put("y"))) == "done"


# --- snapshots --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 30_000], ids=["small", "large"])
async def test_one_that_is_too_far_behind_gets_a_snapshot_while_others_write(lab, size):
    options = {"log_limit_bytes": 2_000 + 20 * size, "keep_entries": 5}
    a, _, c = await lab.three(**options)
    await a.commit(put("a"))
    await c.at(1)
    await lab.stop("c")
    for i in range(200):
        await a.commit(put(f"{i}", bytes(size)))
    assert lab.backends["a"].quorum().first > 100
    c = await lab.start("c", **options)
    for i in range(200, 260):
        await a.commit(put(f"{i}", bytes(size)))
    await c.at(a.version)
    assert any(isinstance(d, Replaced) for d in c.log)
    assert c.rows == a.rows
    assert lab.backends["c"].status().digest == lab.backends["a"].status().digest
    # One more may have been sent that was not needed any more: it goes as well.
    await c.until(lambda: not list((lab.path("c") / "incoming").glob("*.snapshot")))
    await lab.stop("c")
    again = await lab.start("c", **options)
    await again.at(a.version)
    assert again.rows == a.rows


async def test_no_space_for_a_snapshot_of_another_is_waited_for(lab):
    options = {"log_limit_bytes": 2_000, "keep_entries": 5}
    a, *_ = await lab.three(**options)
    await lab.stop("c")
    for i in range(100):
        await a.commit(put(f"{i}", bytes(100)))
    c = await lab.start("c", **options)
    lab.disks["c"].code = errno.ENOSPC
    await asyncio.sleep(0.5)
    lab.disks["c"].code = 0
    await c.at(100)
    assert c.rows == a.rows


async def test_states_that_differ_are_noticed(lab):
    a, b, _ = await lab.three()
    lab.backends["b"]._engine.pipeline.ledger.total += 7
    for i in range(1, 258):
        await a.commit(put(f"{i}"))
    await b.at(257)
    await lab.until(lambda: "is not that of the leader" in lab.backends["b"].status().message)
    assert "not that" not in lab.backends["c"].status().message
