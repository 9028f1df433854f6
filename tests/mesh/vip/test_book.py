"""What a new list of services changes: always what a full comparison says."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address

from hypothesis import given, settings
from hypothesis import strategies as st

from mesh.vip import maps
from mesh.vip.book import Book, longest_idle_s, recycled
from mesh.vip.plan import Backend, VirtualService

BASE = IPv4Address("10.1.0.200")
_services = st.lists(
    st.builds(
        lambda number, port, backend, idle_s: VirtualService(
            BASE + number, "tcp" if port else None, port, port, (Backend(BASE + backend),), idle_s=idle_s
        ),
        st.integers(0, 3),
        st.sampled_from([None, 80, 81]),
        st.integers(10, 12),
        st.sampled_from([60.0, 8100.0]),
    ),
    max_size=6,
).map(tuple)


@given(lists=st.lists(_services, min_size=1, max_size=6))
@settings(max_examples=100, deadline=None)
def test_a_book_that_follows_changes_is_as_one_that_is_made_anew(lists: list[tuple[VirtualService, ...]]) -> None:
    book = Book()
    for services in lists:
        before, addresses = dict(book.by_key), set(book.addresses)
        change = book.update(services)
        fresh = Book()
        fresh.update(services)
        assert book.addresses == fresh.addresses
        assert {k: sorted(map(str, v)) for k, v in book.by_key.items()} == {
            k: sorted(map(str, v)) for k, v in fresh.by_key.items()
        }
        assert change.came == fresh.addresses.keys() - addresses
        assert change.went == addresses - fresh.addresses.keys()
        differing = {k for k in before.keys() | book.by_key.keys() if before.get(k) != book.by_key.get(k)}
        assert change.keys >= differing
        assert longest_idle_s(book, 1.0) == max((one.idle_s for one in services), default=1.0)


def test_a_list_that_is_the_same_changes_nothing_and_one_service_more_is_one_key() -> None:
    many = tuple(VirtualService(BASE + n, None, None, None, ()) for n in range(20))
    book = Book()
    book.update(many)
    assert not book.update(tuple(many)).keys
    more = VirtualService(BASE + 50, None, None, None, ())
    assert book.update((*many[:7], more, *many[7:])).keys == {maps.service_key(more)}


def test_maglev_spreads_evenly_and_moves_few_when_a_backend_goes() -> None:
    targets = {(number,): 1 for number in range(1, 11)}
    before = maps.maglev(targets)
    counts = [before.count(target) for target in targets]
    assert len(before) == maps.MAGLEV_SLOTS
    assert max(counts) - min(counts) <= 1
    del targets[(4,)]
    after = maps.maglev(targets)
    moved = sum(a != b for a, b in zip(before, after, strict=True) if a != (4,))
    assert moved < maps.MAGLEV_SLOTS // 10
    assert maps.maglev({}) == []
    assert maps.maglev({(1,): 3, (2,): 1}).count((1,)) in range(760, 772)


@given(old=_services, new=_services)
@settings(max_examples=100, deadline=None)
def test_equal_values_are_the_old_ones_again(old: tuple[VirtualService, ...], new: tuple[VirtualService, ...]) -> None:
    again = recycled(old, new)
    assert again == new
    alike = tuple(replace(one) for one in old)
    assert all(one is before for one, before in zip(recycled(old, alike), old, strict=True))


def test_equal_values_are_found_behind_a_service_that_came() -> None:
    old = tuple(VirtualService(BASE + n, None, None, None, (Backend(BASE + 100),)) for n in range(20))
    alike = tuple(replace(one) for one in old)
    newcomer = VirtualService(BASE + 50, None, None, None, ())
    again = recycled(old, (alike[0], newcomer, *alike[1:]))
    assert again[1] is newcomer
    assert all(one is before for one, before in zip((again[0], *again[2:]), old, strict=True))


def test_the_addresses_of_both_families_are_kept_as_elements() -> None:
    book, six = Book(), IPv6Address("fd00::7")
    some = tuple(VirtualService(one, None, None, None, ()) for one in (BASE, six))
    book.update((*some, VirtualService(BASE, "tcp", 80, 80, ())))
    assert book.elements == ({(int(BASE),): ()}, {(int(six),): ()})
    book.update(some[:1])
    assert book.elements == ({(int(BASE),): ()}, {})
    book.update(())
    assert book.elements == ({}, {})
