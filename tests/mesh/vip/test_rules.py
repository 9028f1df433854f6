"""The table as a value: transactions by difference, in an order that the kernel takes."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mesh.vip import rules
from mesh.vip.rules import Chain, Held, HeldChain, Hook, Kind, Map, Shape, Table

BASE = Hook("nat", "prerouting", -100)
NUMBERS = Map("numbers", "type ipv4_addr : mark", (Kind.ADDRESS,), (Kind.MARK,))
VERDICTS = Map("verdicts", "type ipv4_addr : verdict", (Kind.ADDRESS,), (Kind.CHAIN,))
NAMES = Map("names", "type ipv4_addr . inet_service", (Kind.ADDRESS, Kind.PORT))
WANTED = Table(
    (NUMBERS, NAMES),
    (Chain("to", ("accept",)), Chain("in", ("ip daddr @names goto to", "drop"), BASE)),
    {"numbers": {(0x0A000001,): (7,)}, "names": {(0x0A000001, 80): ()}},
)
KNOWN = frozenset({"known"})


def made(table: Table) -> Held:
    """The table after it was made from nothing."""
    return rules.advance(None, table, rules.own_edits(Held(), table))


def step(held: Held | None, table: Table) -> rules.Transaction | None:
    return rules.transaction(held, table, rules.own_edits(held or Held(), table))


def lines(held: Held | None, table: Table) -> list[str]:
    done = step(held, table)
    return done.text.splitlines() if done is not None else []


def test_a_table_is_made_from_nothing_in_one_transaction_with_tagged_rules() -> None:
    tags = {rule: rules.tag(rule) for chain in WANTED.chains for rule in chain.rules}
    assert lines(None, WANTED) == [
        "add table inet mesh",
        "delete table inet mesh",
        "add table inet mesh",
        "add map inet mesh numbers { type ipv4_addr : mark; }",
        "add set inet mesh names { type ipv4_addr . inet_service; }",
        "add chain inet mesh to",
        "add chain inet mesh in { type nat hook prerouting priority -100; policy accept; }",
        f'add rule inet mesh to accept comment "{tags["accept"]}"',
        f'add rule inet mesh in ip daddr @names goto to comment "{tags["ip daddr @names goto to"]}"',
        f'add rule inet mesh in drop comment "{tags["drop"]}"',
        "add element inet mesh numbers { 10.0.0.1 : 7 }",
        "add element inet mesh names { 10.0.0.1 . 80 }",
    ]


def test_what_changes_nothing_but_elements_is_told_as_edits() -> None:
    other = Table(WANTED.maps, WANTED.chains, {"numbers": {(0x0A000001,): (8,)}, "names": {(0x0A000001, 80): ()}})
    done = step(made(WANTED), other)
    assert done is not None
    assert done.edits is not None
    assert [(one.map, one.delete, one.add) for one in done.edits] == [
        (NUMBERS, frozenset({(0x0A000001,)}), {(0x0A000001,): (8,)})
    ]
    more = Table((*other.maps, VERDICTS), (*other.chains, Chain("more", ())), other.elements)
    for held, wanted in ((None, other), (made(WANTED), more), (made(more), WANTED)):
        done = step(held, wanted)
        assert done is not None
        assert done.edits is None


def test_a_table_that_is_as_wanted_needs_no_transaction() -> None:
    assert step(made(WANTED), WANTED) is None


def test_a_changed_element_is_deleted_and_added_and_nothing_else_is_touched() -> None:
    changed = Table(WANTED.maps, WANTED.chains, {**WANTED.elements, "numbers": {(0x0A000001,): (8,)}})
    assert lines(made(WANTED), changed) == [
        "delete element inet mesh numbers { 10.0.0.1 }",
        "add element inet mesh numbers { 10.0.0.1 : 8 }",
    ]
    done = step(made(WANTED), changed)
    assert done is not None
    assert done.changes == Counter({"vip element": 1})


def test_a_chain_with_other_rules_gets_all_of_them_anew_and_the_others_none() -> None:
    held = made(WANTED)
    held.chains["in"] = HeldChain(BASE, accepts=True, tags=(*held.chains["in"].tags, ""))
    text = lines(held, WANTED)
    assert text[0] == "flush chain inet mesh in"
    assert [line.split()[:5] for line in text[1:]] == [["add", "rule", "inet", "mesh", "in"]] * 2


def test_what_is_not_wanted_goes_after_all_that_refers_to_it() -> None:
    more = Table(
        (*WANTED.maps, VERDICTS),
        (*WANTED.chains, Chain("more", ("accept",)), Chain("most", ("ip daddr vmap @verdicts", "goto more"))),
        {**WANTED.elements, "verdicts": {(0x0A000001,): ("more",)}},
    )
    text = lines(made(more), WANTED)
    assert text == [
        "flush chain inet mesh more",
        "flush chain inet mesh most",
        "delete chain inet mesh more",
        "delete chain inet mesh most",
        "delete map inet mesh verdicts",
    ]
    assert [line for line in lines(made(WANTED), more) if "element" in line] == [
        "add element inet mesh verdicts { 10.0.0.1 : goto more }"
    ]


def test_a_chain_is_deleted_after_the_elements_that_lead_to_it() -> None:
    both = (Chain("a", ("accept",)), Chain("b", ("drop",)))
    before = Table((VERDICTS,), both, {"verdicts": {(1,): ("a",)}})
    after = Table((VERDICTS,), both[1:], {"verdicts": {(1,): ("b",)}})
    text = lines(made(before), after)
    assert text.index("delete element inet mesh verdicts { 0.0.0.1 }") < text.index("delete chain inet mesh a")
    assert text.index("add element inet mesh verdicts { 0.0.0.1 : goto b }") < text.index("delete chain inet mesh a")


@pytest.mark.parametrize(
    "spoil",
    [
        lambda held: setattr(held, "dormant", True),
        lambda held: held.maps.update(numbers=Shape(4, 8, verdict=False)),
        lambda held: held.chains.update({"in": HeldChain(Hook("nat", "prerouting", 5), True, ())}),
        lambda held: held.chains.update({"in": HeldChain(BASE, False, held.chains["in"].tags)}),
        lambda held: held.chains.update({"to": HeldChain(BASE, True, held.chains["to"].tags)}),
    ],
    ids=["dormant", "other lengths", "other priority", "other policy", "hooked"],
)
def test_a_table_of_another_shape_cannot_be_brought_there_piece_by_piece(spoil: object) -> None:
    held = made(WANTED)
    assert rules.compatible(held, WANTED)
    assert callable(spoil)
    spoil(held)
    assert not rules.compatible(held, WANTED)


def test_many_elements_come_in_commands_of_bounded_length() -> None:
    many = Table((NUMBERS,), (), {"numbers": {(number,): (1,) for number in range(2500)}})
    adds = [line for line in lines(None, many) if line.startswith("add element")]
    assert [line.count(" : ") for line in adds] == [1000, 1000, 500]


_elements = st.dictionaries(st.tuples(st.integers(0, 5)), st.tuples(st.integers(0, 3)), max_size=6)


@given(held=_elements, wanted=_elements)
@settings(max_examples=100, deadline=None)
def test_an_edit_leads_from_any_elements_to_any_others_and_touches_only_what_differs(
    held: dict[rules.Key, rules.Key], wanted: dict[rules.Key, rules.Key]
) -> None:
    before = Table((NUMBERS,), (), {"numbers": held})
    after = Table((NUMBERS,), (), {"numbers": wanted})
    (one,) = rules.own_edits(made(before), after)
    assert rules.advance(made(before), after, [one]).elements["numbers"] == wanted
    assert one.delete | one.add.keys() == {key for key, _ in held.items() ^ wanted.items()}
    # An element cannot be added over another: those that change are deleted first.
    assert one.delete >= one.add.keys() & held.keys()


def test_lengths_are_those_of_the_kernel() -> None:
    assert NUMBERS.shape == Shape(4, 4, verdict=False)
    assert VERDICTS.shape == Shape(4, 0, verdict=True)
    assert NAMES.shape == Shape(8, 0, verdict=False)
    assert Map("m", "", (Kind.MAC,), (Kind.MARK,)).shape == Shape(6, 4, verdict=False)
    assert Map("m", "", (Kind.ADDRESS, Kind.PROTOCOL, Kind.PORT, Kind.SLOT)).shape == Shape(16, 0, verdict=False)


def test_a_flowtable_is_there_before_the_rule_that_fills_it_and_goes_after_it() -> None:
    fast = Table(WANTED.maps, (*WANTED.chains, Chain("pass", ("flow add @known",), BASE)), WANTED.elements, KNOWN)
    text = lines(made(WANTED), fast)
    assert text[0] == "add flowtable inet mesh known { hook ingress priority 0; }"
    assert "flow add @known" in text[-1]
    assert step(made(fast), fast) is None
    assert lines(made(fast), WANTED) == [
        "flush chain inet mesh pass",
        "delete chain inet mesh pass",
        "delete flowtable inet mesh known",
    ]
    assert (WANTED + fast).flowtables == {"known"}


def test_a_flowtable_that_nobody_fills_is_no_change_of_elements() -> None:
    alone = Table(WANTED.maps, WANTED.chains, WANTED.elements, KNOWN)
    for held, wanted in ((made(WANTED), alone), (made(alone), WANTED)):
        done = step(held, wanted)
        assert done is not None
        assert done.edits is None
