"""What a SWIM core sends: packets, filled up with what is to be told to everybody, and streams. Pure.

Room in a packet goes to the core's own messages first, then to the broadcasts about members, then to the delegate's.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

from gossip import stream
from gossip.broadcasts import Broadcasts
from gossip.delegate import Address, Delegate
from gossip.packet import COMPOUND_MAX, COMPOUND_OVERHEAD, CRC_LEN, PACKET_MAX, PART_OVERHEAD, Envelope, seal
from gossip.stream import StreamMessage
from gossip.swim_ports import OpenStream, Output, SendPacket, StreamFailure
from gossip.wire import Kind, Message, encode

# Streams this node has open at once; what is asked for beyond is refused and, being periodic, asked for again.
STREAMS_MAX = 64

# Given the answer, or None and why there is none, and the time.
StreamDone = Callable[[StreamMessage | None, StreamFailure | None, float], None]


class Outbox:
    """All that leaves one node, in order, until `drain`."""

    def __init__(self, envelope: Envelope, delegate: Delegate, *, compress: bool) -> None:
        self.envelope = envelope
        self.counts: Counter[str] = Counter()
        self.broadcasts = Broadcasts()
        self.transmits: Callable[[], int] = int
        # While packets lead nowhere the delegate's broadcasts stay out of them: each is sent a limited number of times.
        self.hold_back = False
        self._delegate = delegate
        self._compress = compress
        self._out: list[Output] = []
        self._streams: dict[int, StreamDone | None] = {}
        self._token = 0

    def drain(self) -> list[Output]:
        out, self._out = self._out, []
        return out

    @property
    def room(self) -> int:
        """Bytes of messages that fit one packet, each counted with PART_OVERHEAD."""
        return PACKET_MAX - self.envelope.overhead - CRC_LEN - COMPOUND_OVERHEAD

    def send(self, to: Address, *messages: Message) -> None:
        """A packet with these messages and as many broadcasts as fit."""
        own = [encode(message) for message in messages]
        used = sum(map(len, own)) + PART_OVERHEAD * len(own)
        self._packet(to, own + self.take(self.room - used))

    def send_only(self, to: Address, message: bytes) -> bool:
        """A packet with one encoded message. False: it is too long, and not sent."""
        if len(message) > self.room - PART_OVERHEAD:
            return False
        self._packet(to, [message])
        return True

    def gossip(self, to: Address) -> bool:
        """A packet of broadcasts; False: there are none."""
        messages = self.take(self.room)
        if messages:
            self._packet(to, messages)
        return bool(messages)

    def take(self, room: int) -> list[bytes]:
        """Broadcasts for one packet; they count as sent once."""
        taken = self.broadcasts.take(PART_OVERHEAD, room, self.transmits()) if len(self.broadcasts) else []
        if self.hold_back:
            return taken
        room -= sum(map(len, taken)) + PART_OVERHEAD * len(taken)
        taken += [b"\x08" + message for message in self._delegate.broadcasts(PART_OVERHEAD + 1, room)]
        return taken[: COMPOUND_MAX - 2]  # beside at most two messages; no 250 fit anyway

    def _packet(self, to: Address, messages: Sequence[bytes]) -> None:
        # Encryption is a checksum too, and a better one
        encrypted = bool(self.envelope.keys) and self.envelope.encrypt_outgoing
        data = seal(messages, self.envelope, crc=not encrypted)
        self.counts["packets_out"] += 1
        self.counts["packet_bytes_out"] += len(data)
        self._out.append(SendPacket(to, data))

    # Streams

    def open(self, to: Address, plain: bytes, timeout_s: float, done: StreamDone | None) -> bool:
        """Send `plain` over a stream, and wait for an answer if there is `done`. False: too many are open."""
        if len(self._streams) >= STREAMS_MAX:
            self.counts["streams_refused"] += 1
            return False
        self._token += 1
        self._streams[self._token] = done
        data = self.sealed(plain)
        self.counts["streams_out"] += 1
        self.counts["stream_bytes_out"] += len(data)
        self._out.append(OpenStream(self._token, to, data, timeout_s, done is not None))
        return True

    def sealed(self, plain: bytes) -> bytes:
        """A stream's message as it goes over the wire. Pings are too short to gain by compression."""
        short = plain[0] in (Kind.PING, Kind.ACK)
        return stream.seal(plain, self.envelope, compress=self._compress and not short)

    def finish(self, token: int, message: StreamMessage | None, failure: StreamFailure | None, now: float) -> None:
        """A stream is over."""
        if token not in self._streams:
            return
        done = self._streams.pop(token)
        if failure is not None:
            self.counts[f"streams_failed_{failure.value}"] += 1
        if done is not None:
            done(message, failure, now)
