"""What `control.store.backend` promises of one manager, one test for each promise, the same for every backend."""

import asyncio
import os
import signal
import sys
from itertools import pairwise

import pytest

from control.store.backend import Committed, Failed
from control.store.errors import BackendFailed
from control.store.record import Row
from control.store.rows import MAX_BYTES, MAX_CHANGES
from tests.control.conformance.seen import PATIENCE_S, delete, names, opened, outcome, put


async def led(world):
    seen = await opened(await world.open())
    await seen.leading()
    return seen


# --- opening ----------------------------------------------------------------------------------------------------------


async def test_an_empty_store_has_version_0(world):
    seen = await opened(await world.open())
    assert (seen.version, seen.rows) == (0, {})
    await seen.backend.close()


async def test_nothing_is_delivered_within_watch_or_commit(world):
    """`Seen` checks it."""
    seen = await led(world)
    future = seen.commit(put("a"))
    assert not future.done() or future.exception() is None
    assert not [d for d in seen.log if isinstance(d, Committed)]
    await future
    await seen.backend.close()


async def test_a_commit_is_found_after_a_restart(world):
    seen = await led(world)
    await seen.commit(put("a", b"1"), put("b", b"2"))
    await seen.commit(put("a", b"3", expected=1), delete("b", expected=1))
    await seen.backend.close()
    again = await led(world)
    assert again.version == 2
    assert again.rows == seen.rows == {("k", "a"): Row("k", "a", 2, b"3")}
    await again.backend.close()


async def test_numbers_go_on_after_a_restart(world):
    for start in (0, 3, 6):
        seen = await led(world)
        assert seen.version == start
        for i in range(1, 4):
            assert await outcome(seen.commit(put(f"{start + i}"))) == "done"
        await seen.backend.close()


async def test_terms_only_grow(world):
    terms = []
    for i in range(3):
        seen = await led(world)
        terms.append(seen.term)
        await seen.commit(put(f"a{i}"))
        await seen.backend.close()
    assert all(a < b for a, b in pairwise(terms))


async def test_many_rows_are_loaded_whole(world):
    seen = await led(world)
    futures = [
        seen.commit(*(put(f"{i}-{j}", b"%d" % j, kind=f"kind{j % 3}") for j in range(100)), version=i)
        for i in range(1, 11)
    ]
    assert {await outcome(f) for f in futures} == {"done"}
    await seen.backend.close()
    again = await led(world)
    assert len(again.rows) == 1000
    assert again.rows == seen.rows
    await again.backend.close()


@pytest.mark.parametrize("blob", [b"", b"\0", bytes(range(256)), b"\xc0" * 70_000], ids=["empty", "0", "all", "long"])
async def test_blobs_are_kept_as_they_are(world, blob):
    seen = await led(world)
    await seen.commit(put("a", blob))
    assert seen.rows["k", "a"].blob == blob
    await seen.backend.close()
    again = await opened(await world.open())
    assert again.rows["k", "a"].blob == blob
    await again.backend.close()


async def test_before_leading_nothing_can_be_written(world):
    seen = await opened(await world.open())
    assert seen.term is None
    assert await outcome(seen.commit(put("a"))) == "NotLeader"
    await seen.leading()
    assert (seen.version, seen.rows) == (0, {})
    await seen.backend.close()


# --- commits ----------------------------------------------------------------------------------------------------------


async def test_a_commit_is_delivered_before_it_resolves(world):
    seen = await led(world)
    future = seen.commit(put("a"))
    version_then = []
    future.add_done_callback(lambda _: version_then.append(seen.version))
    await future
    await asyncio.sleep(0)
    assert version_then == [1]
    await seen.backend.close()


async def test_commits_are_pipelined_in_the_order_of_the_calls(world):
    seen = await led(world)
    order = []
    futures = [seen.commit(put(f"{i}", bytes(50)), version=i) for i in range(1, 101)]
    for i, future in enumerate(futures, start=1):
        future.add_done_callback(lambda _, i=i: order.append((i, seen.version >= i)))
    for future in futures:
        await future
    await asyncio.sleep(0)
    assert order == [(i, True) for i in range(1, 101)]
    assert [d.version for d in seen.log if isinstance(d, Committed)] == list(range(1, 101))
    await seen.backend.close()
    again = await opened(await world.open())
    assert again.rows == seen.rows
    await again.backend.close()


