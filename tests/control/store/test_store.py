"""The store on a backend that misbehaves in every way the contract allows."""

import asyncio

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from control.lifecycle import Writer
from control.model import Meta, Network, NetworkSpec, Node, Task
from control.store import rows, store
from control.store.backend import Failed, Following, Leading
from control.store.errors import (
    BackendFailed,
    NameConflict,
    NotLeader,
    OutcomeUnknown,
    Refused,
    StoreClosed,
    StoreError,
    TooLarge,
    Unreadable,
    VersionConflict,
)
from control.store.fake import FakeBackend
from control.store.record import RowChange
from control.store.store import Commit, Resync, Store
from control.store.tables import Snapshot, index_keys
from control.store.txn import Delete, Put
from tests.control.alone import alone

ORCH = Writer.ORCHESTRATOR


def network(name, labels=None):
    return Network(id=f"id-{name}", spec=NetworkSpec(name=name, labels=labels or {}))


async def opened(backend=None) -> tuple[Store, FakeBackend]:
    backend = backend or FakeBackend()
    store = Store(backend, lambda: 1000)
    await store.open()
    return store, backend


def names(store: Store) -> list[str]:
    return sorted(n.spec.name for n in store.view().all(Network))


def relabelled(view: Snapshot, name: str, value: str) -> Put:
    found = view.by_name(Network, name)
    spec = msgspec.structs.replace(found.spec, labels={"v": value})
    return Put(msgspec.structs.replace(found, spec=spec))


async def start(group: asyncio.TaskGroup, coroutine) -> asyncio.Task:
    """Let a commit get as far as it can."""
    task = group.create_task(outcome(coroutine))
    await asyncio.sleep(0)
    return task


async def outcome(coroutine) -> int | str:
    try:
        return await coroutine
    except StoreError as error:
        return type(error).__name__


# --- durable and not ----------------------------------------------------------------------------------------------


async def test_readers_see_durable_state_only_and_checks_see_what_is_under_way():
    store, backend = await opened()
    backend.hold()
    async with asyncio.TaskGroup() as group:
        first = await start(group, store.commit([Put(network("a"))], ORCH))
        assert names(store) == []
        assert len(backend.proposed) == 1
        # The same name again: refused at once, though the first is not durable.
        with pytest.raises(NameConflict, match='network "a" already exists'):
            await store.commit([Put(msgspec.structs.replace(network("a"), id="other"))], ORCH)
        second = await start(group, store.commit([Put(network("b"))], ORCH))
        assert len(backend.proposed) == 2, "the second waited for the first"
        backend.release(1)
        await first
        assert names(store) == ["a"]
        backend.release()
        await second
        assert names(store) == ["a", "b"]
    assert (first.result(), second.result()) == (1, 2)


async def test_what_was_committed_is_in_the_view_when_the_call_returns():
    store, _ = await opened()
    for i in range(1, 20):
        assert await store.commit([Put(network(f"n{i}"))], ORCH) == i
        assert store.view().version == i
        assert store.view().by_name(Network, f"n{i}").meta == Meta(version=i, created_ms=1000, updated_ms=1000)


async def test_a_stale_object_is_refused():
    store, _ = await opened()
    await store.commit([Put(network("a"))], ORCH)
    stale = store.view()
    await store.commit([relabelled(stale, "a", "1")], ORCH)
    with pytest.raises(VersionConflict):
        await store.commit([relabelled(stale, "a", "2")], ORCH)
    with pytest.raises(VersionConflict):
        await store.commit([Delete(Network, "id-a", 1)], ORCH)
    await store.commit([relabelled(store.view(), "a", "3"), Put(network("b"))], ORCH)
    await store.commit([Delete(Network, "id-a", 3), Delete(Network, "id-b")], ORCH)
    assert names(store) == []


async def test_nothing_to_do_is_done():
    store, backend = await opened(FakeBackend([network("a")]))
    assert await store.commit([], ORCH) == 1
    assert await store.batch([], ORCH) == 1
    assert backend.proposed == []


