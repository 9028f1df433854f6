"""What must hold at every step, seen by somebody who sees all managers and all disks at once."""

from __future__ import annotations

from typing import TYPE_CHECKING

from control.raft.configuration import apply_change, decode_change, number_of
from control.raft.messages import AppendReply, PreVoteReply, VoteReply
from control.raft.quorum import majority
from control.raft.ready import Kind, Role
from control.store.record import Entry
from tests.sim.raft.node import Node, Violation

if TYPE_CHECKING:
    from tests.sim.raft.world import World


class Checks:
    """See the module."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.leaders: dict[int, tuple[str, int]] = {}  # term -> member, its life
        self.entries: dict[tuple[int, int], tuple[int, int, bytes]] = {}  # index, term -> term before, kind, data
        self.agreed: dict[int, Entry] = {}
        self.digests: dict[int, int] = {}
        self.votes: dict[tuple[str, int], str] = {}
        self.last_agreed = 0
        self.voters_at: list[set[str]] = []

    # --- after every input of a core ----------------------------------------------------------------------------------

    def look(self, node: Node) -> None:
        assert node.core is not None
        s = node.core._s
        if s.role is Role.LEADER and s.term != node.led_term:
            node.led_term = s.term
            self._elected(node)
        commit = s.log.commit
        if commit != node.seen_commit:
            if commit < node.seen_commit:
                raise Violation("commit goes back", f"{node.id} {node.seen_commit} -> {commit}")
            self._committed(node, node.seen_commit + 1, commit)
            node.seen_commit = commit
        if s.log.uncommitted_bytes <= self.world.bytes_max:
            return
        if s.role is Role.LEADER and s.log.term(commit) == s.term:  # else it is not known yet what is committed
            raise Violation("bounds", f"{node.id} has {s.log.uncommitted_bytes} bytes uncommitted")

    def _elected(self, node: Node) -> None:
        """Election safety and leader completeness."""
        s = node.core._s  # type: ignore[union-attr]
        me = (node.id, node.lives)
        if self.leaders.setdefault(s.term, me) != me:
            raise Violation("election safety", f"{me} and {self.leaders[s.term]} lead term {s.term}")
        if not self.world.blunt and node.disk.hard.term == s.term and node.disk.hard.vote != node.id:
            raise Violation("vote durability", f"{node.id} leads {s.term} by its own vote, but has voted otherwise")
        self._complete(node)

    def _complete(self, node: Node) -> None:
        s = node.core._s  # type: ignore[union-attr]
        last = self.agreed.get(self.last_agreed)
        if last is None or s.term < last.term or last.index <= s.log.base_index:
            return
        if s.log.term(last.index) != last.term:
            raise Violation(
                "leader completeness", f"{node.id}, leader of {s.term}, has not {last.index} of {last.term}"
            )

    def _committed(self, node: Node, low: int, high: int) -> None:
        log = node.core._s.log  # type: ignore[union-attr]
        news = False
        for index in range(max(low, log.base_index + 1), high + 1):
            entry = log.entries[index - log.base_index - 1]
            known = self.agreed.get(index)
            if known is None:
                self.agreed[index] = entry
                self._durable(node, entry)
                self.last_agreed = max(self.last_agreed, index)
                news = True
            elif known is not entry and known != entry:
                raise Violation("committed entries differ", f"{index}: {known} and at {node.id} {entry}")
        s = node.core._s  # type: ignore[union-attr]
        if s.role is Role.LEADER and not self.world.blunt and log.term(high) != s.term:
            raise Violation("commit of an earlier term", f"{high} by {node.id}, leader of {s.term}")
        if news:
            for other in self.world.nodes.values():
                if other is not node and other.leads() and other.core._s.term > node.core._s.term:  # type: ignore[union-attr]
                    self._complete(other)

    def _durable(self, node: Node, entry: Entry) -> None:
        """What is committed is on the disks of a majority."""
        if self.world.blunt or node.core._s.role is not Role.LEADER:  # type: ignore[union-attr]
            return
        for voters in (node.voters, node.core._s.voters):  # type: ignore[union-attr]
            have = sum(1 for v in voters if v in self.world.nodes and self._has(self.world.nodes[v], entry))
            if voters and have >= majority(len(voters)):
                return
        raise Violation("committed, not durable", f"{entry.index} of {entry.term} by {node.id}, of {node.voters}")

    @staticmethod
    def _has(node: Node, entry: Entry) -> bool:
        return node.disk.has(entry.index, entry.term)

    # --- at certain effects -------------------------------------------------------------------------------------------

    def log_matching(self, node: Node, entries: tuple[Entry, ...]) -> None:
        """Equal index and term: equal entry, and equal everything before."""
        log = node.core._s.log  # type: ignore[union-attr]
        before = log.term(entries[0].index - 1)
        if any(entry.kind == Kind.CHANGE for entry in entries):
            self._changes_allowed(node, entries)
        for entry in entries:
            new = (before, entry.kind, entry.data)
            known = self.entries.setdefault((entry.index, entry.term), new)  # type: ignore[arg-type]
            if known != new:
                raise Violation("log matching", f"{entry.index} of {entry.term} at {node.id}: {known}, {new}")
            before = entry.term

    def _changes_allowed(self, node: Node, entries: tuple[Entry, ...]) -> None:
        """A leader begins a change after a commit of its own, and one at a time."""
        s = node.core._s  # type: ignore[union-attr]
        if s.role is not Role.LEADER or self.world.blunt:
            return
        if s.log.term(s.log.commit) != s.term and any(e.kind == Kind.CHANGE and e.term == s.term for e in entries):
            raise Violation("change before own commit", f"{node.id} in {s.term}")
        pending = [e for e in s.log.entries if e.index > s.log.applied and e.kind == Kind.CHANGE and e.term == s.term]
        if len(pending) > 1:
            raise Violation("one change at a time", f"{node.id} has {len(pending)} under way")

    def voted(self, node: Node, reply: VoteReply) -> None:
        """One vote per term, and only what a crash cannot undo."""
        known = self.votes.setdefault((node.id, reply.term), reply.receiver)
        if known != reply.receiver:
            raise Violation("one vote per term", f"{node.id} votes for {known} and {reply.receiver} in {reply.term}")
        hard = node.disk.hard
        if self.world.blunt:
            return
        if hard.term < reply.term or (hard.term == reply.term and hard.vote != reply.receiver):
            raise Violation("vote durability", f"{node.id} votes for {reply.receiver} in {reply.term}, not durably")

    def decided(self, node: Node, reply: VoteReply | PreVoteReply) -> None:
        """Who was removed gets no votes."""
        if self.removed(node, reply.receiver):
            raise Violation("removed member", f"{node.id} votes for {reply.receiver}, which was removed")

    @staticmethod
    def removed(node: Node, member_id: str) -> bool:
        """As a node knows."""
        s = node.core._s  # type: ignore[union-attr]
        if member_id in s.members:
            return False
        configuration = s.configuration
        if any(member.id == member_id for member in configuration.members):
            return False
        return number_of(member_id) <= configuration.joined

    def promised(self, node: Node, reply: AppendReply) -> None:
        """An acknowledged entry is on the disk."""
        if self.world.blunt or reply.term < node.disk.hard.term:
            return  # the leader of a later term has replaced it in the same sync: to the former one it is as if before
        disk = node.disk
        last = max(disk.base_index + len(disk.log), disk.snapshot.index if disk.snapshot is not None else 0)
        if last < reply.index:
            raise Violation("acknowledged, not durable", f"{node.id} acknowledges {reply.index}, has {last}")

    def applied(self, node: Node, entry: Entry) -> None:
        """State machine equality."""
        digest = node.machine.digest
        if self.digests.setdefault(entry.index, digest) != digest:
            raise Violation("state machine equality", f"{node.id} differs after {entry.index}")
        if not self.world.blunt and not node.disk.has(entry.index, entry.term):
            raise Violation("applied, not durable", f"{entry.index} at {node.id}")

    def acknowledged(self, index: int, term: int) -> None:
        """An acknowledged write is one that all agree on."""
        known = self.agreed.get(index)
        if known is None or known.term != term:
            raise Violation("acknowledged write lost", f"{index} of {term}")

    def changes(self) -> None:
        """At the end: majorities of neighbouring configurations meet."""
        configuration = self.world.first
        for index in range(1, self.last_agreed + 1):
            entry = self.agreed.get(index)
            if entry is not None and entry.kind == Kind.CHANGE:
                after = apply_change(configuration, decode_change(entry.data))
                if index > 1 and len(set(after.voters) ^ set(configuration.voters)) > 1:
                    raise Violation("one voter at a time", f"at {index}")
                configuration = after
