"""DNS over TCP (RFC 7766) as seen from one connection. Sans-IO.

Messages come with their length in two bytes in front, several on one connection, in pieces of any size. A client that
sends slowly, or does not read, is cut off at a deadline that does not move with each byte (slow loris).
"""

from __future__ import annotations

from dataclasses import dataclass, field

from dns.wire import MESSAGE_MAX

# A connection without a question under way: RFC 7766 wants seconds, and clients that ask again open a new one.
IDLE_S = 10.0
# From the first byte of a question to its last, and from an answer to its being read.
MESSAGE_S = 5.0
# Questions of one connection that wait for their answers; more are not read until there are fewer.
PENDING_MAX = 64
# Answers waiting to be read. A connection that has more is not read from.
OUTPUT_MAX = 4 * MESSAGE_MAX


@dataclass(slots=True)
class Stream:
    """One connection's state: what was read of the next question, what is to be written."""

    opened_s: float
    output: bytearray = field(default_factory=bytearray)
    pending: int = 0
    closing: bool = False  # nothing more is read; closed when the output is written
    _input: bytearray = field(default_factory=bytearray)
    _began_s: float | None = None  # when the question that is not complete began
    _idle_since_s: float = 0.0
    _writing_since_s: float | None = None

    def __post_init__(self) -> None:
        self._idle_since_s = self.opened_s

    @property
    def readable(self) -> bool:
        """Whether more is to be read now."""
        return not self.closing and self.pending < PENDING_MAX and len(self.output) < OUTPUT_MAX

    @property
    def done(self) -> bool:
        """Whether the connection is to be closed."""
        return self.closing and not self.output and not self.pending

    def receive(self, data: bytes, now_s: float) -> list[bytes]:
        """The questions that are complete now. No data: the client has sent all it wanted."""
        if not data:
            self.closing = True
            return []
        self._input += data
        self._idle_since_s = now_s
        return self.questions_ready(now_s)

    def questions_ready(self, now_s: float) -> list[bytes]:
        """Questions that were read, but had to wait for others to be answered."""
        ready: list[bytes] = []
        while self.pending < PENDING_MAX and len(self._input) >= 2:
            length = int.from_bytes(self._input[:2], "big")
            if len(self._input) < 2 + length:
                break
            ready.append(bytes(self._input[2 : 2 + length]))
            del self._input[: 2 + length]
            self.pending += 1
            self._began_s = None
        if not self._input or ready:
            self._began_s = None
        if self._input and self._began_s is None and self.pending < PENDING_MAX:
            self._began_s = now_s
        return ready

    def answered(self, message: bytes | None, now_s: float) -> None:
        """One question's answer; None: it gets none."""
        self.pending -= 1
        self._idle_since_s = now_s
        if message is not None:
            if not self.output:
                self._writing_since_s = now_s
            self.output += len(message).to_bytes(2, "big") + message

    def written(self, count: int, now_s: float) -> None:
        """`count` bytes of the output were taken."""
        del self.output[:count]
        if not self.output:
            self._writing_since_s = None
        self._idle_since_s = now_s

    def deadline_s(self) -> float:
        """When to cut the connection off."""
        deadlines = [self._idle_since_s + IDLE_S]
        if self._began_s is not None:
            deadlines.append(self._began_s + MESSAGE_S)
        if self._writing_since_s is not None:
            deadlines.append(self._writing_since_s + MESSAGE_S)
        return min(deadlines)
