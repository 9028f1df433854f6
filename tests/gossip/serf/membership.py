"""A Membership that remembers what was asked of it, and a Serf core on top of it."""

from __future__ import annotations

import random
from collections.abc import Collection, Sequence

from gossip.delegate import Address, Change, Member, MemberEvent, State
from gossip.keyring import KeyRing
from gossip.profile import LAN
from gossip.serf.core import SerfCore
from gossip.serf.messages import encode_tags
from gossip.serf.ports import SerfConfig

VERSIONS = bytes((1, 5, 2, 2, 5, 5))


def member(name: str, port: int = 7946, tags: dict[str, str] | None = None, state: State = State.ALIVE) -> Member:
    return Member(name, Address("127.0.0.1", port), encode_tags(tags or {}), VERSIONS, 1, state, 0.0)


class FakeMembership:
    """Satisfies gossip.delegate.Membership."""

    def __init__(self, name: str, port: int, meta: bytes = b"") -> None:
        self._me = Member(name, Address("127.0.0.1", port), meta, VERSIONS, 1, State.ALIVE, 0.0)
        self.sent: list[tuple[Address, bytes]] = []
        self.forgotten: list[str] = []
        self.updates = 0
        self.alive = 1
        self.left = False

    @property
    def me(self) -> Member:
        return self._me

    @property
    def alive_count(self) -> int:
        return self.alive

    @property
    def retransmits(self) -> int:
        return 12

    def member(self, name: str) -> Member | None:
        return self._me if name == self._me.name else None

    def members(self) -> Collection[Member]:
        return [self._me]

    def send_user(self, to: Address, message: bytes, now: float) -> bool:
        self.sent.append((to, message))
        return True

    def send_user_stream(self, to: Address, message: bytes, now: float) -> None:
        self.sent.append((to, message))

    def update_meta(self, now: float) -> None:
        self.updates += 1

    def join(self, seeds: Sequence[Address], now: float) -> None:
        pass

    def reached(self, seed: Address) -> bool:
        return False

    def leave(self, now: float) -> None:
        self.left = True

    def forget(self, name: str, now: float) -> None:
        self.forgotten.append(name)


def core(name: str = "me", port: int = 7946, keys: Sequence[bytes] = ()) -> tuple[SerfCore, FakeMembership]:
    """A started core; its own join is drained."""
    below = FakeMembership(name, port)
    ring = KeyRing(keys, lambda n: b"\0" * n)
    made = SerfCore(SerfConfig(name, LAN), tags={"role": "web"}, ring=ring, source=random.Random(1), now=0.0)
    made.start(below, 0.0)
    made.drain()
    return made, below


def join(made: SerfCore, below: FakeMembership, *names: str, now: float = 0.0) -> None:
    """Members come; their joins are drained."""
    for at, name in enumerate(names):
        made.member_changed(MemberEvent(Change.JOINED, member(name, 8000 + at), None), now)
        below.alive += 1
    made.drain()


def change(made: SerfCore, name: str, what: Change, now: float = 0.0) -> None:
    made.member_changed(MemberEvent(what, member(name), None), now)
