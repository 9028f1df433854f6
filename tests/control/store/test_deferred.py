"""Commits of another leader, put off: in the end the same tables as if each had been applied at once."""

import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from control.lifecycle import Writer
from control.model import Meta, Network, NetworkSpec, Node, NodeDescription
from control.store import rows, store
from control.store.backend import Committed, Following, Leading
from control.store.deferred import Deferred
from control.store.errors import BackendFailed, NotLeader
from control.store.fake import FakeBackend
from control.store.record import RowChange
from control.store.store import Commit, Resync, Store
from control.store.tables import Snapshot, index_keys
from control.store.txn import Put

NAMES = ("a", "b", "c", "d", "e")
# One commit: each name it touches, with the VNI of a new state, or None to remove it.
COMMITS = st.lists(st.dictionaries(st.sampled_from(NAMES), st.none() | st.integers(1, 50), max_size=4), max_size=12)


def network(name, number, version):
    spec = NetworkSpec(name=f"{name}{number}")
    return Network(id=name, spec=spec, vni=number * 10 + NAMES.index(name), meta=Meta(version=version))


def changes_of(view: Snapshot, wish: dict, version: int) -> tuple[RowChange, ...]:
    out = []
    for name, number in wish.items():
        before = view.get(Network, name)
        expected = before.meta.version if before else 0
        if number is not None:
            out.append(RowChange("network", name, expected, rows.encode(network(name, number, version))))
        elif before:
            out.append(RowChange("network", name, expected, None))
    return tuple(out)


def content(view: Snapshot) -> tuple:
    return view.version, list(view.objects()), list(view._index.keys_between(("",), None))


@settings(max_examples=100, deadline=None)
@given(COMMITS, st.data())
def test_the_same_as_one_after_the_other(wishes, data):
    at_once, put_off, deferred = Snapshot(), Snapshot(), Deferred()
    seen = {0: content(at_once)}
    for version, wish in enumerate(wishes, start=1):
        changes = changes_of(at_once, wish, version)
        step = Deferred()
        step.add(version, changes)
        at_once = step.advance(at_once, 100)
        seen[version] = content(at_once)
        deferred.add(version, changes)
        for _ in range(data.draw(st.integers(0, 2))):
            if deferred:
                put_off = deferred.advance(put_off, data.draw(st.integers(1, 3))) or put_off
                assert content(put_off) == seen[put_off.version]  # never between two commits
    while deferred:
        put_off = deferred.advance(put_off, 2) or put_off
    assert content(put_off) == content(at_once)
    assert len(deferred) == 0
    assert set(put_off._index.keys_between(("",), None)) == {k for o in put_off.objects() for k in index_keys(o)}


def test_what_does_not_fit_is_seen():
    deferred = Deferred()
    deferred.add(1, (RowChange("network", "a", 3, rows.encode(network("a", 1, 1))),))
    with pytest.raises(BackendFailed, match="has diverged"):
        deferred.advance(Snapshot(), 10)
    with pytest.raises(BackendFailed, match="has diverged"):
        Deferred().add(1, (RowChange("network", "a", 0, None),))


# --- in a store ---------------------------------------------------------------------------------------------------


async def follower(objects=()) -> tuple[Store, FakeBackend]:
    backend = FakeBackend(objects, leader="n2")
    opened = Store(backend, lambda: 1000)
    await opened.open()
    return opened, backend


def write(backend: FakeBackend, names) -> None:
    """Another leader's commit: each is made, or written again."""
    found = [(name, backend.rows.get(("network", name))) for name in names]
    version = backend.version + 1
    backend.write(
        *(
            RowChange("network", name, row.version if row else 0, rows.encode(network_of(name, version)))
            for name, row in found
        )
    )


def network_of(name: str, version: int) -> Network:
    return Network(id=name, spec=NetworkSpec(name=f"net-{name}"), meta=Meta(version=version))


def node(name: str, number: int, version: int = 0) -> Node:
    return Node(id=name, number=number, description=NodeDescription(hostname=name), meta=Meta(version=version))


@pytest.fixture
def busy(monkeypatch):
    """A look waits for three rows at most, and a turn makes two."""
    monkeypatch.setattr(store, "INLINE_DEFERRED", 3)
    monkeypatch.setattr(store, "PART_DEFERRED", 2)


async def until(condition) -> None:
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.01)


async def test_a_look_sees_the_last_commit():
    opened, backend = await follower()
    for _ in range(3):
        write(backend, ["a", "b"])
    assert opened._deferred
    assert opened.view().version == 3
    assert {n.meta.version for n in opened.view().all(Network)} == {3}
    assert not opened._deferred


async def test_without_a_look_it_is_done_when_it_is_quiet(busy):
    opened, backend = await follower()
    write(backend, [str(i) for i in range(10)])
    await until(lambda: not opened._deferred)
    assert len(opened._view.all(Network)) == 10


