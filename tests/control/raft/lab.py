"""Managers on a table: every message, sync and tick is moved by hand, and told in a line.

A transcript is a text file: lines that begin with `#` are for the reader, a line that begins with `>` is a command, and
what follows it, up to an empty line or the next command, is what it must answer. Commands:

    cluster a b c [+d] [option=value]   voters and learners with an empty log; options are those of `Options`
    member a terms=1,1,4 term=5 [commit=2] [vote=b]    anew, with a log of entries of those terms, from index 1 on
    tick a [n]          timeout a       n ticks; ticks until it campaigns (its messages are told by ready)
    pass n              so many ticks of all that are not cut off, each settled
    ready a             sync a [n]      take what it wants done, begin its writes; end all writes, or the first n
    deliver [a>b] [Kind] [n]            messages that wait (all, of a pair, of a kind, the first n)
    drop [a>b] [Kind]   again [a>b] [Kind]     lose them; deliver them and keep them for another time
    settle [quiet]      everything of everybody until nothing is left; quiet: say only who is what in the end
    cut a [b...]        uncut           nothing goes to or from them
    propose a x [y...]  change a add|standby|promote|demote|remove|readdress d
    read a              transfer a [b]  campaign a
    crash a             restart a       what was not synced is lost
    snapshot a [keep]                   of what is applied, durable at once; the log is cut but for `keep` entries
    moved a b | moved a b failed        a snapshot has arrived, or has not
    unreachable a b     reluctant a on|off
    show [a...]         log a...        progress a
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from control.raft.configuration import (
    AddLearner,
    ConfChange,
    Configuration,
    Demote,
    Member,
    Promote,
    Readdress,
    Remove,
    decode_change,
    node_of,
)
from control.raft.core import Core
from control.raft.messages import (
    Append,
    AppendRefusal,
    AppendReply,
    Heartbeat,
    HeartbeatReply,
    InstallSnapshot,
    Message,
    PreVote,
    PreVoteReply,
    ReadReply,
    ReadRequest,
    TermOver,
    TimeoutNow,
    Vote,
    VoteReply,
)
from control.raft.ready import Accepted, Inconsistent, Kind, Options, Ready, Refusal, bootstrap
from control.store.record import Entry, HardState
from tests.sim.raft.disk import Disk, Frame

QUIET_MAX = 2000  # rounds of `settle`: it must come to rest


@dataclass
class Seat:
    """One manager at the table."""

    id: str
    disk: Disk
    core: Core | None = None
    pending: list[Frame] = field(default_factory=list)
    reads: dict[int, str] = field(default_factory=dict)
    now: float = 0.0


class Lab:
    """See the module."""

    def __init__(self) -> None:
        self.seats: dict[str, Seat] = {}
        self.waiting: list[Message] = []
        self.away: set[str] = set()
        self.options = Options(tick_s=1.0, heartbeat_ticks=1, election_ticks=10)
        self.read_count = 0
        self.configuration = Configuration()

    def run(self, line: str) -> list[str]:
        """A command's answer."""
        command, *words = line.split()
        action: Callable[..., Iterator[str]] = getattr(self, f"do_{command}")
        try:
            return list(action(*words))
        except Inconsistent as error:
            return [f"INCONSISTENT: {error}"]

    # --- setting up ---------------------------------------------------------------------------------------------------

    def do_cluster(self, *words: str) -> Iterator[str]:
        names = [word for word in words if "=" not in word]
        settings = {key: int(value) for key, value in (word.split("=") for word in words if "=" in word)}
        self.options = Options(**{"tick_s": 1.0, "heartbeat_ticks": 1, "election_ticks": 10, **settings})
        members = tuple(
            Member(f"{name.lstrip('+')}.{i}", voter=name[0] != "+", standby=name[0] == "+")
            for i, name in enumerate(names, 1)
        )
        self.configuration = Configuration(members, joined=len(members))
        for member in members:
            found = bootstrap(self.configuration)
            self.seats[node_of(member.id)] = Seat(member.id, Disk(hard=found.hard_state, log=list(found.entries)))
            self._start(node_of(member.id))
        yield from ()

    def do_member(self, name: str, *words: str) -> Iterator[str]:
        settings = dict(word.split("=") for word in words)
        terms = [int(term) for term in settings["terms"].split(",")]
        [first] = bootstrap(self.configuration).entries
        entries = [first, *(Entry(i, term, Kind.DATA, b"%d" % i) for i, term in enumerate(terms[1:], 2))]
        vote = settings.get("vote", "")
        seat = self.seats[name]
        seat.disk = Disk(
            hard=HardState(int(settings["term"]), vote and self.seats[vote].id, int(settings.get("commit", "1"))),
            log=entries,
        )
        self._start(name)
        yield from ()

    def _start(self, name: str) -> None:
        seat = self.seats[name]
        seat.core = Core(seat.id, seat.disk.restored(), random.Random(name), seat.now, self.options)
        seat.reads.clear()
        while (ready := seat.core.ready()) is not None:  # what is known to be committed is applied first
            assert not ready.to_disk

    # --- time, disk ---------------------------------------------------------------------------------------------------

    def do_tick(self, name: str, count: str = "1") -> Iterator[str]:
        seat = self.seats[name]
        for _ in range(int(count)):
            seat.now += 1.0
            self._core(name).tick(seat.now)
        yield from ()

    def do_pass(self, count: str) -> Iterator[str]:
        for _ in range(int(count)):
            for name, seat in self.seats.items():
                if seat.core is not None and name not in self.away:
                    list(self.do_tick(name))
            list(self.do_settle())
        yield from self.do_show()

    def do_timeout(self, name: str) -> Iterator[str]:
        core = self._core(name)
        before = core.status().soft
        for _ in range(4 * self.options.election_ticks):
            list(self.do_tick(name))
            if core.status().soft != before or core._s.early or core._s.late:
                return
        yield "nothing"

    def do_ready(self, name: str) -> Iterator[str]:
        seat, said = self.seats[name], False
        while (ready := self._core(name).ready()) is not None:
            said = True
            yield from self._told(seat, ready)
            self.waiting += ready.messages
            if ready.to_disk:
                state = "state" if ready.snapshot is not None else None
                frame = Frame(
                    ready.number, ready.hard_state, ready.entries, ready.snapshot, state, ready.messages_after
                )
                seat.pending.append(frame)
        if not said:
            yield "nothing"

    def _told(self, seat: Seat, ready: Ready) -> Iterator[str]:
        if (soft := ready.soft_state) is not None:
            leader = f", leader {node_of(soft.leader)}" if soft.leader else ""
            yield f"  {node_of(seat.id)} is {soft.role.value} in term {soft.term}{leader}" + (
                ", leading" if soft.leading else ""
            )
        for message in ready.messages:
            yield f"  at once     {told(message)}"
        if ready.snapshot is not None:
            yield f"  to disk     snapshot {ready.snapshot.index}/{ready.snapshot.term}"
        if ready.entries:
            yield f"  to disk     {entries_told(ready.entries)}"
        if (hard := ready.hard_state) is not None:
            vote = f" vote {node_of(hard.vote)}" if hard.vote else ""
            yield f"  to disk     term {hard.term}{vote} commit {hard.commit}" + (
                "" if ready.must_sync else " (lazily)"
            )
        for message in ready.messages_after:
            yield f"  after sync  {told(message)}"
        if ready.committed:
            yield f"  apply       {entries_told(ready.committed)}"
        for read in ready.reads:
            name = seat.reads.pop(read.read_id)
            yield f"  {name} " + ("failed" if read.index is None else f"may be answered at {read.index}")

    def do_sync(self, name: str, count: str = "999") -> Iterator[str]:
        seat = self.seats[name]
        for _ in range(min(int(count), len(seat.pending))):
            frame = seat.pending.pop(0)
            seat.disk.apply(frame)
            self.waiting += frame.messages
            self._core(name).advance(frame.number)
        yield from ()

    def do_crash(self, name: str) -> Iterator[str]:
        seat = self.seats[name]
        seat.core = None
        seat.pending.clear()
        yield from ()

    def do_restart(self, name: str) -> Iterator[str]:
        self._start(name)
        yield from ()

    def do_snapshot(self, name: str, keep: str = "0") -> Iterator[str]:
        seat, core = self.seats[name], self._core(name)
        meta = core.snapshot_meta()
        seat.disk.apply(Frame(0, snapshot=meta, state="state"))
        core.snapshot_saved(meta)
        core.compact(meta.index - int(keep))
        seat.disk.compact(meta.index - int(keep))
        yield f"  {name} has a snapshot {meta.index}/{meta.term}, and entries from {core.first_index} on"

    # --- the network --------------------------------------------------------------------------------------------------

    def _chosen(self, words: tuple[str, ...]) -> list[Message]:
        chosen = list(self.waiting)
        for word in words:
            if ">" in word:
                sender, receiver = word.split(">")
                chosen = [
                    m for m in chosen if sender in ("*", node_of(m.sender)) and receiver in ("*", node_of(m.receiver))
                ]
            elif word.isdecimal():
                chosen = chosen[: int(word)]
            else:
                chosen = [m for m in chosen if type(m).__name__ == word]
        return chosen

    def do_deliver(self, *words: str) -> Iterator[str]:
        chosen = self._chosen(words)
        for message in chosen:
            self.waiting.remove(message)
            yield from self._arrive(message)
        if not chosen:
            yield "nothing"

    def do_again(self, *words: str) -> Iterator[str]:
        for message in self._chosen(words):
            yield from self._arrive(message)

    def do_drop(self, *words: str) -> Iterator[str]:
        for message in self._chosen(words):
            self.waiting.remove(message)
            yield f"  lost        {told(message)}"

    def _arrive(self, message: Message) -> Iterator[str]:
        sender, receiver = node_of(message.sender), node_of(message.receiver)
        seat = self.seats.get(receiver)
        if {sender, receiver} & self.away or seat is None or seat.core is None:
            yield f"  lost        {told(message)}"
            return
        yield f"  {told(message)}"
        seat.core.step(message)

    def do_cut(self, *names: str) -> Iterator[str]:
        self.away |= set(names)
        yield from ()

    def do_uncut(self) -> Iterator[str]:
        self.away.clear()
        yield from ()

    def do_settle(self, how: str = "") -> Iterator[str]:
        lines = []
        for _ in range(QUIET_MAX):
            before = len(lines)
            for name, seat in self.seats.items():
                if seat.core is not None:
                    lines += [line for line in self.do_ready(name) if line != "nothing"]
                    lines += self.do_sync(name)
            lines += [line for line in self.do_deliver() if line != "nothing"]
            if len(lines) == before:
                break
        else:
            raise AssertionError("it does not come to rest")
        yield from self.do_show() if how == "quiet" else lines

    # --- wishes -------------------------------------------------------------------------------------------------------

    def do_propose(self, name: str, *texts: str) -> Iterator[str]:
        yield answer(self._core(name).propose([text.encode() for text in texts]))

    def do_change(self, name: str, what: str, about: str, address: str = "") -> Iterator[str]:
        members = self._core(name).status().configuration.members
        member_id = next((m.id for m in members if node_of(m.id) == about), about)
        changes: dict[str, ConfChange] = {
            "add": AddLearner(about),
            "standby": AddLearner(about, standby=True),
            "promote": Promote(member_id),
            "demote": Demote(member_id),
            "remove": Remove(member_id),
            "readdress": Readdress(member_id, address),
        }
        outcome = self._core(name).propose_change(changes[what])
        yield answer(outcome)
        if isinstance(outcome, Accepted) and isinstance(changes[what], AddLearner):
            number = self._core(name).status().configuration.joined + 1
            self.seats[about] = Seat(f"{about}.{number}", Disk())
            self._start(about)

    def do_read(self, name: str) -> Iterator[str]:
        outcome = self._core(name).read_index()
        if isinstance(outcome, Refusal):
            yield answer(outcome)
            return
        self.read_count += 1
        self.seats[name].reads[outcome] = f"read {self.read_count}"
        yield f"  read {self.read_count}"

    def do_transfer(self, name: str, to: str = "") -> Iterator[str]:
        outcome = self._core(name).transfer_leadership(to and self.seats[to].id)
        if outcome is not None:
            yield answer(outcome)

    def do_campaign(self, name: str) -> Iterator[str]:
        self._core(name).campaign()
        yield from ()

    def do_moved(self, sender: str, receiver: str, how: str = "") -> Iterator[str]:
        self._core(sender).report_snapshot(self.seats[receiver].id, ok=not how)
        yield from ()

    def do_unreachable(self, name: str, other: str) -> Iterator[str]:
        self._core(name).report_unreachable(self.seats[other].id)
        yield from ()

    def do_reluctant(self, name: str, how: str) -> Iterator[str]:
        self._core(name).set_reluctant(how == "on")
        yield from ()

    # --- looking ------------------------------------------------------------------------------------------------------

    def do_show(self, *names: str) -> Iterator[str]:
        for name in names or self.seats:
            seat = self.seats[name]
            if seat.core is None:
                yield f"  {name} down"
                continue
            status = seat.core.status()
            leader = f" leader {node_of(status.soft.leader)}" if status.soft.leader else ""
            vote = f" vote {node_of(status.vote)}" if status.vote else ""
            yield (
                f"  {name} {status.soft.role.value} term {status.soft.term}{vote}{leader} commit {status.commit} "
                f"applied {status.applied} last {status.last_index}"
            )

    def do_log(self, *names: str) -> Iterator[str]:
        for name in names:
            entries = self._core(name)._s.log.entries
            yield f"  {name} {' '.join(str(entry.term) for entry in entries)}"

    def do_members(self, name: str) -> Iterator[str]:
        for member in self._core(name).status().configuration.members:
            kind = "voter" if member.voter else "standby" if member.standby else "learner"
            yield f"  {member.id} {kind}" + (f" at {member.address}" if member.address else "")

    def do_progress(self, name: str) -> Iterator[str]:
        for peer in sorted(self._core(name).status().peers, key=lambda p: p.id):
            progress = self._core(name)._s.progress[peer.id]
            out = len(progress._window)
            yield (
                f"  {node_of(peer.id)} {peer.state} match {peer.match} next {progress.next}"
                + (" paused" if progress.paused else "")
                + (f" out {out}" if out else "")
                + (f" silent {peer.silent_ticks}" if peer.silent_ticks else "")
            )

    def _core(self, name: str) -> Core:
        core = self.seats[name].core
        assert core is not None, f"{name} is down"
        return core


