"""Balancing by maps: slots by weight, moved as little as can be, and the elements that follow."""

from __future__ import annotations

from collections import Counter
from ipaddress import IPv4Address

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mesh.vip import maps
from mesh.vip.maps import Group
from mesh.vip.plan import Backend, VirtualService
from mesh.vip.rules import Key

VIP = IPv4Address("10.1.0.200")
TASKS = [IPv4Address("10.1.0.10") + n for n in range(8)]


def service(*weights: int) -> VirtualService:
    return VirtualService(VIP, None, None, None, tuple(map(Backend, TASKS, weights)), "wrr")


def published(*weights: int, port: int = 8080) -> VirtualService:
    return VirtualService(VIP, "tcp", port, 80, tuple(map(Backend, TASKS, weights)), "wrr")


def applied(held: dict[str, dict[Key, Key]], edits: list[maps.Edit]) -> dict[str, dict[Key, Key]]:
    """The elements after edits, checked as the kernel would."""
    after = {name: dict(content) for name, content in held.items()}
    for one in edits:
        content = after.setdefault(one.map.name, {})
        for key in one.delete:
            del content[key]
        for key, value in one.add.items():
            assert key not in content
            content[key] = value
    return after


@pytest.mark.parametrize(
    ("weights", "slots"),
    [((1, 1), [1, 1]), ((5, 5), [1, 1]), ((4, 2), [2, 1]), ((0, 3), [1]), ((0, 0), []), ((), [])],
)
def test_slots_are_the_smallest_numbers_in_the_proportion_of_the_weights(
    weights: tuple[int, ...], slots: list[int]
) -> None:
    assert list(maps.shares(service(*weights).backends).values()) == slots


def test_the_slots_of_one_service_are_bounded_and_every_backend_keeps_one() -> None:
    found = maps.shares(service(1, 100_000, 99_999).backends)
    assert sum(found.values()) <= maps.MAX_WEIGHT_SLOTS + len(found)
    assert found[int(TASKS[0])] == 1


def test_a_backend_named_twice_has_the_sum_of_its_weights() -> None:
    assert maps.shares([Backend(TASKS[0], 1), Backend(TASKS[1], 3), Backend(TASKS[0], 2)]) == {
        int(TASKS[0]): 1,
        int(TASKS[1]): 1,
    }


def test_copies_of_a_backend_are_spread_among_the_others() -> None:
    group = maps.arrange(service(2, 1, 1), None)
    assert [group.slots[slot] == (int(TASKS[0]),) for slot in range(4)] in (
        [True, False, False, True],
        [True, False] * 2,
    )


def test_every_node_begins_at_another_backend() -> None:
    firsts = {maps.arrange(service(1, 1, 1), None, turn).slots[0] for turn in (10, 11, 12)}
    assert len(firsts) == 3


def test_one_backend_less_moves_one_slot() -> None:
    before = maps.arrange(service(1, 1, 1, 1), None)
    after = maps.arrange(service(0, 1, 1, 1), before)
    moved = [slot for slot, target in after.slots.items() if before.slots[slot] != target]
    assert len(moved) <= 1
    assert after.chain == maps.arrange(service(1, 1, 1), None).chain


def test_a_service_that_has_not_changed_is_passed_over() -> None:
    held = maps.groups({}, {(1,): service(1, 1)}, 0)
    again = maps.groups(held, {(1,): service(1, 1)}, 5)
    assert again[(1,)] is held[(1,)]


def test_a_group_read_from_the_kernel_in_another_order_is_as_good() -> None:
    read = Group("any2_8", {0: (int(TASKS[1]),), 1: (int(TASKS[0]),)})
    wanted = maps.groups({maps.service_key(service()): read}, maps.merged([service(1, 1)]), 0)
    assert not any(one.delete or one.add for one in maps.edits({maps.service_key(service()): read}, wanted))


def test_services_that_share_a_key_share_their_backends() -> None:
    first = VirtualService(VIP, "tcp", 80, 80, (Backend(TASKS[0]),))
    second = VirtualService(VIP, "tcp", 80, 80, (Backend(TASKS[1]),))
    (both,) = maps.merged([first, second]).values()
    assert [backend.address for backend in both.backends] == TASKS[:2]