async def test_without_a_look_it_is_done_after_a_while(monkeypatch):
    monkeypatch.setattr(store, "QUIET_S", 0.001)
    monkeypatch.setattr(store, "LAG_S", 0.0)
    opened, backend = await follower()

    def writing() -> bool:
        write(backend, ["a"])
        return opened._view.version > 0

    async with asyncio.timeout(60):
        while not writing():  # never quiet between two of the timer's looks
            await asyncio.sleep(0.0002)


async def test_much_of_it_is_made_in_parts_and_shown_at_once(busy):
    opened, backend = await follower()
    write(backend, [str(i) for i in range(9)])
    assert opened.view().version == 0  # more than a look waits for
    seen = set()

    def done() -> bool:
        seen.add(len(opened._view.all(Network)))
        return opened._view.version == 1

    await until(done)
    assert seen <= {0, 9}


async def test_who_watches_gets_every_commit():
    opened, backend = await follower()
    write(backend, ["a"])
    watcher = opened.watch(opened.view().version)
    write(backend, ["b"])
    write(backend, ["c"])
    items = [await anext(watcher), await anext(watcher)]
    assert [(type(i), i.version, len(i.events)) for i in items] == [(Commit, 2, 1), (Commit, 3, 1)]


async def test_who_watches_what_was_put_off_starts_over(busy):
    opened, backend = await follower()
    write(backend, [str(i) for i in range(9)])
    watcher = opened.watch(opened.view().version)
    write(backend, ["x"])
    async with asyncio.timeout(60):
        item = await anext(watcher)
        while item.version < 2:
            assert isinstance(item, Resync)
            item = await anext(watcher)
    assert len(opened.view().all(Network)) == 10
    write(backend, ["y"])
    async with asyncio.timeout(60):
        while item.version < 3:
            item = await anext(watcher)
    assert isinstance(item, Commit)


async def test_who_waits_for_seldom_things_lets_others_be_put_off(busy, monkeypatch):
    monkeypatch.setattr(store, "QUIET_S", 60.0)
    opened, backend = await follower([node("n1", 1)])
    news = opened.news(Node)
    assert opened.news(Node) is news
    write(backend, [str(i) for i in range(9)])
    await asyncio.sleep(0.05)
    assert not news.done()
    assert opened._deferred
    found = backend.rows["node", "n1"]
    change = RowChange("node", "n1", found.version, rows.encode(node("n1", 7, backend.version + 1)))
    backend.write(change)
    async with asyncio.timeout(60):
        assert await asyncio.shield(news)
    assert opened._view.get(Node, "n1").number == 7
    backend.elect()
    async with asyncio.timeout(60):
        await opened.leading()
    news = opened.news(Node)
    await opened.commit([Put(network_of("other", 0))], Writer.ORCHESTRATOR)
    assert not news.done()
    await opened.commit([Put(node("n2", 2))], Writer.ORCHESTRATOR)
    assert news.done()
    news = opened.news(Node)
    await opened.close()
    assert news.result() is False
    assert opened.news(Node).result() is False


async def test_a_barrier_waits_for_what_was_put_off(busy):
    opened, backend = await follower()
    write(backend, [str(i) for i in range(9)])

    async def agreed() -> int:
        return backend.version

    backend.barrier = agreed
    async with asyncio.timeout(60):
        view = await opened.barrier()
    assert view.version == 1
    assert len(view.all(Network)) == 9


async def test_leading_begins_with_all_of_it(busy):
    opened, backend = await follower()
    write(backend, [str(i) for i in range(9)])
    backend.elect()
    assert opened.term is None
    with pytest.raises(NotLeader):
        await opened.commit([Put(network_of("z", 0))], Writer.ORCHESTRATOR)
    async with asyncio.timeout(60):
        assert await opened.leading() == 2
    assert len(opened._view.all(Network)) == 9
    assert await opened.commit([Put(network_of("z", 0))], Writer.ORCHESTRATOR) == 2


async def test_what_comes_while_it_gets_ready_to_lead_is_kept_in_order(busy):
    opened, backend = await follower()
    write(backend, [str(i) for i in range(9)])
    backend._deliver(Leading(2))
    backend._deliver(Following("n3"))
    write(backend, ["x"])
    await until(lambda: opened.leader == "n3")
    assert opened.term is None
    assert len(opened.view().all(Network)) == 10


async def test_a_jump_makes_it_pointless(busy):
    opened, backend = await follower()
    write(backend, [str(i) for i in range(9)])
    backend.replace([network_of("only", 50)], 50)
    await until(lambda: opened.view().version == 50)
    assert [n.id for n in opened.view().all(Network)] == ["only"]
    write(backend, ["more"])
    assert len(opened.view().all(Network)) == 2


async def test_what_does_not_fit_ends_the_store():
    opened, backend = await follower([network_of("a", 1)])
    change = RowChange("network", "a", 7, rows.encode(network_of("a", 2)))
    backend._deliver(Committed(2, (change,)))  # as a backend with a bug would
    assert opened.view().version == 1
    async with asyncio.timeout(60):
        with pytest.raises(BackendFailed, match="has diverged"):
            await opened.closed()
