"""Bugs on purpose, one at a time: the simulator must find each. They live here, never behind a switch in the product.

    .venv/bin/python tests/sim/raft/mutants.py                  # the table: bug, first seed that shows it, and how
    .venv/bin/python tests/sim/raft/mutants.py --seeds 1000 --blunt

The first twelve are those of shared/reference/raft-and-store.md, section 8. `--blunt` leaves out the checks that look
at disks and rules: what is left sees only what a user would come to see.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest.mock import patch

sys.path[:0] = [str(Path(__file__).resolve().parents[3])]

from control.raft import core, election, follower, leader, messages, progress, quorum, state  # noqa: E402
from control.raft.configuration import Configuration, decode_configuration  # noqa: E402
from control.raft.log import Log  # noqa: E402
from control.raft.reads import Reads  # noqa: E402
from control.raft.ready import Kind, Restored, Role  # noqa: E402
from control.store.record import Entry, HardState  # noqa: E402
from tests.sim.raft.disk import Disk  # noqa: E402
from tests.sim.raft.node import Machine, Node, Violation  # noqa: E402
from tests.sim.raft.world import World  # noqa: E402

Patches = list[tuple[Any, str, Any]]
MUTANTS: dict[str, Callable[[], Patches]] = {}


def mutant(make: Callable[[], Patches]) -> Callable[[], Patches]:
    MUTANTS[make.__name__.replace("_", " ")] = make
    return make


# --- the twelve of the reference --------------------------------------------------------------------------------------


@mutant
def vote_before_sync() -> Patches:
    return [(messages.VoteReply, "EARLY", True)]


@mutant
def acknowledge_before_sync() -> Patches:
    return [(messages.AppendReply, "EARLY", True)]


@mutant
def truncate_always() -> Patches:
    def merge(self: Log, entries: Any) -> None:
        if entries and entries[0].index <= self.last_index and entries[0].index > self.commit:
            self._cut(entries[0].index)
        real(self, entries)

    real = Log.merge
    return [(Log, "merge", merge)]


@mutant
def count_self_early() -> Patches:
    def commit(s: Any) -> None:
        durable, s.log.durable = s.log.durable, s.log.last_index
        real(s)
        s.log.durable = durable

    real = leader.commit
    return [(leader, "commit", commit)]


@mutant
def commit_old_term() -> Patches:
    def commit(s: Any) -> None:
        index = quorum.agreed([s.log.durable if v == s.id else s.progress[v].match for v in s.voters])
        if index > s.log.commit and s.log.term(index) != s.term:
            s.log.commit_to(index)
        real(s)

    real = leader.commit
    return [(leader, "commit", commit)]


@mutant
def reuse_read_round() -> Patches:
    def enter(self: Reads, question: Any, commit: int) -> None:
        self.open.append((self.round, commit, question))
        self.dirty = True

    return [(Reads, "enter", enter)]


@mutant
def change_before_noop() -> Patches:
    def propose_change(s: Any, change: Any, mistake: str) -> Any:
        own = any(e.kind == Kind.CHANGE and e.term == s.term for e in s.log.entries[s.log.applied - s.log.base_index :])
        if own or mistake or s.transferee or s.log.term(s.log.commit) == s.term:
            return real(s, change, mistake)
        leader.append(s, Kind.CHANGE, leader.encode(change))
        s.pending_change = s.log.last_index
        return leader.Accepted(s.log.last_index, s.term)

    real = leader.propose_change
    return [(leader, "propose_change", propose_change)]


@mutant
def ignore_removed_id() -> Patches:
    return [(Configuration, "removed", lambda self, member_id: False)]


@mutant
def torn_tail_accepted() -> Patches:
    def crash(self: Disk, rng: Any) -> None:
        torn = self.queue[0] if self.queue else None
        if torn is not None and torn.entries and torn.snapshot is None:
            entry = torn.entries[-1]
            self.queue.clear()
            self.syncing = 0
            for one in (*torn.entries[:-1], Entry(entry.index, entry.term, entry.kind, bytes(len(entry.data)))):
                if one.index <= self.base_index + len(self.log) + 1:
                    del self.log[one.index - self.base_index - 1 :]
                    self.log.append(one)
            return
        real(self, rng)

    real = Disk.crash
    return [(Disk, "crash", crash)]


@mutant
def log_released_before_snapshot() -> Patches:
    def save_snapshot(self: Node) -> None:
        before = self.saving
        real(self)
        if self.saving and not before and self.disk.snapshot is not None:
            self.disk.compact(min(self.machine.applied, self.disk.base_index + len(self.disk.log)))

    real = Node.save_snapshot
    return [(Node, "save_snapshot", save_snapshot)]


@mutant
def apply_error_ignored() -> Patches:
    def apply(self: Machine, entry: Entry, operations: Any) -> Any:
        if entry.kind == Kind.DATA and entry.index % 7 == 0 and len(self.registers) % 2:
            self.applied = entry.index
            return None
        return real(self, entry, operations)

    def fails(self: Node, entries: Any) -> None:
        with patch.object(Machine, "apply", apply if self.id.startswith("n2") else real):
            real_apply(self, entries)

    real, real_apply = Machine.apply, Node.apply
    return [(Node, "apply", fails)]


@mutant
def watch_skips_batch() -> Patches:
    def apply(self: Node, entries: Any) -> None:
        watch = self.watch
        if len(entries) > 2:
            self.watch = lambda entry: None  # type: ignore[method-assign]
        try:
            real(self, entries)
        finally:
            self.watch = watch  # type: ignore[method-assign]

    real = Node.apply
    return [(Node, "apply", apply)]


# --- ours -------------------------------------------------------------------------------------------------------------


@mutant
def vote_twice() -> Patches:
    def on_vote(s: Any, m: Any) -> None:
        if s.role is Role.FOLLOWER:
            s.vote, s.leader = "", ""
        real(s, m)

    real = election.on_vote
    return [(election, "on_vote", on_vote)]


@mutant
def vote_for_any_log() -> Patches:
    return [(election, "up_to_date", lambda s, index, term: True)]


@mutant
def vote_for_longest_log() -> Patches:
    return [(election, "up_to_date", lambda s, index, term: index >= s.log.last_index)]


@mutant
def vote_forgotten() -> Patches:
    def restored(self: Disk) -> Restored:
        found = real(self)
        hard = HardState(found.hard_state.term, "", found.hard_state.commit)
        return Restored(hard, found.snapshot, found.base_index, found.base_term, found.entries)

    real = Disk.restored
    return [(Disk, "restored", restored)]


@mutant
def term_forgotten() -> Patches:
    def restored(self: Disk) -> Restored:
        found = real(self)
        term = self.log[-1].term if self.log else self.base_term
        hard = HardState(term, "", found.hard_state.commit)
        return Restored(hard, found.snapshot, found.base_index, found.base_term, found.entries)

    real = Disk.restored
    return [(Disk, "restored", restored)]


@mutant
def own_vote_before_sync() -> Patches:
    def become_candidate(s: Any, *, transfer: bool) -> None:
        real(s, transfer=transfer)
        s.votes[s.id] = True
        election.count(s)

    real = election.become_candidate
    return [(election, "become_candidate", become_candidate)]


@mutant
def lead_in_the_same_term() -> Patches:
    def become_candidate(s: Any, *, transfer: bool) -> None:
        if transfer:
            s.term -= 1
        real(s, transfer=transfer)

    real = election.become_candidate
    return [(election, "become_candidate", become_candidate)]


@mutant
def half_is_a_majority() -> Patches:
    return [(quorum, "majority", lambda count: max(1, count // 2))]


@mutant
def learners_count() -> Patches:
    return [(Configuration, "voters", property(lambda self: tuple(m.id for m in self.members)))]


@mutant
def heartbeat_commits_anything() -> Patches:
    def heartbeat(s: Any) -> None:
        number = s.reads.next_round()
        for one in s.progress.values():
            s.send(messages.Heartbeat(s.id, one.id, s.term, s.log.commit, number))

    def step(s: Any, m: Any) -> None:
        if isinstance(m, messages.Heartbeat):
            m = messages.Heartbeat(m.sender, m.receiver, m.term, min(m.commit, s.log.last_index), m.round)
        real(s, m)

    real = follower.step
    return [(leader, "heartbeat", heartbeat), (follower, "step", step)]


@mutant
def append_commits_beyond_itself() -> Patches:
    def on_append(s: Any, m: Any) -> None:
        real(s, m)
        if s.log.term(m.prev_index) == m.prev_term:
            s.log.commit_to(min(m.commit, s.log.last_index))

    def refused(self: Any, prev_index: int, meeting: int) -> bool:
        return real_refused(self, prev_index, self.match)

    real, real_refused = follower.on_append, progress.Progress.refused
    # With good hints the first entry that is sent conflicts, if any does: without them, this bug does its harm.
    return [(follower, "on_append", on_append), (progress.Progress, "refused", refused)]


@mutant
def conflict_keeps_the_tail() -> Patches:
    def merge(self: Log, entries: Any) -> None:
        tail = list(self.entries)
        before = self.last_index
        real(self, entries)
        if self.last_index < before:
            self.entries.extend(tail[self.last_index - self.base_index :])
            self.last_index = before

    real = Log.merge
    return [(Log, "merge", merge)]


@mutant
def previous_entry_not_checked() -> Patches:
    def on_append(s: Any, m: Any) -> None:
        term = s.log.term(m.prev_index)
        if term is not None and m.prev_index >= s.log.commit:
            m = messages.Append(m.sender, m.receiver, m.term, m.prev_index, term, m.commit, m.entries)
        real(s, m)

    real = follower.on_append
    return [(follower, "on_append", on_append)]


@mutant
def read_without_quorum() -> Patches:
    def confirm_reads(s: Any) -> None:
        for one in s.progress.values():
            one.round = s.reads.round
        real(s)

    real = leader.confirm_reads
    return [(leader, "confirm_reads", confirm_reads)]


@mutant
def read_before_own_commit() -> Patches:
    def ask(s: Any, question: Any) -> bool:
        s.reads.enter(question, s.log.commit)
        s.flush = True
        return True

    return [(leader, "ask", ask)]


@mutant
def end_of_an_overtaken_write_counts() -> Patches:
    def _cut(self: Log, index: int) -> None:
        kept = [(write, write.upto) for write in self.in_flight]
        real(self, index)
        for write, upto in kept:
            write.upto = upto

    def written(self: Log) -> None:
        write = self.in_flight.popleft()
        self.durable = max(self.durable, min(write.upto, self.last_index))

    real = Log._cut
    return [(Log, "_cut", _cut), (Log, "written", written)]


@mutant
def applied_before_durable() -> Patches:
    def applicable(self: Log, max_bytes: int) -> Any:
        durable, self.durable = self.durable, self.last_index
        entries = real(self, max_bytes)
        self.durable = durable
        return entries

    def ready(self: Any) -> Any:
        log = self._s.log
        if log.applied < log.commit and log.durable <= log.applied:
            log.durable, durable = log.last_index, log.durable
            found = real_ready(self)
            log.durable = durable
            return found
        return real_ready(self)

    real, real_ready = Log.applicable, core.Core.ready
    return [(Log, "applicable", applicable), (core.Core, "ready", ready)]


@mutant
def two_changes_at_once() -> Patches:
    def propose_change(s: Any, change: Any, mistake: str) -> Any:
        s.pending_change = 0
        return real(s, change, mistake)

    real = leader.propose_change
    return [(leader, "propose_change", propose_change)]


@mutant
def snapshot_without_members() -> Patches:
    def decode(data: bytes) -> Configuration:
        found = decode_configuration(data)
        return Configuration(found.members[:1], found.joined, found.epoch)

    return [(follower, "decode_configuration", decode), (state, "decode_configuration", decode)]


@mutant
def snapshot_over_newer_log() -> Patches:
    def on_snapshot(s: Any, m: Any) -> None:
        if m.snapshot.index > s.log.base_index:
            s.log.restore(m.snapshot)
            s.configure(decode_configuration(m.snapshot.data))
        s.send(messages.AppendReply(s.id, m.sender, s.term, s.log.commit))

    return [(follower, "on_snapshot", on_snapshot)]


@mutant
def failed_snapshot_forgotten() -> Patches:
    return [(leader, "on_snapshot_report", lambda s, member_id, *, ok: None)]


@mutant
def probe_stays_paused() -> Patches:
    def on_heartbeat_reply(s: Any, m: Any) -> None:
        one = s.progress.get(m.sender)
        if one is not None and one.paused:
            one.heard = s.ticks
            return
        real(s, m)

    real = leader.on_heartbeat_reply
    return [(leader, "on_heartbeat_reply", on_heartbeat_reply)]


@mutant
def handed_over_to_who_is_no_better() -> Patches:
    def hand_over(s: Any) -> None:
        if best := leader.successor(s):
            leader.transfer(s, best)

    return [(leader, "hand_over", hand_over)]


@mutant
def transfer_never_given_up() -> Patches:
    def tick(s: Any) -> None:
        transferee, s.transferee = s.transferee, ""  # nor asked again
        real(s)
        s.transferee = s.transferee or transferee

    real = leader.tick
    return [(leader, "tick", tick)]


@mutant
def later_term_not_told() -> Patches:
    return [(core.Core, "_is_earlier", lambda self, m: False)]


@mutant
def leaders_remove_themselves() -> Patches:
    return [(leader, "unseats", lambda change, member_id: False)]


@mutant
def uncommitted_without_bound() -> Patches:
    def propose(s: Any, data: Any) -> Any:
        kept, s.log.uncommitted_bytes = s.log.uncommitted_bytes, 0
        outcome = real(s, list(data) * 40)
        s.log.uncommitted_bytes += kept
        return outcome

    real = leader.propose
    return [(leader, "propose", propose)]


@mutant
def stale_answers_count() -> Patches:
    def step(self: Any, m: Any) -> None:
        s = self._s
        if isinstance(m, messages.AppendReply) and m.term < s.term and s.role is Role.LEADER:
            m = messages.AppendReply(m.sender, m.receiver, s.term, min(m.index, s.log.last_index))
        elif isinstance(m, messages.VoteReply) and m.term < s.term and s.role is Role.CANDIDATE:
            m = messages.VoteReply(m.sender, m.receiver, s.term, m.granted)
        real(self, m)

    real = core.Core.step
    return [(core.Core, "step", step)]


# --- found by the simulator in the core -------------------------------------------------------------------------------


@mutant
def who_lost_its_vote_is_told_at_once() -> Patches:
    """One of the first seeds: two managers, one of which was removed, and the other one needed its vote."""

    def _take_vote(s: Any, index: int, one: Any, *, voter: bool) -> None:
        if one.voter and not voter:
            s.pending_change = index
        one.voter = voter

    def _told(s: Any, one: Any) -> int:
        return s.log.commit

    return [(leader, "_take_vote", _take_vote), (leader, "_told", _told)]


@mutant
def who_is_demoted_is_told_at_once() -> Patches:
    """Seed 3327 of then: it had a longer log than the only voter left, who did not know durably that it was alone."""

    def _told(s: Any, one: Any) -> int:
        return s.log.commit if one.id == s.withheld else real(s, one)

    real = leader._told
    return [(leader, "_told", _told)]


@mutant
def removal_of_before_is_committed_by_its_object() -> Patches:
    """Seeds 3816 and 4070 of then: a leader with its own removal in the log commits it, and stops."""

    def become_leader(s: Any) -> None:
        real(s)
        s.outgoing = False

    real = leader.become_leader
    return [(leader, "become_leader", become_leader)]


@mutant
def changes_of_before_are_told_early() -> Patches:
    """Seed 2005668: a new leader took the last entry of before for the only change there might be. It told a member of
    the demotion of that before it had applied it, and died."""

    def _told(s: Any, one: Any) -> int:
        first, s.changes = s.changes, [s.pending_change] if s.changes else []
        told = real(s, one)
        s.changes = first
        return told

    real = leader._told
    return [(leader, "_told", _told)]


@mutant
def who_gets_a_vote_is_told_late() -> Patches:
    """Seed 501476: it had the longest log, and did not know that it might campaign; a leader was lost for good."""
    return [(leader, "_end_for", lambda s, one, told: s.log.last_index)]


# The seeds that show them (the table of `main`); tests try these first.
CAUGHT_BY = {
    "vote before sync": 1,
    "acknowledge before sync": 1,
    "truncate always": 2,
    "count self early": 1,
    "commit old term": 1,
    "reuse read round": 1315,
    "change before noop": 1,
    "ignore removed id": 2,
    "torn tail accepted": 2,
    "log released before snapshot": 1,
    "apply error ignored": 1,
    "watch skips batch": 1,
    "vote twice": 8,
    "vote for any log": 1,
    "vote for longest log": 242,
    "vote forgotten": 371,
    "term forgotten": 17,
    "own vote before sync": 240,
    "lead in the same term": 4,
    "half is a majority": 1,
    "learners count": 1,
    "heartbeat commits anything": 3,
    "append commits beyond itself": 77,
    "conflict keeps the tail": 3,
    "previous entry not checked": 1,
    "read without quorum": 7,
    "read before own commit": 3,
    "end of an overtaken write counts": 329,
    "applied before durable": 1,
    "two changes at once": 1,
    "snapshot without members": 1,
    "snapshot over newer log": 1,
    "failed snapshot forgotten": 1,
    "probe stays paused": 7,
    "transfer never given up": 301,
    "handed over to who is no better": 8,
    "later term not told": 635,
    "who lost its vote is told at once": 437,
    "who gets a vote is told late": 1360,
    "changes of before are told early": 2536,
    "leaders remove themselves": 1,
    "uncommitted without bound": 1,
    "stale answers count": 1917,
    "who is demoted is told at once": 10,
    "removal of before is committed by its object": 1,
}

# --- hunting ----------------------------------------------------------------------------------------------------------


def hunt(name: str, seeds: range, *, blunt: bool = False) -> tuple[int, str] | None:
    """The first seed that shows a bug, and the invariant; None if none does."""
    with ExitStack() as stack:
        for target, attribute, value in MUTANTS[name]():
            stack.enter_context(patch.object(target, attribute, value))
        for seed in seeds:
            try:
                World(seed, blunt=blunt).run()
            except Violation as violation:
                return seed, violation.name
    return None


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=500, help="give a bug up after so many")
    parser.add_argument("--blunt", action="store_true")
    parser.add_argument("names", nargs="*", default=[])
    options = parser.parse_args()
    missed = 0
    print(f"{'bug':<45} {'seed':>6}  invariant")
    for name in options.names or MUTANTS:
        began = time.monotonic()
        found = hunt(name, range(1, options.seeds + 1), blunt=options.blunt)
        missed += found is None
        seed, invariant = found or ("-", f"not found in {options.seeds} seeds")
        print(f"{name:<45} {seed:>6}  {invariant}  ({time.monotonic() - began:.1f} s)", flush=True)
    return int(missed > 0)


if __name__ == "__main__":
    sys.exit(main())
