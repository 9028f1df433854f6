"""What is free is found, whole and without overlap, and no faster than it runs out."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network

from hypothesis import given, settings
from hypothesis import strategies as st

from control.allocator import pools

SUBNETS = st.integers(22, 29).map(lambda length: IPv4Network((int(IPv4Address("10.4.0.0")), length)))


@given(st.sets(st.integers(1, 30)), st.integers(0, 35))
def test_numbers_are_the_lowest_free_ones(taken: set[int], wanted: int) -> None:
    source = pools.Numbers(5, 25, taken)
    given_out = [source.take() for _ in range(wanted)]
    free = [n for n in range(5, 26) if n not in taken]
    assert given_out == (free + [None] * wanted)[:wanted]


@settings(max_examples=60, deadline=None)
@given(SUBNETS, st.data())
def test_every_usable_address_is_handed_out_once(subnet: IPv4Network, data: st.DataObject) -> None:
    everything = [str(a) for a in subnet]
    taken = set(data.draw(st.lists(st.sampled_from(everything), max_size=40)))
    last = data.draw(st.sampled_from(["", *everything]))
    source = pools.Addresses(subnet, taken, last)
    given_out = []
    while (address := source.take()) is not None:
        given_out.append(address)
    usable = {str(a) for a in subnet.hosts()} - {str(pools.gateway(subnet))}
    assert len(given_out) == len(set(given_out))
    assert set(given_out) == usable - taken
    assert len(usable) == pools.capacity(subnet)


def test_addresses_go_on_after_the_last_one_and_wrap() -> None:
    source = pools.Addresses(IPv4Network("10.4.0.0/29"), {"10.4.0.1", "10.4.0.5"}, "10.4.0.4")
    assert [source.take() for _ in range(5)] == ["10.4.0.6", "10.4.0.2", "10.4.0.3", "10.4.0.4", None]


def test_an_address_that_is_given_back_is_the_last_to_go_out_again() -> None:
    source = pools.Addresses(IPv4Network("10.4.0.0/29"), ())
    first = source.take()
    assert first == "10.4.0.2"
    source.give_back(first)
    assert [source.take() for _ in range(6)] == ["10.4.0.3", "10.4.0.4", "10.4.0.5", "10.4.0.6", "10.4.0.2", None]


def test_a_blocked_address_is_not_handed_out() -> None:
    source = pools.Addresses(IPv4Network("10.4.0.0/30"), ())
    source.block("10.4.0.2")
    source.block("192.0.2.1")  # of another network: no concern of this one
    assert source.take() is None


def test_a_huge_subnet_costs_nothing() -> None:
    source = pools.Addresses(IPv4Network("10.0.0.0/8"), {"10.0.0.2"})
    assert source.take() == "10.0.0.3"


@settings(max_examples=60, deadline=None)
@given(st.integers(16, 24), st.lists(st.tuples(st.integers(0, 255), st.integers(12, 26)), max_size=10))
def test_subnets_are_all_the_free_ones_in_order(length: int, used: list[tuple[int, int]]) -> None:
    avoid = [IPv4Network((f"10.7.{third}.0", bits), strict=False) for third, bits in used]
    texts = ["10.7.0.0/17", "10.9.0.0/20"]
    source = pools.Subnets(texts, length, avoid)
    found = []
    while (subnet := source.take()) is not None:
        found.append(subnet)
    candidates = [c for text in texts for c in _cut(IPv4Network(text), length)]
    assert found == [c for c in candidates if not any(c.overlaps(a) for a in avoid)]


def _cut(pool: IPv4Network, length: int) -> list[IPv4Network]:
    return list(pool.subnets(new_prefix=length)) if length >= pool.prefixlen else [pool]


@given(st.integers(0, (1 << 32) - 1))
def test_addresses_are_read_and_written_as_ipaddress_does(number: int) -> None:
    assert pools.text(number) == str(IPv4Address(number))
    assert pools.number(str(IPv4Address(number))) == number