# --- telling ----------------------------------------------------------------------------------------------------------


def answer(outcome: Accepted | Refusal) -> str:
    if isinstance(outcome, Accepted):
        return f"  entry {outcome.index} of term {outcome.term}"
    ask = f" (ask {node_of(outcome.leader)})" if outcome.leader else ""
    return f"  refused: {outcome.text or outcome.why.value}{ask}"


def entries_told(entries: tuple[Entry, ...]) -> str:
    return " ".join(f"{entry.index}/{entry.term}:{_data(entry)}" for entry in entries)


def _data(entry: Entry) -> str:
    if entry.kind == Kind.NOOP:
        return "-"
    if entry.kind == Kind.CHANGE:
        change = decode_change(entry.data)
        about = getattr(change, "member_id", "") or getattr(change, "node_id", "")
        return f"[{type(change).__name__.lower()}{' ' if about else ''}{about}]"
    return entry.data.decode()


def told(message: Message) -> str:
    head = f"{node_of(message.sender)}>{node_of(message.receiver)} {type(message).__name__} term {message.term}"
    match message:
        case PreVote() | Vote():
            transfer = " by transfer" if isinstance(message, Vote) and message.transfer else ""
            return f"{head} log ends {message.last_index}/{message.last_term}{transfer}"
        case PreVoteReply() | VoteReply():
            return f"{head} {'yes' if message.granted else 'no'}"
        case Append():
            what = entries_told(message.entries) or "nothing"
            return f"{head} after {message.prev_index}/{message.prev_term} {what} commit {message.commit}"
        case AppendReply():
            return f"{head} has {message.index}"
        case AppendRefusal():
            return f"{head} not after {message.prev_index}, try {message.hint_index}/{message.hint_term}"
        case Heartbeat():
            return f"{head} commit {message.commit} round {message.round}"
        case HeartbeatReply():
            return f"{head} round {message.round}" + (" reluctant" if message.reluctant else "")
        case InstallSnapshot():
            return f"{head} {message.snapshot.index}/{message.snapshot.term}"
        case ReadReply():
            return f"{head} at {message.index}"
        case TermOver() | TimeoutNow() | ReadRequest():
            return head


# --- transcripts ------------------------------------------------------------------------------------------------------


def replay(path: Path) -> str:
    """The file as it would be if everything it shows were what happens now."""
    lab = Lab()
    lines: list[str] = []
    for line in path.read_text().splitlines():
        if line.startswith("> "):
            lines.append(line)
            lines += lab.run(line[2:])
        elif line.startswith("#") or not line:
            lines.append(line)
    return "\n".join(lines).rstrip() + "\n"
