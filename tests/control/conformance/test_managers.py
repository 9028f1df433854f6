"""What `control.store.backend` promises where there are several managers, the same for every backend that has them."""

import asyncio
import random
from itertools import pairwise

import pytest

from control.store.backend import Committed, Following, Leading, Replaced
from tests.control.conformance.seen import PATIENCE_S, Seen, names, opened, outcome, put

pytestmark = pytest.mark.needs("several")


async def all_opened(world) -> list[Seen]:
    """Everybody; the first leads or follows as it comes."""
    return [await opened(await world.open(i)) for i in range(world.managers)]


async def leader_of(seen: list[Seen]) -> Seen:
    """The one that leads."""
    async with asyncio.timeout(PATIENCE_S):
        while not (leaders := [s for s in seen if s.term is not None and s.backend.status().role == "leader"]):
            await asyncio.sleep(0.02)
    return max(leaders, key=lambda s: s.term)


def others(all_seen: list[Seen], one: Seen) -> list[Seen]:
    return [s for s in all_seen if s is not one]


async def close(all_seen: list[Seen]) -> None:
    for seen in all_seen:
        await seen.backend.close()


# --- followers --------------------------------------------------------------------------------------------------------


async def test_one_leads_and_the_others_know_it(world):
    managers = await all_opened(world)
    leader = await leader_of(managers)
    node_id = leader.backend.status().leader
    for follower in others(managers, leader):
        await follower.until(lambda f=follower: f.leader == node_id)
        assert follower.backend.status().role == "follower"
        assert follower.backend.status().leader == node_id
        async with asyncio.timeout(PATIENCE_S):
            while len(follower.backend.members()) < world.managers:
                await asyncio.sleep(0.02)
        assert [m.node_id for m in follower.backend.members() if m.leader] == [node_id]
    await close(managers)


async def test_everybody_gets_every_commit_in_order(world):
    """`Seen` checks that there is no gap."""
    managers = await all_opened(world)
    leader = await leader_of(managers)
    futures = [leader.commit(put(f"{i}"), put("hot", expected=i - 1), version=i) for i in range(1, 201)]
    assert {await outcome(f) for f in futures} == {"done"}
    for seen in managers:
        await seen.at(200)
        assert seen.rows == leader.rows
        assert [d.version for d in seen.log if isinstance(d, Committed)] == list(range(1, 201))
    await close(managers)


async def test_a_follower_writes_nothing(world):
    managers = await all_opened(world)
    leader = await leader_of(managers)
    await leader.commit(put("a"))
    for follower in others(managers, leader):
        await follower.at(1)
        assert await outcome(follower.commit(put("b"), term=leader.term)) == "NotLeader"
        assert await outcome(follower.commit(put("b"), term=leader.term + 1)) == "NotLeader"
    assert await leader.backend.barrier() == 1
    await close(managers)


async def test_a_barrier_anywhere_is_not_below_what_was_acknowledged_anywhere(world):
    managers = await all_opened(world)
    leader = await leader_of(managers)
    for i in range(1, 8):
        await leader.commit(put(f"{i}"))
        for seen in managers:
            assert await seen.backend.barrier() >= i
    await close(managers)


async def test_one_that_opens_late_has_everything(world):
    first = await opened(await world.open(0))
    await first.leading()
    futures = [first.commit(put(f"{i}"), version=i) for i in range(1, 51)]
    for future in futures:
        await future
    late = await opened(await world.open(1))
    await late.at(50)
    await first.commit(put("more"))
    await late.at(51)
    assert late.rows == first.rows
    await close([first, late])


async def test_one_that_opens_while_others_write_misses_nothing(world):
    first = await opened(await world.open(0))
    await first.leading()
    futures = [first.commit(put(f"{i}", b"x" * 2000), version=i) for i in range(1, 301)]
    late = await opened(await world.open(1))
    for future in futures:
        await future
    await late.at(300)
    assert late.rows == first.rows
    await close([first, late])


