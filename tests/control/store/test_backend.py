"""The contract of `control.store.backend`, the same tests for every backend.

The embedded Raft and etcd join this list when they come.
"""

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from control.store.backend import Backend, Committed, Guard, Leading, Proposal
from control.store.errors import NotLeader, Refused, StoreClosed
from control.store.fake import FakeBackend
from control.store.logfile import LogFile
from control.store.record import Row, RowChange

Reopen = Callable[[Backend], Backend]


@pytest.fixture(params=["fake", "logfile", "logfile, compacting"])
def kind(request):
    return request.param


@pytest.fixture
def reopen(kind, tmp_path) -> Callable[[Backend | None], Backend]:
    """A backend on the same state as the one before, which is closed; None: the first."""

    def make(before: Backend | None) -> Backend:
        if kind == "fake":
            return before or FakeBackend()
        return LogFile(
            tmp_path / "store",
            "c1",
            "n1",
            segment_bytes=1 << 16,
            log_limit_bytes=600 if "compacting" in kind else 1 << 20,
        )

    return make


class Seen:
    """What a backend delivered, and the rows that follow from it."""

    def __init__(self, image) -> None:
        self.version = image.version
        self.rows = {(r.kind, r.id): r for r in image.rows}
        self.log = []
        self.leading = asyncio.Event()

    def __call__(self, delivery) -> None:
        self.log.append(delivery)
        if isinstance(delivery, Leading):
            self.leading.set()
        if isinstance(delivery, Committed):
            assert delivery.version == self.version + 1
            self.version = delivery.version
            for c in delivery.changes:
                before = self.rows.pop((c.kind, c.id), None)
                assert (before.version if before else 0) == c.expected
                if c.blob is not None:
                    self.rows[c.kind, c.id] = Row(c.kind, c.id, delivery.version, c.blob)

    async def term(self) -> int:
        await self.leading.wait()
        return next(d.term for d in reversed(self.log) if isinstance(d, Leading))


async def opened(backend: Backend) -> tuple[Seen, int]:
    image = await backend.load()
    seen = Seen(image)
    backend.watch(image.version, seen)
    assert seen.log == [], "deliver was called from within watch"
    return seen, await seen.term()


def put(id_, blob=b"b", expected=0):
    return RowChange("k", id_, expected, blob)


async def outcome(future: Awaitable[None]) -> str:
    try:
        await future
    except (Refused, NotLeader, StoreClosed) as error:
        return type(error).__name__
    return "done"


async def test_a_commit_is_delivered_before_it_resolves_and_found_after_a_restart(reopen):
    backend = reopen(None)
    seen, term = await opened(backend)
    assert (seen.version, seen.rows) == (0, {})
    future = backend.commit(Proposal(1, (put("a"), put("b"))), Guard(term))
    assert not [d for d in seen.log if isinstance(d, Committed)], "deliver was called from within commit"
    await future
    assert seen.version == 1
    assert await backend.barrier() == 1
    await backend.commit(Proposal(2, (put("a", b"c", expected=1), put("b", None, expected=1))), Guard(term))
    assert seen.rows == {("k", "a"): Row("k", "a", 2, b"c")}
    await backend.close()
    again, term_again = await opened(backend := reopen(backend))
    assert (again.version, again.rows) == (2, seen.rows)
    assert term_again >= term
    await backend.close()


async def test_commits_are_pipelined_in_the_order_of_the_calls(reopen):
    backend = reopen(None)
    seen, term = await opened(backend)
    order = []
    futures = [backend.commit(Proposal(i, (put(f"{i}", bytes(50)),)), Guard(term)) for i in range(1, 101)]
    for i, future in enumerate(futures, start=1):
        future.add_done_callback(lambda _, i=i: order.append((i, seen.version >= i)))
    for future in futures:
        await future
    await asyncio.sleep(0)
    assert order == [(i, True) for i in range(1, 101)]
    assert [d.version for d in seen.log if isinstance(d, Committed)] == list(range(1, 101))
    await backend.close()
    again, _ = await opened(backend := reopen(backend))
    assert again.rows == seen.rows
    await backend.close()


async def test_a_commit_that_does_not_follow_the_last_one_is_refused_with_all_on_top(reopen):
    backend = reopen(None)
    seen, term = await opened(backend)
    futures = [
        backend.commit(Proposal(1, (put("a"),)), Guard(term)),
        backend.commit(Proposal(3, (put("b"),)), Guard(term)),  # 2 is missing
        backend.commit(Proposal(4, (put("c"),)), Guard(term)),
        backend.commit(Proposal(1, (put("d"),)), Guard(term)),
        backend.commit(Proposal(2, (put("e"),)), Guard(term)),
    ]
    assert [await outcome(f) for f in futures] == ["done", "Refused", "Refused", "Refused", "done"]
    assert sorted(i for _, i in seen.rows) == ["a", "e"]
    await backend.close()


@pytest.mark.parametrize(
    "change",
    [put("a"), put("a", expected=2), put("x", expected=1), put("a", None, expected=2), put("x", None, expected=1)],
)
async def test_expected_versions_are_checked(reopen, change):
    backend = reopen(None)
    seen, term = await opened(backend)
    await backend.commit(Proposal(1, (put("a"),)), Guard(term))
    assert await outcome(backend.commit(Proposal(2, (put("z"), change)), Guard(term))) == "Refused"
    assert sorted(i for _, i in seen.rows) == ["a"]
    assert await outcome(backend.commit(Proposal(2, (put("a", expected=1),)), Guard(term))) == "done"
    await backend.close()


async def test_expected_versions_are_those_of_the_pipeline(reopen):
    backend = reopen(None)
    seen, term = await opened(backend)
    futures = [
        backend.commit(Proposal(1, (put("a", b"1"),)), Guard(term)),
        backend.commit(Proposal(2, (put("a", b"2", expected=1),)), Guard(term)),
        backend.commit(Proposal(3, (put("a", None, expected=2),)), Guard(term)),
        backend.commit(Proposal(4, (put("a", b"4"),)), Guard(term)),
    ]
    assert [await outcome(f) for f in futures] == ["done"] * 4
    assert seen.rows == {("k", "a"): Row("k", "a", 4, b"4")}
    await backend.close()


async def test_the_wrong_term_is_fenced(reopen):
    backend = reopen(None)
    seen, term = await opened(backend)
    for wrong in (term - 1, term + 1):
        assert await outcome(backend.commit(Proposal(1, (put("a"),)), Guard(wrong))) == "NotLeader"
    assert seen.rows == {}
    await backend.close()


async def test_after_close_nothing_is_taken_and_closing_again_is_fine(reopen):
    backend = reopen(None)
    _, term = await opened(backend)
    under_way = [backend.commit(Proposal(i, (put(f"{i}"),)), Guard(term)) for i in range(1, 20)]
    await asyncio.sleep(0)
    closing = backend.close()
    outcomes = [await outcome(f) for f in under_way]
    await closing
    done = outcomes.count("done")
    assert outcomes == ["done"] * done + ["StoreClosed"] * (19 - done)
    await backend.close()
    assert backend.status().role == "closed"
    again, _ = await opened(backend := reopen(backend))
    assert again.version == done
    await backend.close()


async def test_members_and_status(reopen):
    backend = reopen(None)
    _, term = await opened(backend)
    assert [(m.voter, m.leader) for m in backend.members()] == [(True, True)]
    await backend.commit(Proposal(1, (put("a"),)), Guard(term))
    status = backend.status()
    assert (status.role, status.term, status.version) == ("leader", term, 1)
    assert status.size_bytes > 0
    await backend.close()
