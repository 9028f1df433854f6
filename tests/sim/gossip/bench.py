"""One SWIM core by hand: messages in, decoded messages out, time as told."""

from __future__ import annotations

import random
from collections.abc import Sequence

from gossip.delegate import Address, Member
from gossip.keyring import KeyRing
from gossip.packet import Envelope, open_packet, seal
from gossip.profile import LAN, Profile
from gossip.stream import PushPull, Reader, StreamMessage
from gossip.swim import Swim
from gossip.swim_ports import OpenStream, SendPacket, SwimConfig
from gossip.wire import Message, alive_of, decode, encode
from tests.sim.gossip.cluster import Recorder

ME = Address("10.1.0.9", 7946)
START = 1000
SOMEBODY = Address("10.1.0.1", 7946)


class Bench:
    """A core called "me" that knows `members`, its announcement already out, its own probes not begun."""

    def __init__(
        self, *members: Member, profile: Profile = LAN, keys: Sequence[bytes] = (), start: bool = False
    ) -> None:
        self.seen = Recorder()
        self.envelope = Envelope(KeyRing(keys, random.Random(1).randbytes))
        config = SwimConfig("me", ME, START, profile, compress=False)
        self.swim = Swim(config, self.seen, random.Random(2), self.envelope)
        self.now = 0.0
        if start:
            self.swim.start(0.0)
        for one in members:
            self.say(alive_of(one))
        self.swim._outbox.broadcasts.clear()
        self.swim.drain()
        self.seen.events.clear()

    def say(self, *messages: Message, source: Address = SOMEBODY) -> list[tuple[Address, Message]]:
        """One packet with these; what goes out at once."""
        self.swim.receive(seal([encode(m) for m in messages], self.envelope, crc=True), source, self.now)
        return self.sent()

    def sent(self) -> list[tuple[Address, Message]]:
        """Messages of packets since the last look."""
        out = self.swim.drain()
        self.streams = [o for o in out if isinstance(o, OpenStream)]
        packets = [o for o in out if isinstance(o, SendPacket)]
        return [(o.to, decode(raw)) for o in packets for raw in open_packet(o.data, self.envelope).messages]

    def pass_time(self, time_s: float) -> list[tuple[Address, Message]]:
        """Let timers run, each at its time."""
        until_s = self.now + time_s
        while self.swim.deadline() <= until_s:
            self.now = max(self.now, self.swim.deadline())
            self.swim.wake(self.now)
        self.now = until_s
        return self.sent()

    def queued(self) -> list[Message]:
        """What is to be told to everybody about members; it is taken once."""
        return [decode(raw) for raw in self.swim._outbox.broadcasts.take(2, 60000, 1)]

    def member(self, name: str) -> Member:
        found = self.swim.member(name)
        assert found is not None
        return found

    def read(self, stream: OpenStream) -> StreamMessage:
        """What a stream carries."""
        reader = Reader(self.envelope)
        assert reader.feed(stream.data)
        return reader.message()

    def push_pull(self, *nodes: Member, state: bytes = b"", join: bool = False) -> bytes | None:
        """Somebody opens a push/pull."""
        return self.swim.accept_stream(PushPull(join, list(nodes), state), ME, self.now)
