"""WireGuard's netlink messages and its text protocol."""

from __future__ import annotations

import base64
import struct
from ipaddress import IPv4Address, IPv6Address

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from overlay import wgwire
from overlay.tunnels import WgChange, WgPeer

KEY = base64.b64encode(bytes(range(32))).decode()
OTHER = base64.b64encode(bytes(32)).decode()

addresses = st.one_of(st.integers(1, 2**32 - 1).map(IPv4Address), st.integers(2**112, 2**128 - 1).map(IPv6Address))
endpoints = st.tuples(addresses.map(str), st.integers(1, 65535))
prefixes = st.frozensets(st.integers(0, 2**32 - 1).map(lambda n: f"{IPv4Address(n)}/32"), min_size=1, max_size=4)


def body(message: bytes) -> bytes:
    length, *_ = wgwire.HEADER.unpack_from(message)
    assert length == len(message)
    assert length % 4 == 0
    return message[wgwire.HEADER.size :]


@given(endpoints, prefixes, st.integers(0, 65535))
@settings(max_examples=100, deadline=None)
def test_what_is_set_by_netlink_is_what_is_read(
    endpoint: tuple[str, int], allowed: frozenset[str], wait_s: int
) -> None:
    message = wgwire.set_peer(30, 1, "mesh-wg0", WgChange(KEY, endpoint, allowed, wait_s))
    assert wgwire.device_of([body(message)]).peers == {KEY: WgPeer(endpoint, allowed, wait_s)}


@given(endpoints, prefixes, st.integers(0, 65535))
@settings(max_examples=100, deadline=None)
def test_what_is_set_by_text_is_what_is_read(endpoint: tuple[str, int], allowed: frozenset[str], wait_s: int) -> None:
    text = wgwire.peer_text(WgChange(KEY, endpoint, allowed, wait_s))
    assert text.startswith("set=1\n")
    assert text.endswith("\n\n")
    assert wgwire.device_text(text)[2] == {KEY: WgPeer(endpoint, allowed, wait_s)}


def test_only_what_changes_is_set() -> None:
    assert wgwire.device_of([body(wgwire.set_peer(30, 1, "mesh-wg0", WgChange(KEY)))]).peers == {
        KEY: WgPeer(None, frozenset())
    }
    assert wgwire.peer_text(WgChange(KEY)) == f"set=1\npublic_key={bytes(range(32)).hex()}\n\n"


def test_a_dump_of_netlink_whose_peer_goes_on_in_the_next_message() -> None:
    one = wgwire.set_peer(30, 1, "mesh-wg0", WgChange(KEY, ("10.0.0.1", 1), frozenset({"10.1.0.1/32"}), 5))
    two = wgwire.set_peer(30, 1, "mesh-wg0", WgChange(KEY, None, frozenset({"10.1.0.2/32"})))
    three = wgwire.set_peer(30, 1, "mesh-wg0", WgChange(OTHER, None, frozenset({"10.1.0.3/32"})))
    device = wgwire.device_of([body(message) for message in (one, two, three)])
    assert device.peers == {
        KEY: WgPeer(("10.0.0.1", 1), frozenset({"10.1.0.1/32", "10.1.0.2/32"}), 5),
        OTHER: WgPeer(None, frozenset({"10.1.0.3/32"})),
    }


def test_a_private_key_is_sent_and_the_port() -> None:
    found = dict(wgwire.attributes(body(wgwire.set_device(30, 1, "mesh-wg0", KEY, 7947))[4:]))
    assert found == {2: b"mesh-wg0\0", 3: bytes(range(32)), 6: struct.pack("=H", 7947)}
    assert wgwire.set_text(KEY, 7947) == f"set=1\nprivate_key={bytes(range(32)).hex()}\nlisten_port=7947\n\n"


def test_a_peer_is_removed() -> None:
    (_, peers) = wgwire.attributes(body(wgwire.remove_peer(30, 1, "mesh-wg0", KEY))[4:])[1]
    (_, peer) = wgwire.attributes(peers)[0]
    assert wgwire.attributes(peer) == [(1, bytes(range(32))), (3, struct.pack("=I", 1))]
    assert wgwire.removal_text(KEY) == f"set=1\npublic_key={bytes(range(32)).hex()}\nremove=true\n\n"


def test_the_answer_of_the_program() -> None:
    """As wireguard-go 0.0.20220316 gave it."""
    text = f"""private_key={bytes(32).hex()}
listen_port=7947
public_key={bytes(range(32)).hex()}
preshared_key={bytes(32).hex()}
protocol_version=1
endpoint=[fd00::2]:7947
last_handshake_time_sec=1795261496
last_handshake_time_nsec=509413898
tx_bytes=2068
rx_bytes=2012
persistent_keepalive_interval=0
allowed_ip=169.254.0.2/32
errno=0

"""
    assert wgwire.error_of(text) == 0
    peer = WgPeer(("fd00::2", 7947), frozenset({"169.254.0.2/32"}), 0, 1795261496)
    assert wgwire.device_text(text) == (OTHER, 7947, {KEY: peer})


def test_an_answer_of_the_program_without_a_key_or_with_an_error() -> None:
    assert wgwire.device_text("listen_port=1\nerrno=0\n\n") == ("", 1, {})
    assert wgwire.error_of("errno=-98\n\n") == 98
    with pytest.raises(ValueError, match="no end"):
        wgwire.error_of("listen_port=1\n")


def test_the_number_of_a_family_is_in_its_answer() -> None:
    number = struct.pack("=HHHxx", 6, 1, 31)
    assert wgwire.family_of(struct.pack("=BBH", 1, 2, 0) + number) == 31
    assert wgwire.family_of(struct.pack("=BBH", 1, 2, 0)) is None
