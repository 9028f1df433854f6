"""Fuzz the whole stack of one node: `python -m tests.fuzz.gossip.run SECONDS [SEED]` counts inputs, stops at a fault.

Packets and streams go into a real SWIM core with the real Serf layer above, in virtual time; after each input what must
always hold is checked. A fault prints the seed and the number of the input, which lead to it again.
"""

from __future__ import annotations

import contextlib
import random
import sys
import time
from collections import Counter

from gossip.delegate import Address, State
from gossip.keyring import KeyRing
from gossip.packet import PACKET_MAX, RECEIVE_MAX, Envelope
from gossip.profile import LAN
from gossip.serf.core import SerfCore
from gossip.serf.ports import SerfConfig
from gossip.stream import PAYLOAD_MAX, Reader
from gossip.swim import Swim
from gossip.swim_ports import INCARNATION_MAX, JUMP_MAX, OpenStream, SendPacket, StreamFailure, SwimConfig
from gossip.swim_rules import MEMBERS_MAX
from gossip.wire import WireError
from tests.fuzz.gossip.inputs import KEY, Inputs

ROUND = 500  # inputs for one node; then another begins
SLOW_S = 0.3  # of the processor's time for one input: none should keep the loop that long
OUT_MAX = 2000  # outputs for one input


class Target:
    """A node that is fed."""

    def __init__(self, source: random.Random) -> None:
        self.random = source
        encrypted = source.random() < 0.5
        ring = KeyRing([KEY] if encrypted else [], source.randbytes)
        label = source.choice((b"", b"label"))
        self.envelope = Envelope(ring, label, verify_incoming=source.random() < 0.8)
        self.inputs = Inputs(source, label)
        self.sender = self.inputs.sealed if encrypted and source.random() < 0.95 else self.inputs.plain
        core = SerfCore(SerfConfig("me", LAN), tags={"a": "b"}, ring=ring, source=source, now=0.0)
        config = SwimConfig("me", Address("127.0.0.1", 7946), 1000, compress=source.random() < 0.5)
        self.swim, self.core, self.now = Swim(config, core, source, self.envelope), core, 0.0
        self.swim.start(0.0)
        core.start(self.swim, 0.0)
        self.open: list[OpenStream] = []

    def step(self) -> str:
        """One input of some kind, and what must hold then."""
        source = self.inputs.address()
        kind = self.random.choice(("packet", "packet", "packet", "stream", "answer", "time"))
        match kind:
            case "packet":
                self.swim.receive(self.inputs.packet(self.sender)[:RECEIVE_MAX], source, self.now)
            case "stream":
                if (reader := self._reader(self.inputs.stream(self.sender))) is not None:
                    with contextlib.suppress(WireError):
                        self.swim.accept_stream(reader.message(), source, self.now)
            case "answer" if self.open:
                self._answer(self.open.pop())
            case _:
                self.now += self.random.choice((0.01, 0.3, 5.0))
                self.swim.wake(self.now)
                self.core.wake(self.now)
        self._check()
        return kind

    def _reader(self, data: bytes) -> Reader | None:
        """In pieces, as a socket gives them."""
        reader = Reader(self.envelope)
        at = 0
        try:
            while at < len(data):
                size = self.random.choice((1, 7, 100, 65536))
                if reader.feed(data[at : at + size]):
                    return reader
                assert reader.size <= PAYLOAD_MAX + 70000
                at += size
        except WireError:
            pass
        return None

    def _answer(self, wanted: OpenStream) -> None:
        reader = self._reader(self.inputs.stream(self.sender)) if wanted.reply else None
        message = None
        if reader is not None:
            with contextlib.suppress(WireError):
                message = reader.message()
        self.swim.finish_stream(wanted.token, message, None if message else StreamFailure.REMOTE, self.now)

    def _check(self) -> None:
        me, members = self.swim.me, self.swim.members()
        assert me.state is State.ALIVE, "talked into being dead"
        assert me.incarnation <= INCARNATION_MAX + JUMP_MAX
        assert len(members) <= MEMBERS_MAX
        assert self.swim.alive_count == sum(member.state <= State.SUSPECT for member in members)
        suspected = {member.name for member in members if member.state is State.SUSPECT}
        assert suspected == set(self.swim._rules._suspicions), "a suspect is watched, and nobody else"
        assert 0 <= self.swim.awareness.score < LAN.awareness_max
        out = self.swim.drain()
        assert len(out) <= OUT_MAX
        for output in out:
            match output:
                case SendPacket(_, data):
                    assert len(data) <= PACKET_MAX
                case OpenStream():
                    self.open.append(output)
        del self.open[:-70]
        self.core.drain()


def fuzz(seed: int, first: int, count: int) -> Counter[str]:
    """So many rounds of inputs. AssertionError or whatever else is a fault."""
    kinds: Counter[str] = Counter()
    for number in range(first, first + count):
        target = Target(random.Random(f"{seed}/{number}"))
        for index in range(ROUND):
            began = time.process_time()
            try:
                kinds[target.step()] += 1
            except BaseException:
                sys.stderr.write(f"fault: seed {seed}, round {number}, input {index}\n")
                raise
            if time.process_time() - began > SLOW_S:
                kinds["slow"] += 1
    return kinds


def main() -> None:
    seconds, seed = float(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 1
    until, number, kinds = time.monotonic() + seconds, 0, Counter[str]()
    while time.monotonic() < until:
        kinds += fuzz(seed, number, 1)
        number += 1
    print(f"{sum(kinds.values()) - kinds['slow']} inputs in {number} rounds: {dict(kinds)}")


if __name__ == "__main__":
    main()
