"""All members that this node knows: by name, in the order in which they are probed, and at random. Pure.

Members are immutable and replaced, so that they may be shared (2,400 simulated nodes know 2,400 members each) and what
they are encoded to may be kept for as long as they are the same object.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Sequence

from gossip.delegate import Address, Member, State
from gossip.wire import encode_node_state

# Below this many members all of them are looked at when some are chosen, so that none that fits is missed; above, so
# many random tries nearly always find them, and if not all of them are looked at after all.
_SCAN_BELOW = 64
_TRIES = 24
# Whom gossip goes to is drawn from this part of those that it went to longest ago.
_TURNS_SHARE = 4

Fits = Callable[[Member], bool]


class EncodedMembers:
    """Members as in push/pull, by identity; may be shared by simulated nodes. Building 2,400 of them takes 20 ms."""

    __slots__ = ("_by_id",)

    def __init__(self) -> None:
        self._by_id: dict[int, tuple[Member, bytes]] = {}  # the member is held, so its id is not given to another

    def get(self, member: Member) -> bytes:
        found = self._by_id.get(id(member))
        if found is None:
            found = self._by_id[id(member)] = (member, encode_node_state(member))
        return found[1]

    def drop(self, member: Member) -> None:
        """It was replaced."""
        self._by_id.pop(id(member), None)


class Members:
    """The table. This node is in it, but neither in the order of probes nor chosen at random."""

    def __init__(self, me: Member, source: random.Random, encoded: EncodedMembers | None = None) -> None:
        self._by_name: dict[str, Member] = {me.name: me}
        self._names: list[str] = []  # of the others, in the order of probes
        self._next = 0
        self._turns: list[str] = []  # of the others, who was told something longest ago first
        self._alive = 1 if me.state <= State.SUSPECT else 0
        self._random = source
        self._me = me.name
        self._encoded = encoded or EncodedMembers()
        # Made of all of them when they are asked for, and kept until somebody changes: whoever looks for 1,200 lost
        # members asks again and again.
        self._all_encoded: list[bytes] | None = None
        self._all_addresses: set[Address] | None = None

    @property
    def me(self) -> Member:
        return self._by_name[self._me]

    @property
    def alive_count(self) -> int:
        """Alive or suspected, this node included."""
        return self._alive

    def get(self, name: str) -> Member | None:
        return self._by_name.get(name)

    def all(self) -> Collection[Member]:
        return self._by_name.values()

    def put(self, member: Member) -> None:
        """Add a member (somewhere in the order of probes, at random) or replace the one of its name."""
        before = self._by_name.get(member.name)
        self._by_name[member.name] = member
        self._changed()
        self._alive += (member.state <= State.SUSPECT) - (before is not None and before.state <= State.SUSPECT)
        if before is not None:
            self._encoded.drop(before)
            return
        names = self._names
        names.append(member.name)
        at = self._random.randrange(len(names))
        names[at], names[-1] = names[-1], names[at]
        self._turns.insert(self._random.randrange(len(names)), member.name)

    def bootstrap(self, members: Collection[Member]) -> None:
        """Many at once, as a simulation begins."""
        self._by_name.update((member.name, member) for member in members if member.name != self._me)
        self._names = [name for name in self._by_name if name != self._me]
        self._random.shuffle(self._names)
        self._turns = self._names.copy()
        self._random.shuffle(self._turns)
        self._alive = sum(member.state <= State.SUSPECT for member in self._by_name.values())
        self._changed()

    def _changed(self) -> None:
        self._all_encoded = self._all_addresses = None

    def next_probe(self, is_over: Fits) -> tuple[Member | None, list[Member]]:
        """Whom to probe next, and those who were forgotten: dead for long enough, looked at once a round."""
        reaped: list[Member] = []
        for _ in range(len(self._names) + 1):
            if self._next >= len(self._names):
                reaped += self._new_round(is_over)
            if not self._names:
                break
            member = self._by_name[self._names[self._next]]
            self._next += 1
            if member.state <= State.SUSPECT:
                return member, reaped
        return None, reaped

    def _new_round(self, is_over: Fits) -> list[Member]:
        reaped = [m for m in self._by_name.values() if m.state > State.SUSPECT and m.name != self._me and is_over(m)]
        for member in reaped:
            del self._by_name[member.name]
            self._encoded.drop(member)
        if reaped:
            self._changed()
            self._names = [name for name in self._names if name in self._by_name]
            self._turns = [name for name in self._turns if name in self._by_name]
        self._random.shuffle(self._names)
        self._next = 0
        return reaped

    def some(self, count: int, fits: Fits) -> list[Member]:
        """At most `count` different others that fit, at random."""
        if len(self._names) < _SCAN_BELOW:
            return self._scan(count, fits)
        found: dict[str, Member] = {}
        for _ in range(_TRIES):
            member = self._by_name[self._random.choice(self._names)]
            if fits(member):
                found[member.name] = member
                if len(found) == count:
                    return list(found.values())
        return self._scan(count, fits)

    def in_turn(self, count: int, fits: Fits) -> list[Member]:
        """At most `count` different others that fit: random ones of the quarter that was chosen here longest ago.

        So what is sent a dozen times in a row goes to a dozen different ones, which at random ones it does not.
        """
        turns = self._turns
        found: dict[str, Member] = {}
        window = len(turns) // _TURNS_SHARE or 1
        for _ in range(min(len(turns), _TRIES)):
            name = turns.pop(int(self._random.random() * window))
            turns.append(name)
            if fits(member := self._by_name[name]):
                found[name] = member
                if len(found) == count:
                    return list(found.values())
        return self._scan(count, fits)

    def _scan(self, count: int, fits: Fits) -> list[Member]:
        fitting = [member for name in self._names if fits(member := self._by_name[name])]
        return fitting if len(fitting) <= count else self._random.sample(fitting, count)

    def answers_at(self, address: Address) -> bool:
        """Whether somebody, alive or suspected, is there; this node too."""
        if self._all_addresses is None:
            self._all_addresses = {m.address for m in self._by_name.values() if m.state <= State.SUSPECT}
        return address in self._all_addresses

    def encoded(self) -> Sequence[bytes]:
        """All of them as in push/pull."""
        if self._all_encoded is None:
            self._all_encoded = [self._encoded.get(member) for member in self._by_name.values()]
        return self._all_encoded
