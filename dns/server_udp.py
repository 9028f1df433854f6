"""Serving datagrams: the loop that most questions never leave. A shell.

A batch is received with one system call, each question looked up in a dictionary, its answer written over it, and the
batch sent with another. Only what the dictionary does not know goes through the resolver.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from dataclasses import dataclass

from dns.fairness import BEHIND, Fairness
from dns.kernel import BATCH, SLOT, Batch, buffered
from dns.recursor import Fetched
from dns.resolver import Drop, Forward, Resolver, View
from dns.wire import Query

# Batches of one socket in one turn, so that other networks' clients wait for less than a millisecond.
BATCHES_PER_TURN = 4
_STARTS = tuple(range(0, BATCH * SLOT, SLOT))
_OVER = -1  # instead of a length: not to be answered, its client has had its share


@dataclass(frozen=True, slots=True)
class Datagram:
    """Where a late answer goes."""

    listener: UdpListener
    sender: tuple[str, int]


Ask = Callable[[Query, int, Datagram, bytes], Fetched | None]


@dataclass(slots=True)
class UdpCounters:
    queries: int = 0
    hot: int = 0
    dropped: int = 0
    unsent: int = 0


class UdpListener:
    """One socket, and the view its clients have."""

    def __init__(
        self,
        sock: socket.socket,
        network_id: str | None,
        batch: Batch,
        resolver: Resolver,
        ask: Ask,
        clock: Callable[[], float],
        counters: UdpCounters,
        dropped: dict[str, int],
    ) -> None:
        """`dropped` counts by reason. `ask(query, limit, where, client)` is for names of others."""
        self.sock, self.network_id = sock, network_id
        self._batch, self._resolver, self._ask, self._clock = batch, resolver, ask, clock
        self._counters, self._dropped = counters, dropped
        self.fairness = Fairness()
        self.over_share = 0
        self.closed = False
        self.refresh()

    def refresh(self) -> None:
        """The networks, or who is on several of them, changed."""
        self.view: View = self._resolver.view(self.network_id)
        self._special = self._resolver.special(self.network_id)

    def readable(self, _events: int) -> None:
        """Answer what is there, up to some batches."""
        fd = self.sock.fileno()
        for _ in range(BATCHES_PER_TURN):
            try:
                lengths = self._batch.receive(fd)
            except OSError:  # an error of an earlier answer (ICMP) that the kernel reports here
                self._counters.unsent += 1
                continue
            if lengths:
                self._serve(fd, lengths)
            if len(lengths) < BATCH:
                return

    def _serve(self, fd: int, lengths: list[int]) -> None:
        batch, special = self._batch, self._special
        if len(lengths) == BATCH:
            lengths = self._share(lengths)
        silent: list[int] = []
        hits = 0
        if special:
            for slot, length in enumerate(lengths):
                if not self._slow(special.get(batch.sender(slot), self.view), slot, length):
                    silent.append(slot)
        else:
            view = self.view
            questions, buffer, sizes = batch.questions, batch.buffer, batch.sizes
            keys = [questions[at + 2 : at + length] for at, length in zip(_STARTS, lengths)]  # noqa: B905 - fewer
            for slot, found in enumerate(map(view.hot.answers.get, keys)):
                if found is not None:
                    at, size = slot * SLOT + 2, len(found)
                    buffer[at : at + size] = found
                    sizes[2 * slot + 1] = size + 2
                    hits += 1
                elif not self._slow(view, slot, lengths[slot]):
                    silent.append(slot)
        self._counters.queries += len(lengths)
        self._counters.hot += hits
        self._send(fd, len(lengths), silent)

    def _send(self, fd: int, count: int, silent: list[int]) -> None:
        first = 0
        for slot in (*silent, count):
            if slot > first:
                self._counters.unsent += self._batch.send(fd, first, slot - first)
            first = slot + 1

    def _share(self, lengths: list[int]) -> list[int]:
        """Under pressure: mark what is over a client's share."""
        senders = self._batch.senders(len(lengths))
        over = self.fairness.over(senders, self._clock(), behind=buffered(self.sock).part > BEHIND)
        if not over:
            return lengths
        kept = [_OVER if sender in over else length for sender, length in zip(senders, lengths, strict=True)]
        self.over_share += kept.count(_OVER)
        return kept

    def _slow(self, view: View, slot: int, length: int) -> bool:
        """Whether there is an answer in the slot now."""
        batch = self._batch
        if length == _OVER:
            return False
        if length >= SLOT:
            self._drop("too long")
            return False
        data = batch.questions[slot * SLOT : slot * SLOT + length]
        outcome = self._resolver.udp(view, data)
        match outcome:
            case Drop(reason):
                self._drop(reason)
                return False
            case Forward(query, keep):
                where = Datagram(self, batch.sockaddr(slot))
                fetched = self._ask(query, query.udp_limit, where, batch.sender(slot))
                if fetched is None:
                    return False
                answer = fetched.answer
                if keep is not None and fetched.repeatable:
                    view.hot.put_brief(*keep, answer[:12][2:] + keep[1] + answer[12 + len(keep[1]) :])
            case bytes(answer):
                pass
        batch.answer(slot, answer)
        return True

    def _drop(self, reason: str) -> None:
        self._dropped[reason] = self._dropped.get(reason, 0) + 1

    def answer_late(self, sender: tuple[str, int], answer: bytes) -> None:
        """Send an answer that had to be fetched."""
        try:
            if not self.closed:
                self.sock.sendto(answer, sender)
        except OSError:  # the client is gone, or the buffer full: it asks again
            self._counters.unsent += 1

    def close(self) -> None:
        """Late answers are dropped from now on."""
        self.closed = True
        self.sock.close()
