"""Which WireGuard peers a device should have, and by which keys a node is sent to."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address

from overlay import names
from overlay.plan import OverlayPlan, Peer, PublicKey, is_key
from overlay.tunnels import (
    GREETING_S,
    SESSION_S,
    Path,
    WgChange,
    WgDevice,
    WgPeer,
    changes,
    path,
    replaced,
    wanted_peers,
)

NOW_S = 1_000_000.0
OLD, NEW = PublicKey(0, "old"), PublicKey(1, "new")


def plan(*peers: Peer) -> OverlayPlan:
    return OverlayPlan(1, IPv4Address("10.0.0.1"), 4789, peers, (), wireguard_port=7947)


def peer(*keys: PublicKey, number: int = 2) -> Peer:
    return Peer(number, IPv4Address("10.0.0.2"), keys)


def test_a_peer_has_its_data_address_the_port_of_its_slot_and_one_address_inside() -> None:
    assert wanted_peers(plan(peer(OLD)), own_keys=1) == {
        "old": WgPeer(("10.0.0.2", 7947), frozenset({"169.254.0.2/32"}))
    }
    six = replace(peer(NEW), underlay=IPv6Address("fd00::2"))
    assert wanted_peers(plan(six), own_keys=1) == {"new": WgPeer(("fd00::2", 7948), frozenset({"169.254.128.2/32"}))}


def test_a_node_without_a_key_is_no_peer() -> None:
    assert wanted_peers(plan(peer()), own_keys=1) == {}


def test_peers_are_greeted_while_a_key_of_either_side_is_replaced_and_not_otherwise() -> None:
    assert [p.keepalive_s for p in wanted_peers(plan(peer(OLD)), own_keys=2).values()] == [GREETING_S]
    assert [p.keepalive_s for p in wanted_peers(plan(peer(OLD, NEW)), own_keys=1).values()] == [GREETING_S, GREETING_S]
    assert [p.keepalive_s for p in wanted_peers(plan(peer(OLD)), own_keys=1).values()] == [0]


def test_a_key_that_two_nodes_tell_is_that_of_the_first() -> None:
    both = wanted_peers(plan(peer(OLD), peer(OLD, number=3)), own_keys=1)
    assert [p.allowed for p in both.values()] == [{"169.254.0.2/32"}]


WANT = WgPeer(("10.0.0.2", 7947), frozenset({"169.254.0.2/32"}))


def test_what_is_as_it_should_be_is_left() -> None:
    assert changes({"k": replace(WANT, handshake_s=5)}, {"k": WANT}, {}, NOW_S) == []


def test_a_new_peer_gets_everything_also_without_an_address() -> None:
    assert changes({}, {"k": WANT}, {}, NOW_S) == [WgChange("k", WANT.endpoint, WANT.allowed)]
    nothing = WgPeer(None, frozenset())
    assert changes({}, {"k": nothing}, {}, NOW_S) == [WgChange("k")]


def test_an_endpoint_that_wireguard_learned_is_left_while_it_works() -> None:
    learned = replace(WANT, endpoint=("10.0.9.9", 1234), handshake_s=int(NOW_S - SESSION_S))
    assert changes({"k": learned}, {"k": WANT}, {}, NOW_S) == []
    assert changes({"k": learned}, {"k": WANT}, {"k": ("10.0.0.2", 7947)}, NOW_S) == []
    assert changes({"k": learned}, {"k": WANT}, {}, NOW_S + 1) == [WgChange("k", WANT.endpoint)]


def test_an_endpoint_that_we_are_told_anew_is_set_at_once() -> None:
    held = replace(WANT, endpoint=("10.0.0.7", 7947), handshake_s=int(NOW_S))
    assert changes({"k": held}, {"k": WANT}, {"k": ("10.0.0.7", 7947)}, NOW_S) == [WgChange("k", WANT.endpoint)]


def test_addresses_and_greetings_are_corrected() -> None:
    held = replace(WANT, allowed=frozenset({"0.0.0.0/0"}), keepalive_s=25, handshake_s=int(NOW_S))
    assert changes({"k": held}, {"k": WANT}, {}, NOW_S) == [WgChange("k", None, WANT.allowed, 0)]


def test_a_node_is_sent_to_by_the_newest_keys_that_have_met() -> None:
    both = peer(OLD, NEW)
    assert path(both, (0,), []) == Path(0, 0), "before any have, by the oldest, which all know"
    assert path(both, (0,), [(0, "old")]) == Path(0, 0)
    assert path(both, (0,), [(0, "old"), (0, "new")]) == Path(0, 1)
    assert path(both, (0, 1), [(0, "old"), (0, "new"), (1, "old")]) == Path(1, 0), (
        "one's own first: it is to be retired"
    )
    assert path(both, (0, 1), [(1, "new"), (1, "old")]) == Path(1, 1)


def test_a_node_that_has_no_key_or_is_asked_for_by_one_that_has_none_has_no_path() -> None:
    assert path(peer(), (0,), []) is None
    assert path(peer(OLD), (), []) is None


def test_an_old_key_is_replaced_when_all_that_use_it_have_met_the_new_one() -> None:
    used, idle = (
        WgPeer(None, frozenset(), 0, int(NOW_S - 10)),
        WgPeer(None, frozenset(), 0, int(NOW_S - SESSION_S - 10)),
    )
    fresh = WgPeer(None, frozenset(), 0, int(NOW_S))
    old = WgDevice("a", 1, {"one": used, "two": idle, "three": WgPeer(None, frozenset())})
    assert not replaced(WgDevice("b", 2, {}), old, NOW_S)
    assert not replaced(WgDevice("b", 2, {"one": WgPeer(None, frozenset())}), old, NOW_S)
    assert replaced(WgDevice("b", 2, {"one": fresh}), old, NOW_S)


def test_every_node_has_an_address_of_its_own_in_each_slot() -> None:
    found = {names.tunnel_address(n, slot) for n in (1, 2, 255, 256, names.MAX_NODE_NUMBER) for slot in names.KEY_SLOTS}
    assert len(found) == 10
    assert all(address.is_link_local for address in found)


def test_packets_padded_to_sixteen_bytes_fit_the_underlay() -> None:
    for mtu in range(1280, 1600):
        inner = names.encrypted_mtu(mtu)
        assert inner % 16 == 0
        assert mtu - 80 - 16 < inner <= mtu - 80


def test_a_key_is_32_bytes_of_base64() -> None:
    assert is_key("A" * 43 + "=")
    for text in ("", "A" * 43, "A" * 44, "ä" * 43 + "=", "A" * 42 + "-="):
        assert not is_key(text), text
