"""What goes into the SWIM core and what comes out of it, as values; and its timers. Pure."""

from __future__ import annotations

import enum
import heapq
import math
from collections.abc import Callable

import msgspec

from gossip.delegate import Address
from gossip.profile import LAN, Profile
from gossip.wire import U32_MAX, VERSIONS

# Incarnations start at the minutes since this moment (2026-01-01T00:00Z), so that who starts anew is newer than what is
# remembered of him: after a mass restart nobody must be accused first. Seconds would use up 32 bits in 136 years, and
# leave JUMP_MAX no meaning.
INCARNATION_EPOCH_S = 1767225600
# A single message must not push an incarnation to its end, where nobody could refute any more. Two years of minutes.
JUMP_MAX = 1 << 20
INCARNATION_MAX = U32_MAX + 1 - JUMP_MAX
FIRST_INCARNATION_MAX = INCARNATION_MAX // 2  # of a node that nobody knows: it leaves 2,000 times JUMP_MAX to refute


def first_incarnation(unix_s: float) -> int:
    """Of a node that starts at this time."""
    return min(max(1, int(unix_s - INCARNATION_EPOCH_S) // 60), FIRST_INCARNATION_MAX)


class SwimConfig(msgspec.Struct, frozen=True):
    """One node."""

    name: str
    address: Address  # what others are told
    incarnation: int
    profile: Profile = LAN
    compress: bool = True  # streams; packets are filled before they would be compressed, which gains little
    versions: bytes = VERSIONS
    former: Address | None = None  # where this node was when it last ran, if that was elsewhere


class SendPacket(msgspec.Struct, frozen=True, gc=False):
    to: Address
    data: bytes


class OpenStream(msgspec.Struct, frozen=True, gc=False):
    """Connect, send `data`, and if `reply` read one message, all in `timeout_s`; then call `Swim.finish_stream`."""

    token: int
    to: Address
    data: bytes
    timeout_s: float
    reply: bool


Output = SendPacket | OpenStream


class StreamFailure(enum.Enum):
    """Why a stream that this node opened brought nothing."""

    LOCAL = "local"  # this node could not even try: it has no route, no address, no descriptor
    REMOTE = "remote"  # nobody answered, or not what was asked for


class Timer:
    """What is to be done at a time, unless it is cancelled."""

    __slots__ = ("action", "at_s")

    def __init__(self, at_s: float, action: Callable[[float], None]) -> None:
        self.at_s = at_s
        self.action: Callable[[float], None] | None = action

    def cancel(self) -> None:
        self.action = None


# Cancelled timers may make up this many entries beside the live ones before the heap is built anew.
_CANCELLED_MAX = 256


class Timers:
    """All timers of one core, in a heap; cancelled ones stay in it until they are due or too many."""

    __slots__ = ("_heap", "_serial", "_sweep_at")

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Timer]] = []
        self._serial = 0
        self._sweep_at = _CANCELLED_MAX

    def at(self, at_s: float, action: Callable[[float], None]) -> Timer:
        """Call `action(now)` when it is time."""
        timer = Timer(at_s, action)
        self._serial += 1
        heapq.heappush(self._heap, (at_s, self._serial, timer))
        if len(self._heap) > self._sweep_at:
            self._heap = [item for item in self._heap if item[2].action is not None]
            heapq.heapify(self._heap)
            self._sweep_at = 2 * len(self._heap) + _CANCELLED_MAX
        return timer

    def deadline(self) -> float:
        """When the next one is due."""
        while self._heap and self._heap[0][2].action is None:
            heapq.heappop(self._heap)
        return self._heap[0][0] if self._heap else math.inf

    def run(self, now: float) -> None:
        """Do what is due."""
        while self._heap and self._heap[0][0] <= now:
            timer = heapq.heappop(self._heap)[2]
            action, timer.action = timer.action, None
            if action is not None:
                action(now)

    def clear(self) -> None:
        self._heap.clear()