async def test_the_limits_of_one_commit(monkeypatch):
    store, backend = await opened()
    with pytest.raises(TooLarge, match="201 changes are too many for one commit: the limit is 200"):
        await store.commit([Put(network(f"n{i}")) for i in range(201)], ORCH)
    monkeypatch.setattr("control.store.store.MAX_BYTES", 1000)
    with pytest.raises(TooLarge, match=r'network "big" makes a commit of .* bytes: 1000 are allowed'):
        await store.commit([Put(network("a")), Put(network("big", {"x": "y" * 1000}))], ORCH)
    assert backend.proposed == []
    await store.commit([Put(network("a"))], ORCH)


async def test_what_could_not_be_read_again_is_not_written():
    store, backend = await opened()
    bad = Node(id="n", number="one")
    with pytest.raises(Unreadable, match='node "n" cannot be stored: Expected `int`, got `str`'):
        await store.commit([Put(bad)], ORCH)
    assert backend.proposed == []


async def test_callers_wait_when_too_much_is_under_way(monkeypatch):
    monkeypatch.setattr(store, "MAX_PENDING", 3)
    one, backend = await opened()
    backend.hold()
    async with asyncio.TaskGroup() as group:
        tasks = [await start(group, one.commit([Put(network(f"n{i}"))], ORCH)) for i in range(10)]
        assert len(backend.proposed) == 3
        backend.release(1)
        for _ in range(5):
            await asyncio.sleep(0)
        assert len(backend.proposed) == 4
        backend.release()
    assert sorted(t.result() for t in tasks) == list(range(1, 11))


# --- batches ------------------------------------------------------------------------------------------------------


async def test_a_batch_is_split_and_pipelined():
    store, backend = await opened()
    backend.hold()
    async with asyncio.TaskGroup() as group:
        task = await start(group, store.batch([Put(network(f"n{i:04d}")) for i in range(450)], ORCH))
        for _ in range(5):  # some changes in each turn of the loop
            await asyncio.sleep(0)
        assert [len(p.changes) for p in backend.proposed] == [200, 200, 50]
        backend.release()
    assert task.result() == 3
    assert len(names(store)) == 450


async def test_a_batch_is_split_by_size(monkeypatch):
    monkeypatch.setattr(rows, "MAX_BYTES", 1000)
    store, backend = await opened()
    await store.batch([Put(network(f"n{i}", {"x": "y" * 300})) for i in range(5)], ORCH)
    assert [len(p.changes) for p in backend.proposed] == [2, 2, 1]


async def test_a_batch_stops_where_it_fails():
    store, _ = await opened(FakeBackend([network("n0250")]))
    changes = [Put(network(f"n{i:04d}")) for i in range(600)]
    with pytest.raises(VersionConflict, match="n0250"):
        await store.batch(changes, ORCH)
    assert len(names(store)) == 201  # the first part, and what was there


async def test_a_batch_raises_the_earliest_failure():
    store, backend = await opened()
    backend.next_outcomes("done", "unknown, done")
    with pytest.raises(OutcomeUnknown):
        await store.batch([Put(network(f"n{i:04d}")) for i in range(700)], ORCH)
    assert len(names(store)) == 400


# --- misfortunes --------------------------------------------------------------------------------------------------


async def test_a_refused_commit_takes_those_on_top_with_it_and_the_next_works():
    store, backend = await opened()
    backend.hold()
    backend.next_outcomes("done", "refused")
    async with asyncio.TaskGroup() as group:
        tasks = [await start(group, store.commit([Put(network(n))], ORCH)) for n in "abc"]
        backend.release()
    assert [t.result() for t in tasks] == [1, "Refused", "Refused"]
    assert names(store) == ["a"]
    assert await store.commit([Put(network("b"))], ORCH) == 2


async def test_a_refusal_does_not_undo_what_is_still_under_way_before_it():
    one, backend = await opened()
    backend.hold()
    async with asyncio.TaskGroup() as group:
        first = await start(group, one.commit([Put(network("a"))], ORCH))
        second = await start(group, one.commit([Put(network("b"))], ORCH))
        backend._queue.pop().future.set_exception(Refused("no space"))  # the later one fails first
        await second
        with pytest.raises(NameConflict):
            await one.commit([Put(msgspec.structs.replace(network("a"), id="x"))], ORCH)
        third = await start(group, one.commit([Put(network("b"))], ORCH))
        backend.release()
    assert (first.result(), second.result(), third.result()) == (1, "Refused", 2)
    assert names(one) == ["a", "b"]