async def test_a_slow_subscriber_gets_everything_in_order(world):
    """One whose loop is busy with each delivery; `Seen` checks the order."""
    managers = await all_opened(world)
    leader = await leader_of(managers)
    slow = others(managers, leader)[0]
    slow.delay_s = 0.01
    version = 0
    for _ in range(4):
        futures = [leader.commit(put(f"{i}"), version=i) for i in range(version + 1, version + 26)]
        version += 25
        for future in futures:
            await future
    await slow.at(version)
    assert slow.rows == leader.rows
    await close(managers)


# --- changes of leadership --------------------------------------------------------------------------------------------


async def test_a_leader_that_closes_hands_over(world):
    managers = await all_opened(world)
    leader = await leader_of(managers)
    await leader.commit(put("a"))
    term = leader.term
    await leader.backend.close()
    rest = others(managers, leader)
    new = await leader_of(rest)
    assert new.term > term
    assert names(new) == ["a"]
    assert await outcome(new.commit(put("b"))) == "done"
    for seen in rest:
        await seen.at(2)
    await close(rest)


async def test_leading_comes_after_everything_of_earlier_terms(world):
    managers = await all_opened(world)
    leader = await leader_of(managers)
    futures = [leader.commit(put(f"{i}"), version=i) for i in range(1, 101)]
    await futures[50]
    leader.backend.close()
    acknowledged = [await outcome(f) for f in futures].count("done")
    rest = others(managers, leader)
    new = await leader_of(rest)
    at = next(i for i, d in enumerate(new.log) if isinstance(d, Leading))
    before = [d.version for d in new.log[:at] if isinstance(d, Committed)]
    assert len(before) >= acknowledged
    assert not [d for d in new.log[at:] if isinstance(d, Committed)]
    assert await outcome(new.commit(put("more"))) == "done"
    await close(rest)
    await leader.backend.close()


@pytest.mark.needs("several", "cut")
@pytest.mark.parametrize("writes_first", [True, False])
async def test_a_leader_that_is_cut_off_steps_down_and_is_fenced(world, writes_first):
    """What it had sent arrives late: after a commit of the new leader, or before, but not after `Leading`."""
    managers = await all_opened(world)
    leader = await leader_of(managers)
    await leader.commit(put("a"))
    term, number = leader.term, managers.index(leader)
    world.cut(number)
    under_way = [leader.commit(put(f"lost{i}"), version=2 + i) for i in range(3)]
    told = []
    for future in under_way:
        future.add_done_callback(lambda _: told.append(isinstance(leader.log[-1], Following)))
    new = await leader_of(others(managers, leader))
    assert new.term > term
    # By the time somebody else leads, it does not: its loops cannot act on what is no longer so.
    assert leader.term is None
    assert {await outcome(f) for f in under_way} <= {"OutcomeUnknown", "NotLeader"}
    assert all(told), "a commit failed before Following was delivered"
    assert await outcome(leader.commit(put("late"), term=term)) == "NotLeader"
    found = names(new)
    assert found in (["a"], ["a", "lost0", "lost1", "lost2"])
    if writes_first:
        assert await outcome(new.commit(put("b"))) == "done"
        world.heal(number)
    else:
        world.heal(number)
        await asyncio.sleep(0.3)
        assert names(new) == found, "a commit of an earlier term came after Leading"
        assert await outcome(new.commit(put("b"))) == "done"
    await leader.at(new.version)
    assert leader.rows == new.rows
    assert names(new) == sorted([*found, "b"])
    await close(managers)


@pytest.mark.needs("several", "cut")
async def test_a_follower_that_was_cut_off_gets_what_it_missed(world):
    managers = await all_opened(world)
    leader = await leader_of(managers)
    await leader.commit(put("a"))
    follower = others(managers, leader)[0]
    await follower.at(1)
    world.cut(managers.index(follower))
    for i in range(2, 12):
        await leader.commit(put(f"{i}"))
    await asyncio.sleep(0.1)
    assert follower.version == 1
    world.heal(managers.index(follower))
    await follower.at(11)
    assert follower.rows == leader.rows
    await close(managers)


