"""The leader's loop over a store in memory, with cores made for the purpose."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import msgspec
import pytest

from control import leader as leaders
from control.decision import Decision
from control.leader import Core, Leader, first_of_each
from control.lifecycle import TaskState, Writer
from control.model import Cluster, Meta, Network, NetworkSpec, ProcessSpec, Task, TaskSpec, TaskStatus
from control.store.errors import NotLeader, StoreClosed, StoreError
from control.store.fake import FakeBackend
from control.store.store import Store
from control.store.tables import Snapshot
from control.store.txn import Delete, Put

S = TaskState
Decide = Callable[[Snapshot, int], Decision]


def network(name: str, vni: int = 0) -> Network:
    return Network(id=name, spec=NetworkSpec(name=name), vni=vni)


def put(writer: Writer, *objects: Any) -> Decision:
    return Decision(tuple((writer, Put(o)) for o in objects))


@dataclass
class World:
    backend: FakeBackend
    store: Store
    lock: asyncio.Lock
    leader: Leader
    task: asyncio.Task[None]

    def network(self, id_: str) -> Network | None:
        return self.store.view().get(Network, id_)


@contextlib.asynccontextmanager
async def leading(
    *cores: Decide, objects: tuple[Any, ...] = (), clock: Callable[[], int] = lambda: 0
) -> AsyncIterator[Any]:
    """A leader with these cores; ends when the block does."""
    stamped = [msgspec.structs.replace(o, meta=Meta(version=1)) for o in (Cluster(id="c"), *objects)]
    backend = FakeBackend(stamped)
    store = Store(backend, lambda: 0)
    await store.open()
    term = await store.leading()
    lock = asyncio.Lock()
    leader = Leader(store, lock, [Core(f"core{i}", core) for i, core in enumerate(cores)], clock)

    async with asyncio.TaskGroup() as group:
        world = World(backend, store, lock, leader, group.create_task(leader.run(term)))
        try:
            yield world
        finally:
            world.task.cancel()
    await store.close()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0.005)


def once(decision: Callable[[Snapshot], Decision], name: str = "made") -> Decide:
    """A core that wants something until there is a network called `name`."""
    return lambda snapshot, _: Decision() if snapshot.get(Network, name) is not None else decision(snapshot)


async def test_each_core_sees_what_the_one_before_has_done() -> None:
    def first(snapshot: Snapshot, now_ms: int) -> Decision:
        return Decision() if snapshot.get(Network, "a") else put(Writer.ORCHESTRATOR, network("a"))

    def second(snapshot: Snapshot, now_ms: int) -> Decision:
        found = snapshot.get(Network, "a")
        if found is None or found.vni:
            return Decision()
        return put(Writer.ALLOCATOR, msgspec.structs.replace(found, vni=4097))

    async with leading(first, second) as world:
        await until(lambda: bool((n := world.network("a")) and n.vni == 4097))
        assert world.leader.passes == 1, "one pass does it all"


async def test_it_rests_when_nothing_is_to_be_done() -> None:
    async with leading(lambda _s, _n: Decision()) as world:
        await asyncio.sleep(0.3)
        assert world.leader.passes == 1


async def test_changes_that_come_together_are_looked_at_together(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    async with leading(lambda s, _n: (seen.append(len(s.all(Network))), Decision())[1]) as world:
        await until(lambda: len(seen) == 1)
        for i in range(20):
            await world.store.commit([Put(network(f"n{i}"))], Writer.ORCHESTRATOR)
        await until(lambda: len(seen) == 2)
        await asyncio.sleep(0.2)
    assert seen == [0, 20]


async def test_a_store_that_is_never_quiet_is_looked_at_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leaders, "QUIET_MAX_S", 0.2)
    async with leading(lambda _s, _n: Decision()) as world:
        await until(lambda: world.leader.passes == 1)

        async def trickle() -> None:
            for i in range(10_000):
                await world.store.commit([Put(network(f"n{i}"))], Writer.ORCHESTRATOR)
                await asyncio.sleep(0.01)

        async with asyncio.TaskGroup() as group:
            noise = group.create_task(trickle())
            await until(lambda: world.leader.passes >= 3)
            noise.cancel()


async def test_it_wakes_when_a_core_wants_to() -> None:
    now = {"ms": 1_000}
    woken: list[int] = []

    def core(snapshot: Snapshot, now_ms: int) -> Decision:
        woken.append(now_ms)
        return Decision(wake_at_ms=1_100 if len(woken) == 1 else None)

    async with leading(core, clock=lambda: now["ms"]) as world:
        await until(lambda: len(woken) == 1)
        now["ms"] = 1_100
        await until(lambda: len(woken) == 2)
        await asyncio.sleep(0.2)
        assert world.leader.passes == 2


async def test_a_wake_up_in_the_past_is_no_busy_loop() -> None:
    async with leading(lambda _s, _n: Decision(wake_at_ms=-5_000)) as world:
        await asyncio.sleep(0.3)
        assert 2 <= world.leader.passes <= 8


async def test_a_conflict_is_decided_again() -> None:
    """The core wants to create what somebody else creates at the same time."""
    calls = 0

    def core(snapshot: Snapshot, now_ms: int) -> Decision:
        nonlocal calls
        calls += 1
        existing = snapshot.get(Network, "a")
        if existing is not None and existing.vni:
            return Decision()
        if existing is None:
            return put(Writer.ALLOCATOR, network("a", vni=1))
        return put(Writer.ALLOCATOR, msgspec.structs.replace(existing, vni=2))

    async with leading(core) as world:
        await world.store.commit([Put(network("a"))], Writer.ORCHESTRATOR)
        await until(lambda: bool((n := world.network("a")) and n.vni))
        assert not world.task.done()


@pytest.mark.parametrize("outcome", ["refused", "unknown, done", "unknown, not done"])
async def test_a_store_that_cannot_write_is_tried_again(outcome: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leaders, "FAILURE_PAUSE_S", 0.05)
    core = once(lambda _: put(Writer.ORCHESTRATOR, network("made")))
    calls: list[int] = []

    def first_time_badly(snapshot: Snapshot, now_ms: int) -> Decision:
        if not calls:
            world.backend.next_outcomes(outcome)  # type: ignore[arg-type]
        calls.append(now_ms)
        return core(snapshot, now_ms)

    async with leading(first_time_badly) as world:
        await until(lambda: world.network("made") is not None and len(calls) > 1)
        assert not world.task.done()


async def test_one_change_that_breaks_a_rule_does_not_hold_up_the_others() -> None:
    """The scheduler cannot end a task; the networks that it wants as well are made."""
    task = Task(
        id="t",
        service_id="s",
        service_name="s",
        slot=1,
        node_id="n",
        spec=TaskSpec(process=ProcessSpec(command=("true",))),
        status=TaskStatus(state=S.RUNNING),
    )

    def decision(snapshot: Snapshot) -> Decision:
        found = snapshot.get(Task, "t")
        assert found is not None
        bad = msgspec.structs.replace(found, status=TaskStatus(state=S.FAILED))
        return put(Writer.SCHEDULER, network("before"), bad, network("made"))

    async with leading(once(decision), objects=(task,)) as world:
        await until(lambda: world.network("made") is not None)
        assert world.network("before") is not None
        after = world.store.view().get(Task, "t")
        assert after is not None
        assert after.status.state == S.RUNNING


async def test_a_decision_of_many_changes_is_split() -> None:
    many = [network(f"n{i:03d}") for i in range(450)]
    async with leading(once(lambda _: put(Writer.ORCHESTRATOR, *many, network("made")))) as world:
        await until(lambda: world.network("made") is not None)
        assert len(world.store.view().all(Network)) == 451


async def test_an_object_changed_twice_is_changed_once_at_a_time() -> None:
    """Otherwise the store would refuse the same decision for ever."""

    def core(snapshot: Snapshot, now_ms: int) -> Decision:
        found = snapshot.get(Network, "a")
        if found is None:
            return put(Writer.ORCHESTRATOR, network("a", vni=5), network("a", vni=6))
        return Decision()

    async with leading(core) as world:
        await until(lambda: world.network("a") is not None)
        assert world.network("a") == msgspec.structs.replace(network("a", vni=5), meta=Meta(version=2))


def test_first_of_each_tells_objects_apart_by_kind_and_id() -> None:
    changes = [
        (Writer.ORCHESTRATOR, Put(network("a"))),
        (Writer.ORCHESTRATOR, Delete(Network, "a")),
        (Writer.ALLOCATOR, Delete(Task, "a")),
        (Writer.ORCHESTRATOR, Put(network("b"))),
    ]
    assert list(first_of_each(changes)) == [changes[0], changes[2], changes[3]]


async def test_it_waits_for_whoever_decides_just_now() -> None:
    core = once(lambda _: put(Writer.ORCHESTRATOR, network("made")))
    async with leading(core) as world:
        async with world.lock:
            await asyncio.sleep(0.1)
            assert world.network("made") is None
        await until(lambda: world.network("made") is not None)


async def how_it_ends(core: Decide, meanwhile: Callable[[World], Awaitable[None]]) -> BaseException:
    """What the leader's loop ends with after `meanwhile`."""
    try:
        async with leading(core) as world:
            await asyncio.sleep(0.05)
            await meanwhile(world)
            await asyncio.sleep(5)
    except ExceptionGroup as group:
        (ended,) = group.exceptions
        assert isinstance(ended, StoreError | ZeroDivisionError)
        return ended
    raise AssertionError("it goes on")


async def nothing(world: World) -> None:
    pass


async def test_it_ends_with_its_term() -> None:
    async def depose(world: World) -> None:
        world.backend.depose("other")

    made = iter(range(1000))
    ended = await how_it_ends(lambda _s, _n: put(Writer.ORCHESTRATOR, network(f"n{next(made)}")), depose)
    assert isinstance(ended, NotLeader)


async def test_it_ends_with_the_store() -> None:
    async def close(world: World) -> None:
        await world.store.close()

    assert isinstance(await how_it_ends(lambda _s, _n: Decision(), close), StoreClosed)


async def test_a_mistake_in_a_core_is_not_hidden() -> None:
    def broken(snapshot: Snapshot, now_ms: int) -> Decision:
        raise ZeroDivisionError

    assert isinstance(await how_it_ends(broken, nothing), ZeroDivisionError)
