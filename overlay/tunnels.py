"""Which WireGuard peers a node's devices should have, and by which keys it sends to each node. Pure.

A node has one device per key slot (usually one; two while its key is replaced), each with all keys of all other nodes
as peers. Every pair of an own and a peer's key can carry traffic, because each key has its own address inside; so both
ends change to a newer key by themselves, whenever they have seen it answer. See docs/decisions/0015.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Address

from overlay import names
from overlay.plan import OverlayPlan, Peer

# While a key is replaced, peers are greeted this often: that a newer key works is seen by its handshake alone.
GREETING_S = 5
# A session that is older has ended (REJECT_AFTER_TIME of WireGuard's paper, section 6).
SESSION_S = 180

Endpoint = tuple[str, int]  # address, UDP port


@dataclass(frozen=True, slots=True)
class WgPeer:
    """A peer as a device should have it, or has it (`handshake_s`: seconds since the epoch, 0 for never)."""

    endpoint: Endpoint | None
    allowed: frozenset[str]  # "169.254.0.7/32"
    keepalive_s: int = 0
    handshake_s: int = 0


@dataclass(frozen=True, slots=True)
class WgDevice:
    """A device as the kernel, or the program, has it. `public` is "" without a key."""

    public: str
    port: int
    peers: Mapping[str, WgPeer] = field(default_factory=dict)  # by public key, base64


@dataclass(frozen=True, slots=True)
class WgChange:
    """What one peer needs. None: leave it as it is."""

    public: str
    endpoint: Endpoint | None = None
    allowed: frozenset[str] | None = None
    keepalive_s: int | None = None


@dataclass(frozen=True, slots=True)
class Path:
    """The keys by which this node sends to another, by their slots."""

    own_slot: int
    peer_slot: int


def wanted_peers(plan: OverlayPlan, *, own_keys: int) -> dict[str, WgPeer]:
    """The peers of every device of a node that has `own_keys` keys. Two nodes with one key: the first has it."""
    wanted: dict[str, WgPeer] = {}
    for peer in plan.peers:
        greeting_s = GREETING_S if own_keys > 1 or len(peer.keys) > 1 else 0
        for key in peer.keys:
            address = names.tunnel_address(peer.number, key.slot)
            endpoint = (str(peer.underlay), plan.wireguard_port + key.slot)
            wanted.setdefault(key.key, WgPeer(endpoint, frozenset({f"{address}/32"}), greeting_s))
    return wanted


def changes(
    held: Mapping[str, WgPeer], wanted: Mapping[str, WgPeer], told: Mapping[str, Endpoint], now_s: float
) -> list[WgChange]:
    """What makes `wanted` of `held`, but for peers too many.

    `told` are the endpoints that this process has set. WireGuard learns where a peer sends from, which is not always
    where we were told that it is: an endpoint that we have not been told anew, and that works, is left.
    """
    found = []
    for public, want in wanted.items():
        has = held.get(public, WgPeer(None, frozenset(), 0))
        moved = has.endpoint != want.endpoint
        news = public in told and told[public] != want.endpoint
        works = now_s - has.handshake_s <= SESSION_S
        change = WgChange(
            public,
            want.endpoint if moved and (news or not works) else None,
            want.allowed if has.allowed != want.allowed else None,
            want.keepalive_s if has.keepalive_s != want.keepalive_s else None,
        )
        if public not in held or change != WgChange(public):
            found.append(change)
    return found


def path(peer: Peer, own_slots: Iterable[int], sessions: Iterable[tuple[int, str]]) -> Path | None:
    """How to send to a node: by the newest keys that have met, and before any have, by the oldest. None: it has no key.

    `own_slots` are those that this node tells, oldest first; `sessions` the (own slot, peer's key) that have met.
    """
    met, slots = frozenset(sessions), tuple(own_slots)
    if not peer.keys or not slots:
        return None
    for own in reversed(slots):
        for key in reversed(peer.keys):
            if (own, key.key) in met:
                return Path(own, key.slot)
    return Path(slots[0], peer.keys[0].slot)


def replaced(new: WgDevice, old: WgDevice, now_s: float) -> bool:
    """Whether every peer that has a session by the old key has met the new one."""
    return all(
        public in new.peers and new.peers[public].handshake_s
        for public, peer in old.peers.items()
        if now_s - peer.handshake_s <= SESSION_S
    )


def own_address(plan: OverlayPlan, slot: int) -> IPv4Address:
    """This node's address by the key in a slot."""
    return names.tunnel_address(plan.node_number, slot)