@pytest.mark.needs("several", "cut", "forget")
async def test_one_that_fell_too_far_behind_gets_the_whole_state(world):
    managers = await all_opened(world)
    leader = await leader_of(managers)
    await leader.commit(put("a"), put("gone"))
    follower = others(managers, leader)[0]
    await follower.at(1)
    await break_off(world, managers.index(follower))
    for i in range(2, 12):
        await leader.commit(put(f"{i}"))
    await world.forget_history()
    world.heal(managers.index(follower))
    await follower.at(11)
    assert [type(d) for d in follower.log if not isinstance(d, Following | Leading)][-1] is Replaced
    assert follower.rows == leader.rows
    await leader.commit(put("b"))
    await follower.at(12)
    assert isinstance(follower.log[-1], Committed)
    await close(managers)


@pytest.mark.needs("several", "cut", "forget")
async def test_history_that_is_forgotten_disturbs_nobody_who_has_it(world):
    managers = await all_opened(world)
    leader = await leader_of(managers)
    for i in range(1, 4):
        await leader.commit(put(f"{i}"))
        for seen in managers:
            await seen.at(i)
        await world.forget_history()
    for seen in managers:
        await break_off(world, managers.index(seen))
        world.heal(managers.index(seen))
    await asyncio.sleep(0.5)
    assert not [d for seen in managers for d in seen.log if isinstance(d, Replaced)]
    new = await leader_of(managers)
    assert await outcome(new.commit(put("b"))) == "done"
    for seen in managers:
        await seen.at(4)
        assert seen.rows == new.rows
    await close(managers)


async def break_off(world, manager: int) -> None:
    """Cut it off, and let nothing of the connection survive."""
    world.cut(manager)
    world.drop(manager)
    await asyncio.sleep(0.05)


# --- exactly once -----------------------------------------------------------------------------------------------------


@pytest.mark.needs("several", "cut")
@pytest.mark.parametrize("seed", [1, 2])
async def test_acknowledged_writes_happen_exactly_once_whatever_happens(world, seed):
    """Writers at whoever leads, while managers are cut off and come back: every write is a row of its own.

    Acknowledged: there, once. Refused or not the leader: never there. Unknown: either. And everybody agrees.
    """
    rng = random.Random(seed)
    managers = await all_opened(world)
    outcomes: dict[str, str] = {}
    ended = asyncio.Event()

    async def writer(name: int) -> None:
        number = 0
        while not ended.is_set():
            leader = next((s for s in managers if s.term is not None), None)
            if leader is None:
                await asyncio.sleep(0.02)
                continue
            number += 1
            id_ = f"{name}-{number}"
            outcomes[id_] = await outcome(leader.commit(put(id_)))
            await asyncio.sleep(0.002)

    async with asyncio.TaskGroup() as group:
        for name in range(3):
            group.create_task(writer(name))
        for _ in range(3):
            await asyncio.sleep(rng.uniform(0.2, 0.5))
            leader = await leader_of(managers)
            victim = managers.index(leader if rng.random() < 0.7 else rng.choice(managers))
            world.cut(victim)
            await asyncio.sleep(rng.uniform(0.1, 2.5))
            world.heal(victim)
        await leader_of(managers)
        async with asyncio.timeout(60):
            while list(outcomes.values()).count("done") <= 20:
                await asyncio.sleep(0.01)
        ended.set()
    last = await (await leader_of(managers)).backend.barrier()
    for seen in managers:
        await seen.at(last)
    rows = managers[0].rows
    assert all(seen.rows == rows for seen in managers)
    there = {id_ for _, id_ in rows}
    assert {i for i, end in outcomes.items() if end == "done"} <= there
    assert not {i for i, end in outcomes.items() if end in ("Refused", "NotLeader")} & there
    assert len({row.version for row in rows.values()}) == len(rows), "two writes in one commit"
    terms = sorted(d.term for seen in managers for d in seen.log if isinstance(d, Leading))
    assert all(a < b for a, b in pairwise(terms)), "two leaders had the same term"
    await close(managers)