async def test_every_number_is_delivered_once_with_what_was_proposed(world):
    seen = await led(world)
    proposals = [(put(f"{i}", b"x" * i), put("same", b"%d" % i, expected=i - 1)) for i in range(1, 31)]
    futures = [seen.commit(*changes, version=i) for i, changes in enumerate(proposals, start=1)]
    assert {await outcome(f) for f in futures} == {"done"}
    assert [(d.version, d.changes) for d in seen.log if isinstance(d, Committed)] == list(enumerate(proposals, start=1))
    await seen.backend.close()


async def test_a_commit_that_does_not_follow_the_last_one_is_refused_with_all_on_top(world):
    seen = await led(world)
    futures = [
        seen.commit(put("a"), version=1),
        seen.commit(put("b"), version=3),  # 2 is missing
        seen.commit(put("c"), version=4),
        seen.commit(put("d"), version=1),
        seen.commit(put("e"), version=2),
    ]
    assert [await outcome(f) for f in futures] == ["done", "Refused", "Refused", "Refused", "done"]
    assert names(seen) == ["a", "e"]
    await seen.backend.close()


@pytest.mark.parametrize(
    "change",
    [put("a"), put("a", expected=2), put("x", expected=1), delete("a", expected=2), delete("x", expected=1)],
    ids=["there", "later", "not there", "delete later", "delete not there"],
)
async def test_a_commit_with_a_wrong_version_is_refused_whole(world, change):
    seen = await led(world)
    await seen.commit(put("a"))
    assert await outcome(seen.commit(put("z"), change)) == "Refused"
    assert names(seen) == ["a"]
    assert await outcome(seen.commit(put("a", expected=1))) == "done"
    await seen.backend.close()


async def test_expected_versions_are_those_of_the_pipeline(world):
    seen = await led(world)
    futures = [
        seen.commit(put("a", b"1"), version=1),
        seen.commit(put("a", b"2", expected=1), version=2),
        seen.commit(delete("a", expected=2), version=3),
        seen.commit(put("a", b"4"), version=4),
    ]
    assert [await outcome(f) for f in futures] == ["done"] * 4
    assert seen.rows == {("k", "a"): Row("k", "a", 4, b"4")}
    await seen.backend.close()
    again = await opened(await world.open())
    assert again.rows == seen.rows
    await again.backend.close()


async def test_the_wrong_term_is_fenced(world):
    seen = await led(world)
    for wrong in (seen.term - 1, seen.term + 1, 0):
        assert await outcome(seen.commit(put("a"), term=wrong)) == "NotLeader"
    assert seen.rows == {}
    assert await outcome(seen.commit(put("a"))) == "done"
    await seen.backend.close()


async def test_the_largest_commits_are_taken(world):
    """As many changes and bytes as the store may put into one, in one object and in many; written over, and deleted."""
    seen = await led(world)
    each = MAX_BYTES // MAX_CHANGES
    many = [f"many{i}" for i in range(MAX_CHANGES)]
    assert await outcome(seen.commit(*(put(n, os.urandom(each)) for n in many))) == "done"
    assert await outcome(seen.commit(put("one", os.urandom(MAX_BYTES)))) == "done"
    assert await outcome(seen.commit(put("one", os.urandom(MAX_BYTES), expected=2))) == "done"
    assert await outcome(seen.commit(*(put(n, os.urandom(each), expected=1) for n in many))) == "done"
    await seen.backend.close()
    again = await led(world)
    assert (again.version, again.rows) == (4, seen.rows)
    assert await outcome(again.commit(*(delete(n, expected=4) for n in many))) == "done"
    assert await outcome(again.commit(delete("one", expected=3))) == "done"
    await again.backend.close()
    empty = await opened(await world.open())
    assert (empty.version, empty.rows) == (6, {})
    await empty.backend.close()


async def test_a_full_pipeline_of_large_commits_is_taken(world):
    seen = await led(world)
    futures = [
        seen.commit(put("hot", os.urandom(100_000), expected=i - 1), put(f"{i}", os.urandom(300_000)), version=i)
        for i in range(1, 21)
    ]
    assert [await outcome(f) for f in futures] == ["done"] * 20
    await seen.backend.close()
    again = await opened(await world.open())
    assert (again.version, again.rows) == (20, seen.rows)
    await again.backend.close()


# --- three outcomes ---------------------------------------------------------------------------------------------------


@pytest.mark.needs("refuse")
async def test_a_refused_commit_takes_those_on_top_with_it_and_never_happens(world):
    seen = await led(world)
    await seen.commit(put("a"))
    world.refuse(0)
    futures = [seen.commit(put(f"b{i}"), version=2 + i) for i in range(5)]
    assert [await outcome(f) for f in futures] == ["Refused"] * 5
    world.accept(0)
    assert (seen.version, names(seen)) == (1, ["a"])
    async with asyncio.timeout(PATIENCE_S):  # by itself, but perhaps not at once
        while await outcome(seen.commit(put("c"))) != "done":
            await asyncio.sleep(0.05)
    await seen.backend.close()
    again = await opened(await world.open())
    assert (again.version, names(again)) == (2, ["a", "c"])
    await again.backend.close()


