"""Hostile packets and streams: right ones bent, and well-formed ones with values that nobody should send."""

from __future__ import annotations

import random
from collections.abc import Callable

import msgpack  # type: ignore[import-untyped]

from gossip import packet, stream
from gossip.delegate import Address, Member, State
from gossip.keyring import KeyRing
from gossip.packet import Envelope
from gossip.serf import messages as serf
from gossip.wire import (
    Ack,
    Alive,
    Dead,
    IndirectPing,
    Message,
    Nack,
    Ping,
    Suspect,
    User,
    encode,
    encode_node_state,
)

NAMES = ["me", "n1", "n2", "n3", "stranger", "x" * 255, "\udcff", "a\x00b"]
NUMBERS = [0, 1, 2, 999, 1000, 1001, 2**16, 2**20 - 1, 2**20, 2**20 + 1001, 2**31, 2**32 - 2**20, 2**32 - 1]
HOSTS = ["127.0.0.1", "0.0.0.0", "255.255.255.255", "::", "::1", "2001:db8::1"]
VERSIONS = [bytes((1, 5, 2, 2, 5, 5)), bytes(6), bytes((9, 1, 1, 1, 1, 1)), bytes((255,) * 6)]
_KEYS = [
    "SeqNo",
    "Node",
    "Incarnation",
    "Addr",
    "Port",
    "Meta",
    "Vsn",
    "Payload",
    "From",
    "Target",
    "LTime",
    "Name",
    "Nodes",
    "UserStateLen",
    "Join",
    "Algo",
    "Buf",
    "Filters",
    "ID",
]
KEY = b"k" * 16


class Inputs:
    """All from one source of randomness."""

    def __init__(self, source: random.Random, label: bytes = b"") -> None:
        self.random = source
        self.plain = Envelope(KeyRing([], source.randbytes), label)
        self.sealed = Envelope(KeyRing([KEY], source.randbytes), label)

    # Values

    def name(self) -> str:
        return self.random.choice(NAMES)

    def number(self) -> int:
        return (
            self.random.choice(NUMBERS)
            if self.random.random() < 0.7
            else self.random.getrandbits(self.random.choice((8, 16, 32)))
        )

    def address(self) -> Address:
        return Address(self.random.choice(HOSTS), self.random.choice((0, 1, 7946, 65535)))

    def some_bytes(self, most: int) -> bytes:
        return self.random.randbytes(self.random.randrange(most + 1))

    def member(self) -> Member:
        return Member(
            self.name(), self.address(), self.some_bytes(40), self.random.choice(VERSIONS), self.number(),
            self.random.choice(list(State)), 0.0,
        )  # fmt: skip

    def message(self) -> Message:
        makers: list[Callable[[], Message]] = [
            lambda: Ping(self.number(), self.name(), self.address(), self.name()),
            lambda: IndirectPing(self.number(), self.address(), self.name(), True, self.address(), self.name()),
            lambda: Ack(self.number(), self.some_bytes(60)),
            lambda: Nack(self.number()),
            lambda: Suspect(self.number(), self.name(), self.name()),
            lambda: Dead(self.number(), self.name(), self.name()),
            self.alive,
            lambda: User(self.user()),
        ]  # fmt: skip
        return self.random.choice(makers)()

    def alive(self) -> Alive:
        versions = self.random.choice(VERSIONS)
        return Alive(self.number(), self.name(), self.address(), self.some_bytes(512), versions)

    def user(self) -> bytes:
        """A message of the Serf layer, or none."""
        clock = self.random.choice((0, 1, 100, 2**32, 2**63, 2**64 - 1))
        makers: list[Callable[[], bytes]] = [
            lambda: self.some_bytes(80),
            lambda: bytes((self.random.randrange(16),)) + self.map(),
            lambda: serf.encode(serf.Leave(clock, self.name())),
            lambda: serf.encode(serf.Join(clock, self.name())),
            lambda: serf.encode(serf.UserEvent(clock, self.name(), self.some_bytes(100), self.random.random() < 0.5)),
        ]
        return self.random.choice(makers)()

    def map(self) -> bytes:
        """MessagePack of a shape like a message's, with anything in it."""
        keys = _KEYS
        values: list[object] = [
            None,
            True,
            -1,
            2**63,
            1.5,
            "text",
            b"\x7f\0\0\1",
            [],
            [1, [2]],
            {},
            {"a": {"b": 1}},
            self.number(),
        ]
        chosen = self.random.sample(keys, self.random.randrange(8))
        packed: bytes = msgpack.packb(
            {key: self.random.choice(values) for key in chosen}, use_bin_type=self.random.random() < 0.2
        )
        return packed

    # Bytes

    def packet(self, envelope: Envelope) -> bytes:
        """A packet, mostly one that gets past the wrappers."""
        parts = [encode(self.message()) for _ in range(self.random.choice((1, 1, 2, 5, 40)))]
        if self.random.random() < 0.2:
            parts.append(bytes((self.random.randrange(256),)) + self.map())
        if self.random.random() < 0.3:
            parts = [self.bend(part) for part in parts]
        if self.random.random() < 0.1:
            parts = [packet.compressed(packet.compound(parts))]
        data = packet.seal(parts, envelope, crc=self.random.random() < 0.5, compress=self.random.random() < 0.2)
        return self.bend(data) if self.random.random() < 0.3 else data

    def stream(self, envelope: Envelope) -> bytes:
        """What somebody may write into a stream."""
        nodes = [encode_node_state(self.member()) for _ in range(self.random.choice((0, 1, 5, 60)))]
        makers: list[Callable[[], bytes]] = [
            lambda: stream.push_pull(nodes, self.user(), self.random.random() < 0.5),
            lambda: stream.user(self.user()),
            lambda: stream.error("no"),
            lambda: encode(self.message()),
            lambda: bytes((self.random.randrange(16),)) + self.map(),
        ]  # fmt: skip
        plain = self.random.choice(makers)()
        if self.random.random() < 0.4:
            plain = self.bend(plain)
        data = stream.seal(plain, envelope, compress=self.random.random() < 0.3)
        return self.bend(data) if self.random.random() < 0.3 else data

    def bend(self, data: bytes) -> bytes:
        """Some bytes are flipped, cut, doubled, or replaced by bounds."""
        bent = bytearray(data)
        for _ in range(self.random.choice((1, 1, 2, 6))):
            at = self.random.randrange(len(bent) + 1)
            match self.random.randrange(5):
                case 0 if at < len(bent):
                    bent[at] ^= 1 << self.random.randrange(8)
                case 1 if at < len(bent):
                    bent[at] = self.random.choice((0, 1, 0x7F, 0x80, 0x9F, 0xC1, 0xDB, 0xDF, 0xFF))
                case 2:
                    del bent[at : at + self.random.randrange(1, 9)]
                case 3:
                    bent[at:at] = self.some_bytes(8)
                case _:
                    bent[at:at] = bent[: self.random.randrange(40)]
        return bytes(bent)