@pytest.mark.parametrize("fate", ["unknown, done", "unknown, not done"])
async def test_an_unknown_outcome_is_resolved_by_reading(fate):
    store, backend = await opened()
    watcher = store.watch()
    backend.next_outcomes(fate)
    with pytest.raises(OutcomeUnknown):
        await store.commit([Put(network("a"))], ORCH)
    happened = store.view().by_name(Network, "a") is not None
    assert happened == (fate == "unknown, done")
    assert watcher.pending() == happened
    await store.commit([Put(network("b"))], ORCH)
    assert store.view().version == 1 + happened


async def test_losing_the_lead_drops_what_was_under_way():
    store, backend = await opened()
    assert await store.leading() == 1
    backend.hold()
    async with asyncio.TaskGroup() as group:
        deposed = group.create_task(store.deposed(1))
        commit = await start(group, store.commit([Put(network("a"))], ORCH))
        backend.depose("n2")
    assert deposed.done()
    assert commit.result() == "OutcomeUnknown"
    assert (store.term, store.leader) == (None, "n2")
    with pytest.raises(NotLeader, match="this manager does not lead the cluster: n2 does"):
        await store.commit([Put(network("b"))], ORCH)
    with pytest.raises(NotLeader):
        await store.barrier()
    # The other one writes the name that we had under way; then we lead again, and know of it.
    blob = rows.encode(msgspec.structs.replace(network("a"), meta=Meta(version=1)))
    backend.write(RowChange("network", "id-a", 0, blob))
    backend.release()
    backend.elect()
    assert await store.leading() == 3
    with pytest.raises(VersionConflict):
        await store.commit([Put(network("a"))], ORCH)
    assert await store.commit([Put(network("b"))], ORCH) == 2


async def test_a_loop_of_an_old_term_can_change_nothing():
    store, backend = await opened()
    term = await store.leading()
    backend.depose()
    backend.elect()
    with pytest.raises(NotLeader, match="the leadership of term 1 is over"):
        await store.commit([Put(network("a"))], ORCH, term=term)
    with pytest.raises(NotLeader):
        await store.batch([Put(network("a"))], ORCH, term=term)
    await store.commit([Put(network("a"))], ORCH, term=await store.leading())
    await store.deposed(term)


async def test_a_cancelled_caller_leaves_the_commit_to_happen():
    store, backend = await opened()
    backend.hold()
    async with asyncio.TaskGroup() as group:
        first = await start(group, store.commit([Put(network("a"))], ORCH))
        first.cancel()
        await asyncio.sleep(0)
        second = await start(group, store.commit([Put(network("b"))], ORCH))
        backend.release()
    assert first.cancelled()
    assert second.result() == 2
    assert names(store) == ["a", "b"]


async def test_a_cancelled_caller_of_a_commit_that_fails_does_not_block_the_others():
    store, backend = await opened()
    backend.hold()
    backend.next_outcomes("refused")
    async with asyncio.TaskGroup() as group:
        first = await start(group, store.commit([Put(network("a"))], ORCH))
        first.cancel()
        await asyncio.sleep(0)
        backend.release()
    assert await store.commit([Put(network("b"))], ORCH) == 1


async def test_a_dead_backend_fails_everybody_and_closes_the_store():
    store, backend = await opened()
    backend.hold()
    watcher = store.watch()
    async with asyncio.TaskGroup() as group:
        tasks = [await start(group, store.commit([Put(network(n))], ORCH)) for n in "abc"]
        closed = await start(group, store.closed())
        waiting = await start(group, anext(watcher))
        deposed = group.create_task(store.deposed(1))
        backend.fail()
    assert [t.result() for t in (*tasks, closed, waiting)] == ["BackendFailed"] * 5
    assert deposed.done()
    for call in (store.commit([Put(network("x"))], ORCH), store.barrier(), store.leading(), store.closed()):
        with pytest.raises(BackendFailed, match="replace it, and restore a backup"):
            await call
    assert names(store) == []
    await store.close()
    with pytest.raises(BackendFailed):
        await store.closed()


