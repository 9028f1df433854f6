"""The shared history and its readers."""

import asyncio
import gc

import pytest

from control.model import Network, NetworkSpec
from control.store import watch
from control.store.errors import BackendFailed
from control.store.tables import Snapshot, event
from control.store.watch import Commit, History, Resync


class Source:
    """A view and its history, advanced by hand."""

    def __init__(self, version: int = 0) -> None:
        self.view = Snapshot.of([], version)
        self.history = History(lambda: self.view)

    def commit(self, count: int = 1) -> Commit:
        version = self.view.version + 1
        events = tuple(
            event(None, Network(id=f"{version}.{i}", spec=NetworkSpec(name=f"{version}.{i}"))) for i in range(count)
        )
        self.view = self.view.apply(version, events)
        commit = Commit(version, events)
        self.history.append(commit)
        return commit


async def rest(watcher) -> list:
    found = []
    while watcher.pending():
        found.append(await anext(watcher))
    return found


async def test_from_now_on():
    source = Source()
    source.commit()
    watcher = source.history.watch(None)
    assert not watcher.pending()
    commits = [source.commit(), source.commit()]
    assert await rest(watcher) == commits


@pytest.mark.parametrize("start", [0, 7])
async def test_from_any_version_that_is_kept(start):
    source = Source(start)
    commits = [source.commit() for _ in range(5)]
    for i in range(6):
        assert await rest(source.history.watch(start + i)) == commits[i:]
    for unknown in (start - 1, start + 6):
        assert await rest(source.history.watch(unknown)) == [Resync(start + 5, source.view)]


async def test_who_falls_behind_starts_over_and_misses_nothing_after(monkeypatch):
    monkeypatch.setattr(watch, "HISTORY_COMMITS", 3)
    source = Source()
    slow, fast = source.history.watch(None), source.history.watch(None)
    for _ in range(3):
        commit = source.commit()
        assert await rest(fast) == [commit]
    fourth = source.commit()
    assert await anext(slow) == Resync(4, source.view)
    fifth = source.commit()
    assert await rest(slow) == [fifth]
    assert await rest(fast) == [fourth, fifth]
    assert await rest(source.history.watch(2)) == list(source.history._commits)
    assert await rest(source.history.watch(1)) == [Resync(5, source.view)]


async def test_the_history_is_bounded_by_events_too(monkeypatch):
    monkeypatch.setattr(watch, "HISTORY_EVENTS", 10)
    source = Source()
    watcher = source.history.watch(None)
    commits = [source.commit(4), source.commit(4)]
    assert await rest(watcher) == commits
    source.commit(4)
    assert len(source.history._commits) == 2
    big = source.commit(50)  # one is always kept
    assert list(source.history._commits) == [big]
    assert await rest(watcher) == [Resync(4, source.view)]


async def test_a_jump_resyncs_everybody():
    source = Source()
    up_to_date, behind = source.history.watch(None), source.history.watch(None)
    source.commit()
    await rest(up_to_date)
    source.view = Snapshot.of([], 40)
    source.history.reset()
    for watcher in (up_to_date, behind, source.history.watch(1)):
        assert await rest(watcher) == [Resync(40, source.view)]
    commit = source.commit()
    assert await rest(up_to_date) == [commit]
    assert await rest(source.history.watch(40)) == [commit]


async def test_waiting_readers_are_woken():
    source = Source()
    found = []

    async def read():
        async for item in source.history.watch(None):
            found.append(item.version)

    async with asyncio.TaskGroup() as group:
        for _ in range(2):
            group.create_task(read())
        await asyncio.sleep(0)
        source.commit()
        source.commit()
        await asyncio.sleep(0)
        source.commit()
        source.history.end(None)
    assert sorted(found) == [1, 1, 2, 2, 3, 3]


async def test_the_end_comes_after_the_rest():
    source = Source()
    watcher = source.history.watch(None)
    source.commit()
    source.history.end(BackendFailed("the disk failed"))
    assert (await anext(watcher)).version == 1
    with pytest.raises(BackendFailed, match="the disk failed"):
        await anext(watcher)
    with pytest.raises(BackendFailed):
        await anext(source.history.watch(None))


async def test_close_ends_the_reader():
    source = Source()
    watcher = source.history.watch(None)

    async def read():
        return [item async for item in watcher]

    async with asyncio.TaskGroup() as group:
        task = group.create_task(read())
        await asyncio.sleep(0)
        watcher.close()
    assert task.result() == []


async def test_a_cancelled_reader_loses_nothing():
    source = Source()
    watcher = source.history.watch(None)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0):
            await anext(watcher)
    commit = source.commit()
    assert await anext(watcher) == commit


async def test_forgotten_watchers_go_away():
    source = Source()
    kept = source.history.watch(None)
    for _ in range(100):
        source.history.watch(None)
    gc.collect()
    assert len(source.history._watchers) == 1
    source.commit()
    assert kept.pending()
