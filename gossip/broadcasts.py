"""Messages on their way to everybody: which ones go into the next packet, and how many times more. Pure and bounded.

The order is memberlist's: what was sent least first, among those the longest (what fits fills the packet best), among
those the newest. A message about a subject replaces any older one about the same subject, so for membership the queue
can be no longer than the number of members; messages without a subject are bounded by `limit`, and the one that was
sent most often gives way.
"""

from __future__ import annotations

import heapq
from collections.abc import Hashable

# Messages without a subject that may wait (Serf drops above 4096). At 15 packets a second nothing longer drains.
QUEUE_MAX = 4096


class _Entry:
    """One message; `live` turns false when it was replaced or is done, and its heap entry is then skipped."""

    __slots__ = ("live", "message", "subject")

    def __init__(self, message: bytes, subject: Hashable | None) -> None:
        self.message = message
        self.subject = subject
        self.live = True


class Broadcasts:
    """One queue. `len` is the number of messages that still have to be sent."""

    __slots__ = ("_by_subject", "_heap", "_limit", "_live", "_serial", "dropped")

    def __init__(self, limit: int = QUEUE_MAX) -> None:
        # (transmits, -length, -serial, entry): serial is unique, so entries are never compared
        self._heap: list[tuple[int, int, int, _Entry]] = []
        self._by_subject: dict[Hashable, _Entry] = {}
        self._limit = limit
        self._live = 0
        self._serial = 0
        self.dropped = 0  # for want of room

    def __len__(self) -> int:
        return self._live

    def queue(self, message: bytes, subject: Hashable | None = None) -> None:
        """Send `message` to everybody; with a subject, instead of any older message about it."""
        if subject is not None and (older := self._by_subject.get(subject)) is not None:
            self._kill(older)
        if self._live >= self._limit:
            self._drop_most_sent()
        entry = _Entry(message, subject)
        if subject is not None:
            self._by_subject[subject] = entry
        self._serial += 1
        self._live += 1
        heapq.heappush(self._heap, (0, -len(message), -self._serial, entry))

    def forget(self, subject: Hashable) -> None:
        """Stop sending what is queued about a subject."""
        if (entry := self._by_subject.get(subject)) is not None:
            self._kill(entry)

    def waiting(self, subject: Hashable) -> bool:
        """Whether a message about this subject still has to be sent."""
        return subject in self._by_subject

    @property
    def fresh(self) -> bool:
        """Whether there is a message that was never sent."""
        heap = self._heap
        while heap and not heap[0][3].live:
            heapq.heappop(heap)
        return bool(heap) and not heap[0][0]

    def take(self, overhead: int, limit: int, transmits: int) -> list[bytes]:
        """Messages for one packet: at most `limit` bytes, each counted with `overhead`; each is sent `transmits` times.

        Looks at every message that is waiting only if those before it do not fit; stops when nothing more can fit.
        """
        taken: list[bytes] = []
        back: list[tuple[int, int, int, _Entry]] = []
        room = limit
        while self._heap and room > overhead:
            item = heapq.heappop(self._heap)
            sent, length, serial, entry = item
            if not entry.live:
                continue
            if overhead - length > room:
                back.append(item)
                if len(back) > _LOOK_PAST:
                    break
                continue
            room -= overhead - length
            taken.append(entry.message)
            if sent + 1 >= transmits:
                self._kill(entry)
            else:
                back.append((sent + 1, length, serial, entry))
        for item in back:
            heapq.heappush(self._heap, item)
        return taken

    def clear(self) -> None:
        self._heap.clear()
        self._by_subject.clear()
        self._live = 0

    def _kill(self, entry: _Entry) -> None:
        if not entry.live:
            return
        entry.live = False
        self._live -= 1
        if entry.subject is not None and self._by_subject.get(entry.subject) is entry:
            del self._by_subject[entry.subject]
        if len(self._heap) > 2 * self._live + _DEAD_MAX:  # replaced entries must not pile up
            self._heap = [item for item in self._heap if item[3].live]
            heapq.heapify(self._heap)

    def _drop_most_sent(self) -> None:
        live = [item for item in self._heap if item[3].live]
        if live:
            self._kill(max(live)[3])
            self.dropped += 1


# Messages that did not fit and were set aside before a packet is closed: those after them are no shorter, except for
# those sent more often, which can wait.
_LOOK_PAST = 16
# Entries of replaced messages that may stay in the heap beyond the live ones before it is built anew.
_DEAD_MAX = 64