async def test_close():
    store, backend = await opened()
    backend.hold()
    watcher = store.watch()
    async with asyncio.TaskGroup() as group:
        commit = await start(group, store.commit([Put(network("a"))], ORCH))
        closed = await start(group, store.closed())
        read = group.create_task(_all(watcher))
        await asyncio.sleep(0)
        store.close()
    assert commit.result() == "StoreClosed"
    assert closed.result() is None
    assert read.result() == []
    with pytest.raises(StoreClosed):
        await store.commit([Put(network("b"))], ORCH)
    await store.close()


async def test_not_opened_and_not_readable():
    with pytest.raises(StoreClosed, match="has not been opened"):
        await Store(FakeBackend(), lambda: 0).commit([Put(network("a"))], ORCH)
    backend = FakeBackend()
    backend.write(RowChange("gadget", "g", 0, b"\x80"))
    with pytest.raises(BackendFailed, match='the store holds a "gadget", which this version of meshd does not know'):
        await Store(backend, lambda: 0).open()
    backend = FakeBackend()
    backend.write(RowChange("node", "n", 0, b"\x80"))
    with pytest.raises(BackendFailed, match="the store holds a node that this version of meshd cannot read"):
        await Store(backend, lambda: 0).open()
    backend = FakeBackend()
    backend.fail()
    with pytest.raises(BackendFailed):
        await Store(backend, lambda: 0).open()


async def test_a_follower():
    store, backend = await opened(FakeBackend([network("a")], leader="n2"))
    assert names(store) == ["a"]
    assert (store.term, store.leader) == (None, "n2")
    with pytest.raises(NotLeader):
        await store.commit([Put(network("b"))], ORCH)
    assert store.status().role == "follower"
    assert not store.members()[0].leader
    async with asyncio.TaskGroup() as group:
        leading = group.create_task(store.leading())
        await asyncio.sleep(0)
        assert not leading.done()
        backend.elect()
    assert leading.result() == backend.term


# --- other leaders' commits ---------------------------------------------------------------------------------------


def written(obj, version):
    return msgspec.structs.replace(obj, meta=Meta(version=version))


async def test_commits_of_others_are_applied_and_watched():
    store, backend = await opened(FakeBackend(leader="n2"))
    watcher = store.watch()
    a = written(network("a"), 1)
    backend.write(RowChange("network", a.id, 0, rows.encode(a)))
    changed = written(network("a", {"x": "y"}), 2)
    backend.write(RowChange("network", a.id, 1, rows.encode(changed)))
    backend.write(RowChange("network", a.id, 2, None))
    seen = [await anext(watcher) for _ in range(3)]
    assert [(c.version, [(e.action, e.before, e.after) for e in c.events]) for c in seen] == [
        (1, [("create", None, a)]),
        (2, [("update", a, changed)]),
        (3, [("delete", changed, None)]),
    ]
    assert set(store.view()._index) == set()


async def test_a_commit_of_another_takes_the_place_of_one_under_way():
    store, backend = await opened()
    backend.hold()
    watcher = store.watch()
    async with asyncio.TaskGroup() as group:
        mine = await start(group, store.commit([Put(network("a"))], ORCH))
        z = written(network("z"), 1)
        backend.write(RowChange("network", z.id, 0, rows.encode(z)))
        # Known before mine has failed: checks see the other's commit, and mine no more.
        assert names(store) == ["z"]
        assert (await anext(watcher)).events[0].after == z
        with pytest.raises(NameConflict):
            await store.commit([Put(msgspec.structs.replace(network("z"), id="x"))], ORCH)
        again = await start(group, store.commit([Put(network("a"))], ORCH))
        backend.release()
    assert (mine.result(), again.result()) == ("Refused", 2)
    assert names(store) == ["a", "z"]


async def test_following_drops_what_is_under_way_at_once():
    store, backend = await opened()
    backend.hold()
    async with asyncio.TaskGroup() as group:
        mine = await start(group, store.commit([Put(network("a"))], ORCH))
        backend._deliver(Following("n2"))
        assert not mine.done()
        assert store._head is store.view()
        backend._deliver(Leading(1))
        backend.release()
    # It came to pass after all: as if it were somebody else's.
    assert mine.result() == 1
    assert names(store) == ["a"]


