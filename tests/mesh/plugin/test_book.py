"""Leased addresses: given once, the longest free first; kept over repeated calls, given back when they rest."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from control.model import Lease, PortSpec
from mesh.plugin.book import HOLD_MS, Book, BookError, Entry, occupied

LEASES = [
    Lease(id="w/n/0", node_id="n", network_id="w", block="10.1.0.16/30"),
    Lease(id="w/n/1", node_id="n", network_id="w"),
    Lease(id="d/n/0", node_id="n", network_id="d", block="10.2.0.16/30"),
]


def entry(name: str, address: str, **fields: object) -> Entry:
    return Entry(id=name, network_id="w", address=address, **fields)  # type: ignore[arg-type]


def test_each_address_is_given_once_and_the_longest_free_first() -> None:
    book, given = Book(), []
    for now_ms in range(4):
        book, address = book.request("w", LEASES, "", now_ms)
        given.append(address)
    assert sorted(given) == ["10.1.0.16", "10.1.0.17", "10.1.0.18", "10.1.0.19"]
    with pytest.raises(BookError, match="no address left"):
        book.request("w", LEASES, "", 9)
    book = book.release("w", given[2], 10).release("w", given[0], 11)
    assert book.request("w", LEASES, "", 12)[1] == given[2]


def test_an_address_may_be_asked_for_if_it_is_leased_and_free() -> None:
    book, address = Book().request("w", LEASES, "10.1.0.18", 0)
    assert address == "10.1.0.18"
    with pytest.raises(BookError, match=r"10\.1\.0\.18 is in use"):
        book.request("w", LEASES, "10.1.0.18", 0)
    with pytest.raises(BookError, match=r"not leased to this node: it has 10\.1\.0\.16/30"):
        book.request("w", LEASES, "10.2.0.17", 0)


def test_calls_may_be_repeated() -> None:
    book, address = Book().request("w", LEASES, "", 0)
    once = book.create(entry("e", address), 1)
    joined = once.change("e", sandbox="/s")
    assert joined.create(entry("e", address), 1) == joined, "a second CreateEndpoint changes nothing"
    with pytest.raises(BookError, match="in use"):
        joined.create(entry("other", address), 1)
    assert joined.release("w", address, 2) == joined, "an endpoint has it"
    gone = joined.delete("e", 3).delete("e", 3)
    assert gone.release("w", address, 4) == gone.release("w", address, 4).release("w", address, 5)
    assert gone.change("e", sandbox="/t") == gone


def test_what_the_engine_has_forgotten_is_swept_once_it_is_old() -> None:
    book, held = Book().request("w", LEASES, "", 0)
    book, address = book.request("w", LEASES, "", 0)
    book = book.create(entry("e", address), 0)
    book, other = book.request("w", LEASES, "", 0)
    book = book.create(entry("a", other, adopted=True, container="c1"), 0)
    assert book.swept((), HOLD_MS) == book
    assert set(book.swept(("e", "c1"), HOLD_MS + 1).held) == {f"w {address}", f"w {other}"}
    assert book.swept((), HOLD_MS + 1).held == {}
    assert held not in (address, other)


def test_another_lease_is_wished_for_before_the_last_address_is_given() -> None:
    assert Book().wishes(["w", "x"], LEASES) == {"w": 1, "x": 1}
    assert Book().request("w", LEASES, "", 0)[0].wishes(["w"], LEASES) == {"w": 2}


def test_a_port_of_the_machine_is_published_once() -> None:
    def port(**fields: object) -> PortSpec:
        return PortSpec(**({"target": 80, "published": 8080, "mode": "host"} | fields))  # type: ignore[arg-type]

    entries = {"e": entry("e", "10.1.0.16", ports=(port(address="192.0.2.1"),))}
    assert occupied(entries, port())
    assert occupied(entries, port(address="192.0.2.1"))
    assert not occupied(entries, port(address="192.0.2.2"))
    assert not occupied(entries, port(protocol="udp"))
    assert not occupied(entries, port(), but="e")


steps = st.lists(
    st.tuples(st.sampled_from(["request", "create", "delete", "release", "sweep"]), st.integers(0, 5)), max_size=40
)


@settings(max_examples=100, deadline=None)
@given(steps)
def test_no_two_endpoints_ever_share_an_address(script: list[tuple[str, int]]) -> None:
    book, given = Book(), [""]
    for now_ms, (step, number) in enumerate(script):
        address, name = given[number % len(given)], f"e{number}"
        try:
            if step == "request":
                book, address = book.request("w", LEASES, "", now_ms)
                given.append(address)
            elif step == "create" and address:
                book = book.create(entry(name, address), now_ms)
            elif step == "delete":
                book = book.delete(name, now_ms)
            elif step == "release":
                book = book.release("w", address, now_ms)
            else:
                book = book.swept((), now_ms + HOLD_MS)
        except BookError:
            pass
        taken = [e.address for e in book.entries.values()]
        assert len(taken) == len(set(taken))
        assert all(f"w {a}" in book.held for a in taken)
        assert msgspec.json.decode(msgspec.json.encode(book), type=Book) == book