_weights = st.lists(st.integers(0, 4), max_size=6).map(tuple)
_plans = st.dictionaries(st.sampled_from(["vip", 8080, 8081]), _weights, max_size=3)


def _services(plan: dict[object, tuple[int, ...]]) -> list[VirtualService]:
    return [
        service(*weights) if name == "vip" else published(*weights, port=int(str(name)))
        for name, weights in plan.items()
    ]


@given(steps=st.lists(_plans, min_size=1, max_size=5), turn=st.integers(0, 9))
@settings(max_examples=100, deadline=None)
def test_any_plan_follows_on_any_other_and_a_fresh_process_finds_nothing_to_do(
    steps: list[dict[object, tuple[int, ...]]], turn: int
) -> None:
    elements: dict[str, dict[Key, Key]] = {one.name: {} for one in maps.MAPS}
    held: dict[Key, Group] = {}
    for plan in steps:
        services = maps.merged(_services(plan))
        wanted = maps.groups(held, services, turn)
        elements = applied(elements, maps.edits(held, wanted))
        held = wanted
        table = maps.table(maps.chain_names(wanted.values()))
        chains = {chain.name: chain.rules for chain in table.chains}
        for key, one in services.items():
            shares = maps.shares(one.backends)
            name = maps.family(key).name
            if not shares:
                assert key not in elements[name]
                continue
            (chain,) = elements[name][key]
            size = sum(shares.values())
            # The chain is there, counts to the number of slots, and falls back to slot 0.
            assert f"numgen inc mod {size} " in chains[str(chain)][0]
            assert chain == f"{name}1" or chains[str(chain)][1] == f"goto {name}1"
            assert f"{name}1" in chains
            slots = {k[-1]: v for k, v in elements[f"{name}_to"].items() if k[:-1] == key}
            assert sorted(slots) == list(range(size))
            assert Counter(slots.values()) == {(address,): count for address, count in shares.items()}
            if one.target_port is not None:
                assert elements[f"{name}_target"][key] == (one.target_port,)
        used = {str(value[0]) for name in ("any", "port") for value in elements[name].values()}
        spare = {f"{name}1" for name in ("any", "port")}
        assert chains.keys() - spare - {"balance"} <= used
        fresh = maps.read(elements)
        assert not any(e.delete or e.add for e in maps.edits(fresh, maps.groups(fresh, services, turn + 1)))


@given(
    slots=st.dictionaries(st.integers(0, 9), st.sampled_from([(int(t),) for t in TASKS[:4]]), max_size=6),
    chain=st.sampled_from([None, "any2_8", "nonsense"]),
    weights=_weights,
)
@settings(max_examples=100, deadline=None)
def test_whatever_the_kernel_holds_is_brought_to_the_plan(
    slots: dict[int, Key], chain: str | None, weights: tuple[int, ...]
) -> None:
    key = maps.service_key(service())
    elements: dict[str, dict[Key, Key]] = {one.name: {} for one in maps.MAPS}
    elements["any_to"] = {(*key, slot): target for slot, target in slots.items()}
    if chain is not None:
        elements["any"] = {key: (chain,)}
    held = maps.read(elements)
    after = applied(elements, maps.edits(held, maps.groups(held, maps.merged([service(*weights)]), 0)))
    size = sum(maps.shares(service(*weights).backends).values())
    assert sorted(int(k[-1]) for k in after["any_to"]) == list(range(size))
    assert len(after["any"]) == (1 if size else 0)


def test_chains_that_nobody_uses_stay_until_there_are_too_many_of_them() -> None:
    few = Counter({"any3_1": 2, "any4_7": 0, "v6port2_3": -1, "anyk600": 0, "note": 0})
    assert maps.with_spares(few) == {"any3_1": 2, "any4_7": 0, "v6port2_3": 0}
    many = Counter(dict.fromkeys((f"any{size}_0" for size in range(2, maps.MAX_SPARE_CHAINS + 3)), 0))
    many["any2_1"] = 1
    assert maps.with_spares(many) == {"any2_1": 1}