@pytest.mark.parametrize("change", [RowChange("network", "id-a", 7, b""), RowChange("network", "x", 0, None)])
async def test_a_commit_that_does_not_fit_stops_the_store(change):
    store, backend = await opened(FakeBackend([network("a")], leader="n2"))
    backend.rows["network", "x"] = backend.rows["network", "id-a"]
    blob = None if change.blob is None else rows.encode(network("a"))
    backend.write(msgspec.structs.replace(change, blob=blob))
    with pytest.raises(BackendFailed, match="has diverged"):
        await store.closed()
    assert names(store) == ["a"]


async def test_a_jump_of_the_state():
    store, backend = await opened(FakeBackend([network("a")]))
    watcher = store.watch()
    held = store.view()
    backend.replace([network("b"), network("c")], 50)
    item = await anext(watcher)
    assert item == Resync(50, store.view())
    assert names(store) == ["b", "c"]
    assert [n.spec.name for n in held.all(Network)] == ["a"]
    assert await store.commit([Put(network("d"))], ORCH) == 51
    assert (await anext(watcher)).version == 51


async def test_barrier_waits_for_the_view():
    store, backend = await opened()
    backend.hold()
    async with asyncio.TaskGroup() as group:
        await start(group, store.commit([Put(network("a"))], ORCH))
        backend.version += 1  # agreed on, but not delivered yet
        read = await start(group, store.barrier())
        assert not read.done()
        backend.version -= 1
        backend.release()
    assert read.result().version == 1


async def test_failed_is_the_last_word():
    store, backend = await opened()
    deliver = backend._deliver
    deliver(Failed(BackendFailed("gone")))
    a = written(network("a"), 1)
    backend.write(RowChange("network", a.id, 0, rows.encode(a)))
    assert names(store) == []


# --- properties ---------------------------------------------------------------------------------------------------


async def _all(watcher) -> list:
    return [item async for item in watcher]


def replay(view: Snapshot, items) -> Snapshot:
    for item in items:
        view = item.view if isinstance(item, Resync) else view.apply(item.version, item.events)
    return view


def same(a: Snapshot, b: Snapshot) -> bool:
    return a.version == b.version and list(a.objects()) == list(b.objects()) and list(a._index) == list(b._index)


OUTCOMES = ["done"] * 6 + ["refused", "unknown, done", "unknown, not done"]
ACTIONS = st.one_of(
    st.tuples(st.just("put"), st.sampled_from("abcd"), st.sampled_from(OUTCOMES)),
    st.tuples(st.just("delete"), st.sampled_from("abcd"), st.sampled_from(OUTCOMES)),
    st.tuples(st.just("both"), st.sampled_from("abcd"), st.sampled_from(OUTCOMES)),
    st.tuples(
        st.sampled_from(["settle", "settle", "turn", "depose", "elect", "jump", "watch"]), st.just(""), st.just("")
    ),
)


def changes_for(view: Snapshot, action: str, name: str) -> list:
    found = view.by_name(Network, name)
    put = relabelled(view, name, "x" * (view.version % 7)) if found is not None else Put(network(name))
    other = Put(network(f"{name}{view.version}"))
    match action:
        case "put":
            return [put]
        case "delete":
            return [Delete(Network, f"id-{name}")]
        case _:
            return [put, other]


@given(st.lists(ACTIONS, max_size=40))
@settings(max_examples=100, deadline=None)
def test_whatever_happens_the_view_is_what_the_backend_has_and_watchers_follow(actions):
    async def scenario():
        store, backend = await opened()
        backend.hold()
        base = store.view()
        watchers = [(base, store.watch(base.version))]
        acknowledged = set()

        async def commit(changes):
            try:
                acknowledged.add(await store.commit(changes, ORCH))
            except StoreError:
                return

        async with asyncio.TaskGroup() as group:
            for action, name, fate in actions:
                match action:
                    case "put" | "delete" | "both":
                        if len(backend._outcomes) < len(backend._queue):
                            backend.next_outcomes(*["done"] * (len(backend._queue) - len(backend._outcomes)))
                        backend.next_outcomes(fate)
                        group.create_task(commit(changes_for(store.view(), action, name)))
                        await asyncio.sleep(0)
                    case "settle":
                        backend.release(1)
                    case "turn":
                        await asyncio.sleep(0)
                    case "depose":
                        backend.depose("n2")
                    case "elect":
                        backend.elect()
                    case "jump":
                        backend.depose()
                        kept = [rows.decode(r.kind, r.blob) for r in list(backend.rows.values())[:2]]
                        backend.replace(kept, backend.version + 10)
                    case "watch":
                        watchers.append((store.view(), store.watch(store.view().version)))
                assert store.view().version == backend.version
            backend.release()
        view = store.view()
        assert {(r.kind, r.id): r.blob for r in backend.rows.values()} == {
            ("network", n.id): rows.encode(n) for n in view.all(Network)
        }
        assert set(view._index) == {k for o in view.objects() for k in index_keys(o)}
        store.close()
        for start_view, watcher in watchers:
            assert same(replay(start_view, await _all(watcher)), view)
        reopened, _ = await opened(backend)
        assert same(reopened.view(), view)

    asyncio.run(scenario())