@pytest.mark.needs("break")
async def test_a_failure_is_the_last_delivery_and_fails_all_that_is_under_way(world):
    seen = await led(world)
    await seen.commit(put("a"))
    world.ruin(0)
    futures = [seen.commit(put(f"b{i}"), version=2 + i) for i in range(5)]
    outcomes = [await outcome(f) for f in futures]
    assert set(outcomes) <= {"BackendFailed"}
    await seen.until(lambda: seen.failed is not None)
    assert isinstance(seen.log[-1], Failed)
    assert isinstance(seen.failed, BackendFailed)
    assert await outcome(seen.commit(put("c"))) == "BackendFailed"
    assert seen.backend.status().role == "failed"
    await seen.backend.close()


async def test_after_close_nothing_is_taken_and_closing_again_is_fine(world):
    seen = await led(world)
    under_way = [seen.commit(put(f"{i}"), version=i) for i in range(1, 20)]
    await asyncio.sleep(0)
    closing = seen.backend.close()
    outcomes = [await outcome(f) for f in under_way]
    await closing
    done = outcomes.count("done")
    assert outcomes == ["done"] * done + ["StoreClosed"] * (19 - done)
    await seen.backend.close()
    assert seen.backend.status().role == "closed"
    again = await opened(await world.open())
    # What failed with StoreClosed may be found, but only whole and in order.
    assert again.version >= done
    assert names(again) == sorted(f"{i}" for i in range(1, again.version + 1))
    await again.backend.close()


async def test_a_backend_that_was_never_opened_can_be_closed(world):
    backend = await world.open()
    await backend.close()
    await backend.close()
    seen = await led(world)
    await seen.backend.close()


async def test_one_that_was_only_loaded_can_be_closed(world):
    backend = await world.open()
    await backend.load()
    await backend.close()
    seen = await led(world)
    await seen.backend.close()


# --- reads ------------------------------------------------------------------------------------------------------------


async def test_a_barrier_is_not_below_what_was_acknowledged(world):
    seen = await led(world)
    assert await seen.backend.barrier() == 0
    for i in range(1, 6):
        await seen.commit(put(f"{i}"))
        assert await seen.backend.barrier() >= i
    await seen.backend.close()


async def test_members_and_status(world):
    seen = await led(world)
    [leader] = [m for m in seen.backend.members() if m.leader]
    assert leader.voter
    await seen.commit(put("a"))
    status = seen.backend.status()
    assert (status.role, status.term, status.version) == ("leader", seen.term, 1)
    assert status.leader == leader.node_id
    assert status.size_bytes > 0
    await seen.backend.close()


# --- crashes ----------------------------------------------------------------------------------------------------------


@pytest.mark.needs("kill")
@pytest.mark.parametrize("acknowledged", [1, 40, 400])
async def test_what_was_acknowledged_survives_kill_9_exactly_once(world, acknowledged):
    """A process that commits as fast as it can is killed; twice, the second time on top of what the first left."""
    last = 0
    terms = []
    for _ in range(2):
        term, last = await run_and_kill(world, last + acknowledged)
        terms.append(term)
        seen = await led(world)
        assert seen.version >= last
        assert seen.term > term
        # Exactly a prefix: every commit up to the version, each whole and once, and nothing else.
        assert names(seen) == sorted(["a", *(f"v{i}" for i in range(1, seen.version + 1))])
        assert {r.id: r.version for r in seen.rows.values()} == {
            "a": seen.version,
            **{f"v{i}": i for i in range(1, seen.version + 1)},
        }
        assert seen.rows["k", "a"].blob == b"%d" % seen.version
        last = seen.version
        await seen.backend.close()
    assert terms[0] < terms[1]


async def run_and_kill(world, until: int) -> tuple[int, int]:
    """Its term, and the last version that it was told of."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "tests.control.conformance.child",
        *world.child(0),
        stdout=asyncio.subprocess.PIPE,
    )
    term = version = 0
    try:
        async with asyncio.timeout(60):
            while version < until:
                word, number = (await process.stdout.readline()).split()
                if word == b"leading":
                    term = int(number)
                else:
                    version = int(number)
        process.send_signal(signal.SIGKILL)
        for line in (await process.stdout.read()).splitlines():
            word, _, number = line.partition(b" ")
            version = max(version, int(number or 0)) if word == b"version" else version
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()
    return term, version