async def test_many_writers_on_the_real_log(tmp_path):
    """Concurrent read-modify-write with retries: every increment counts, before and after a restart."""
    path = tmp_path / "store"
    store, _ = await opened(await alone(path, log_limit_bytes=20_000))
    await store.commit([Put(network("counter", {"v": "0"}))], ORCH)
    base = store.view()
    watcher = store.watch(base.version)
    conflicts = 0

    async def increment():
        nonlocal conflicts
        news = store.watch()
        for _ in range(10):
            while True:
                value = store.view().by_name(Network, "counter").spec.labels["v"]
                try:
                    await store.commit([relabelled(store.view(), "counter", str(int(value) + 1))], ORCH)
                    break
                except VersionConflict:
                    conflicts += 1
                    await anext(news)

    async with asyncio.TaskGroup() as group:
        for _ in range(10):
            group.create_task(increment())
    assert store.view().by_name(Network, "counter").spec.labels["v"] == "100"
    assert conflicts > 0
    view = store.view()
    await store.close()
    items = await _all(watcher)
    assert all(isinstance(i, Commit) for i in items)
    assert same(replay(base, items), view)
    again, _ = await opened(await alone(path))
    assert same(again.view(), view)
    assert list(again.view().all(Task)) == []
    await again.close()


# --- the loop stays free ------------------------------------------------------------------------------------------


async def test_many_callers_take_turns(monkeypatch):
    monkeypatch.setattr("control.store.store.TURN_CHANGES", 4)
    store, backend = await opened()
    backend.hold()
    async with asyncio.TaskGroup() as group:
        for i in range(10):
            group.create_task(store.commit([Put(network(f"n{i}a")), Put(network(f"n{i}b"))], ORCH))
        seen = []
        for _ in range(12):
            await asyncio.sleep(0)
            seen.append(len(backend.proposed))
        assert seen[-1] == 10
        assert max(b - a for a, b in zip([0, *seen], seen, strict=False)) == 2
        backend.release()
    assert len(names(store)) == 20


async def test_a_large_state_of_another_manager_is_decoded_beside_the_loop(monkeypatch):
    """What is delivered meanwhile comes after it, in order; a newer state makes the older one's rest pointless."""
    monkeypatch.setattr("control.store.store.INLINE_ROWS", 2)
    store, backend = await opened()
    watcher = store.watch()
    backend.depose("other")
    backend.replace([network(f"n{i}") for i in range(5)], 50)
    backend.write(
        RowChange("network", "n9", 0, rows.encode(msgspec.structs.replace(network("n9"), meta=Meta(version=51))))
    )
    assert names(store) == []
    async with asyncio.timeout(10):
        resync = await anext(watcher)
        assert isinstance(resync, Resync)
        while store.view().version < 51:
            await asyncio.sleep(0.001)
    assert sorted(names(store)) == ["n0", "n1", "n2", "n3", "n4", "n9"]
    backend.replace([network(f"m{i}") for i in range(5)], 60)
    backend.write(RowChange("network", "m9", 0, b"\xc1"))  # cannot be read: never looked at
    backend.replace([network("x")], 70)
    backend.elect()
    async with asyncio.timeout(10):
        await store.leading()
    assert (names(store), store.view().version) == (["x"], 70)
    await store.commit([Put(network("y"))], ORCH)
    await store.close()
