"""A whole cluster in virtual time, from one seed: managers, network, disks, clients, and all that can go wrong.

One unit of time is a tick. First comes a phase of faults; then everything is repaired, and the cluster must get on.
"""

from __future__ import annotations

import heapq
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from itertools import count
from typing import Any

from control.raft.configuration import (
    AddLearner,
    ConfChange,
    Configuration,
    Demote,
    Member,
    Promote,
    Readdress,
    Remove,
    apply_change,
    decode_change,
    mistake,
    node_of,
    unseats,
)
from control.raft.leader import HAND_OVER_PAUSE
from control.raft.messages import AppendReply, InstallSnapshot, VoteReply
from control.raft.quorum import majority
from control.raft.ready import Accepted, Inconsistent, Kind, Options, Role, bootstrap
from control.store.record import Entry
from tests.sim.raft.checks import Checks
from tests.sim.raft.disk import Disk
from tests.sim.raft.history import FOREVER, Operation, check
from tests.sim.raft.node import Machine, Node, Violation

NODES_MAX = 7
KEYS = 3
CLIENTS = 3
PATIENCE = 12.0  # of a client, in ticks
HEAL_TICKS = 300.0  # within these there must be progress, once all is repaired
# In one of so many worlds it is seen in the end whether a leader stays when all disks are nearly full, for so long.
LOW_SHARE, LOW_PAUSES = 8, 3
EVENTS_MAX = 200_000  # a run has some 4,000; more is a storm of messages


# What makes entries that belong to no client: the first operation of a world writes a register nobody looks at.
FILLING = Operation("write", -1)


class World:
    """See the module."""

    def __init__(self, seed: int, *, blunt: bool = False) -> None:
        """`blunt`: look only at what comes of it, not at whether disks hold what was promised."""
        self.seed, self.blunt = seed, blunt
        self.rng = rng = random.Random(seed)
        self.now = 0.0
        self.events: list[tuple[float, int, Callable[..., Any], tuple[Any, ...]]] = []
        self.order = count()
        self.trace: list[str] | None = None
        self.counts: Counter[str] = Counter()
        self.chance_of = rng.random
        # What kind of world this is:
        size = rng.choice((1, 2, 3, 3, 3, 4, 5, 5, 6, 7))
        election = rng.choice((4, 5, 5, 8))
        self.options = Options(
            tick_s=1.0,
            heartbeat_ticks=1,
            election_ticks=election,
            append_bytes=rng.choice((40, 200, 2000)),
            inflight_messages=rng.choice((1, 3, 16)),
            inflight_bytes=rng.choice((300, 5000)),
            uncommitted_bytes=rng.choice((600, 3000)),
            apply_bytes=rng.choice((40, 500, 5000)),
            reads_max=16,
        )
        self.duration = rng.choice((30.0, 40.0, 60.0, 120.0))
        self.loss = rng.choice((0.0, 0.0, 0.02, 0.1, 0.25))
        self.duplicates = rng.choice((0.0, 0.0, 0.05, 0.2))
        self.delay_mean = rng.choice((0.02, 0.1, 0.4, 1.0))
        self.delay_tail = rng.choice((0.0, 0.0, 0.02, 0.1))  # chance of a message that takes very long
        self.sync_mean = rng.choice((0.01, 0.1, 0.5))
        self.drift = rng.choice((0.05, 0.05, 0.4))
        self.sync_fails = rng.choice((0.0, 0.0, 0.002, 0.01))
        self.trouble_mean = rng.choice((2.0, 4.0, 8.0, 12.0))
        # Each world has its own mixture of troubles: some bugs need much of one, and nothing that disturbs it.
        self.troubles = (
            *(self.cut, self.uncut, self.kill, self.kill_soon, self.power_cut, self.pause, self.hang, self.fill),
            *(self.transfer, self.snapshot, self.lose),
        )
        self.weights = [rng.choice((0, 1, 1, 4)) for _ in self.troubles]
        self.weights[-1] = min(1, self.weights[-1])
        if not any(self.weights):
            self.weights[0] = 1
        self.aim = rng.choice((0.2, 0.5, 0.9))  # how often it is the leader that is in trouble
        self.changes_mean = rng.choice((3.0, 8.0, 20.0, 1000.0))
        self.change_weights = [rng.choice((0, 1, 1, 4)) for _ in range(5)]
        self.burst = rng.choice((1, 1, 3, 10))
        self.snapshot_every = rng.choice((0, 6, 15, 40))
        self.payload_bytes = rng.choice((4, 16, 60))
        self.cut_kinds = [rng.choice((0, 1, 4)) for _ in range(5)]
        if not any(self.cut_kinds):
            self.cut_kinds[1] = 1
        profile = rng.random()
        if profile < 0.12:
            # Leaders are cut off one after the other, each with a tail that nobody else has.
            self.cut_kinds, self.aim, self.burst = [0, 1, 0, 0, 0], 0.95, 10
            self.weights[:5] = (6, 0, 1, 1, 1)
            self.trouble_mean = election * rng.choice((1.0, 2.0))
        elif profile < 0.24:
            # Few members, that change all the while, and are killed at it.
            size = rng.choice((2, 2, 3))
            self.changes_mean, self.change_weights = 3.0, [1, 2, 3, 3, 0]
            self.weights[2:5] = (3, 6, 3)
        # Drawn apart, so that seeds of before these were thought of still are what they were:
        more = random.Random(f"{seed} more")
        self.echo = more.choice((0.0, 0.0, 0.0, 0.1, 0.3))  # messages that come again much later
        self.jinx = more.choice((0.0, 0.0, 0.0, 0.5, 0.9))  # changes of the members that are no sooner made than...
        if self.echo and more.random() < 0.5:
            # Leaders come and go, and come back, while answers to what they sent long ago still arrive.
            self.weights = [1, 1, 1, 0, 0, 3, 0, 0, 6, 1, 0]
            self.trouble_mean, self.aim, self.duration = float(election), 0.9, 120.0
        self.jinx_loses = more.choice((0.1, 0.9))
        self.pace: dict[str, float] = {}  # of what is sent to a member, where they are not all equally near
        self.uneven = more.choice((False, True)) and self.jinx > 0
        self.more = more
        if self.jinx and more.random() < 0.4:
            # Voters come and go, busy and unevenly informed, and little else happens.
            size = more.choice((2, 2, 3, 3, 3, 4))
            self.changes_mean, self.change_weights = (
                2.0,
                more.choice(([3, 1, 1, 2, 0], [3, 0, 2, 3, 0], [2, 3, 2, 3, 0])),
            )
            self.trouble_mean, self.weights[-1], self.duration = 20.0, 0, 120.0
            self.delay_mean, self.sync_mean = more.choice((0.1, 0.4)), more.choice((0.1, 0.3))
            self.burst, self.loss = 3, more.choice((0.0, 0.1))
            small, few = more.choice((40, 100)), more.choice((1, 2, 4))
            self.options = replace(self.options, append_bytes=small, inflight_messages=few, uncommitted_bytes=200)
        third = random.Random(f"{seed} third")
        # ... or no sooner begun, so that the next leader finds it in its log, and has much to apply in small parts.
        self.haste = self.jinx > 0 and self.jinx_loses < 0.5 and third.random() < 0.6
        if self.haste:
            self.options = replace(self.options, apply_bytes=40, election_ticks=4)
        self.blocked: set[tuple[str, str]] = set()
        self.healing = False
        self.nodes: dict[str, Node] = {}
        self.operations: list[Operation] = [FILLING]
        self.open: dict[int, Operation] = {}  # id of the operation -> it
        self.history: dict[int, Operation] = {}  # likewise, but for those that did not happen
        self.acked_index = 0
        self.values = count(1)
        self.bytes_max = self.options.uncommitted_bytes + 2000  # a noop or a change may come on top
        self.checks = Checks(self)
        self.first = Configuration(tuple(Member(f"n{i + 1}.{i + 1}", voter=True) for i in range(size)), joined=size)
        self.configuration = self.first
        self.previous = self.first
        self.configured = 1  # index of the last change in it
        found = bootstrap(self.first)
        for member in self.first.members:
            disk = Disk(hard=found.hard_state, log=list(found.entries))
            self.nodes[member.id] = Node(self, member.id, disk)
        self.checks.entries[1, 1] = (0, found.entries[0].kind, found.entries[0].data)
        for node in self.nodes.values():
            node.start()
        self.at(rng.expovariate(1 / self.trouble_mean), self.trouble)
        self.at(rng.expovariate(1 / self.changes_mean), self.change)
        for client in range(CLIENTS):
            self.at(rng.random() * 3, self.client, client, None)

    # --- time ---------------------------------------------------------------------------------------------------------

    def at(self, when: float, call: Callable[..., Any], *args: Any) -> None:
        heapq.heappush(self.events, (when, next(self.order), call, args))

    def chance(self, probability: float) -> bool:
        return probability > 0 and self.rng.random() < probability

    def note(self, what: str, *about: object) -> None:
        self.counts[what] += 1
        if self.trace is not None:
            self.trace.append(f"{self.now:8.2f} {what} {' '.join(map(str, about))}")

    def run(self) -> None:
        """Raises Violation."""
        try:
            self._until(self.duration, lambda: False)
            self.heal()
            began = self.now
            self._until(began + HEAL_TICKS, self.recovered)
            if not self.recovered():
                raise Violation("progress", self.why_not())
            if self.seed % LOW_SHARE == 0:
                self.all_are_low()
        except (Inconsistent, AssertionError) as error:
            raise Violation("the core refuses to go on", f"{error}") from error
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            raise Violation("an exception", repr(error)) from error
        self.checks.changes()
        key = check(list(self.history.values()))
        if key is not None:
            raise Violation("linearizability", f"register {key}")

    def _until(self, end: float, done: Callable[[], bool]) -> None:
        events = self.events
        steps = 0
        while events and events[0][0] <= end:
            self.now, _, call, args = heapq.heappop(events)
            call(*args)
            steps += 1
            if steps % 64 == 0 and done():
                break
            if steps > EVENTS_MAX:
                raise Violation("progress", "a storm of messages")
        self.counts["events"] += steps
        self.now = max(self.now, end) if not done() else self.now

    # --- network ------------------------------------------------------------------------------------------------------

    def send(self, sender: Node, message: Any) -> None:
        if self.trace is not None:
            self.trace.append(f"{self.now:8.2f}   {message}")
        kind = type(message)
        if kind is AppendReply:
            self.checks.promised(sender, message)
        elif kind is VoteReply and message.granted:
            self.checks.voted(sender, message)
        elif kind is InstallSnapshot:
            self.send_snapshot(sender, message)
            return
        self.counts["messages"] += 1
        if self.loss and self.rng.random() < self.loss:
            if self.chance(0.1) and sender.core is not None:
                self.at(self.now + self.rng.random(), self.unreachable, sender, sender.lives, message.receiver)
            return
        rng = self.rng
        delay = self.delay()
        if self.uneven:
            if message.receiver not in self.pace:
                self.pace[message.receiver] = self.more.choice((0.1, 1.0, 3.0))
            delay *= self.pace[message.receiver]
        self.at(self.now + delay, self.arrive, message)
        if self.duplicates and rng.random() < self.duplicates:
            self.at(self.now + self.delay() * 5, self.arrive, message)
        if self.echo and rng.random() < self.echo:
            self.at(self.now + rng.random() * 8 * self.options.election_ticks, self.arrive, message)

    def delay(self) -> float:
        rng = self.rng
        delay = 0.005 + rng.random() * 2 * self.delay_mean
        if self.delay_tail and rng.random() < self.delay_tail:
            delay += rng.random() * 3 * self.options.election_ticks
        return delay

    def arrive(self, message: Any) -> None:
        node = self.nodes.get(message.receiver)
        if node is None or node.core is None:
            return
        if self.blocked and (message.sender, message.receiver) in self.blocked:
            return
        node.deliver(message)

    def unreachable(self, sender: Node, life: int, receiver: str) -> None:
        if sender.core is not None and sender.lives == life:
            sender.core.report_unreachable(receiver)
            sender.pump()

    def send_snapshot(self, sender: Node, message: InstallSnapshot) -> None:
        """In chunks, which take their time; the file may be one that is newer by now, and then it fails."""
        self.counts["snapshots"] += 1
        assert sender.disk.snapshot is not None
        assert isinstance(sender.disk.state, Machine)
        state = sender.disk.state.copy() if sender.disk.snapshot == message.snapshot else None
        self.at(self.now + self.rng.uniform(0.05, 6.0), self.snapshot_moved, sender, sender.lives, message, state)

    def snapshot_moved(self, sender: Node, life: int, message: InstallSnapshot, state: Machine | None) -> None:
        receiver = self.nodes.get(message.receiver)
        fine = state is not None and receiver is not None and receiver.core is not None
        fine = fine and (message.sender, message.receiver) not in self.blocked and not self.chance(self.loss)
        if fine:
            assert receiver is not None
            receiver.deliver(message, state)
        if sender.core is not None and sender.lives == life:
            sender.core.report_snapshot(message.receiver, ok=bool(fine))
            sender.pump()

    # --- trouble ------------------------------------------------------------------------------------------------------

    def trouble(self) -> None:
        if self.healing:
            return
        self.at(self.now + self.rng.expovariate(1 / self.trouble_mean), self.trouble)
        [call] = self.rng.choices(self.troubles, self.weights)
        call()

    def some_node(self) -> Node:
        leaders = [node for node in self.nodes.values() if node.leads()]
        if leaders and self.rng.random() < self.aim:
            return self.rng.choice(leaders)
        return self.rng.choice([node for node in self.nodes.values() if not node.gone] or list(self.nodes.values()))

    def cut(self) -> None:
        """Some links, in one direction or both: two halves, one alone, one that only hears or is only heard, any."""
        ids = list(self.nodes)
        rng = self.rng
        [kind] = rng.choices(range(5), self.cut_kinds)
        self.blocked = set()
        if kind == 0:
            side = {one for one in ids if rng.random() < 0.5}
            self.blocked = {(a, b) for a in ids for b in ids if (a in side) != (b in side)}
        elif kind == 1:
            alone = self.some_node().id
            self.blocked = {(a, b) for a in ids for b in ids if alone in (a, b)}
        elif kind == 2:
            deaf = self.some_node().id
            self.blocked = {(a, deaf) for a in ids}
        elif kind == 3:
            mute = self.some_node().id
            self.blocked = {(mute, b) for b in ids}
        else:
            share = rng.random()
            self.blocked = {(a, b) for a in ids for b in ids if rng.random() < share}
        self.note("cut", *sorted(self.blocked))

    def uncut(self) -> None:
        self.note("uncut")
        self.blocked = set()

    def kill(self) -> None:
        node = self.some_node()
        self.note("kill", node)
        node.crash()

    def kill_soon(self) -> None:
        """At one of the next effects, whatever it is."""
        node = self.some_node()
        self.note("kill soon", node)
        node.fuse = self.rng.randrange(25)

    def power_cut(self) -> None:
        self.note("power cut")
        for node in list(self.nodes.values()):
            node.crash()

    def died(self, node: Node) -> None:
        """Its clients do not know; it is started again after a while."""
        for _, op in node.waiting.values():
            self.unknown(op)
        for op, _ in node.asked.values():
            self.failed(op)
        for _, op in node.readers:
            self.failed(op)
        node.reset()
        if not node.gone:
            after = self.rng.choice((0.5, 3.0, 20.0)) * self.rng.random()
            self.at(self.now + after, self.restart, node, node.lives)

    def restart(self, node: Node, life: int) -> None:
        if node.core is None and not node.gone and node.lives == life:
            self.note("restart", node)
            node.start()

    def pause(self) -> None:
        node = self.some_node()
        node.paused_until = self.now + self.rng.random() * 5 * self.options.election_ticks
        self.note("pause", node, node.paused_until)

    def hang(self) -> None:
        node = self.some_node()
        node.hang_until = self.now + self.rng.random() * 4 * self.options.election_ticks
        self.note("hang", node, node.hang_until)

    def fill(self) -> None:
        node = self.some_node()
        until = self.now + self.rng.random() * 4 * self.options.election_ticks
        self.note("full", node, until)
        node.disk_full(until)
        self.at(until, node.disk_free)

    def transfer(self) -> None:
        leaders = [node for node in self.nodes.values() if node.leads()]
        if leaders:
            node = self.rng.choice(leaders)
            self.note("transfer", node)
            node.core.transfer_leadership(self.rng.choice(("", *node.core._s.voters)))  # type: ignore[union-attr]
            node.pump()

    def snapshot(self) -> None:
        node = self.some_node()
        if node.core is not None:
            node.save_snapshot()

    def lose(self) -> None:
        self.lose_disk(
            self.rng.choice([node for node in self.nodes.values() if not node.gone] or list(self.nodes.values()))
        )

    def lose_disk(self, node: Node) -> None:
        """For good, if a majority of disks stays whatever change is under way."""
        if node.gone or not all(self._safe(voters, {node.id}) for voters in self._possible_voters()):
            return
        self.note("lose", node)
        node.gone = True
        node.crash()  # the checks may still look at what was there

    def _possible_voters(self) -> list[set[str]]:
        """Who may have to agree: those in force, those under way, and those of before, until all know better. "?" is
        somebody whose vote is added next, and who does not answer."""
        configurations = [self.configuration]
        for node in self.nodes.values():
            log = node.core._s.log.entries if node.core is not None else node.disk.log
            configurations.extend(
                apply_change(self.configuration, decode_change(e.data))
                for e in log
                if e.kind == Kind.CHANGE and e.index > self.configured
            )
        possible = [{"?", *configuration.voters} for configuration in configurations]
        if any(not self.nodes[v].gone and self.nodes[v].disk.hard.commit < self.configured for v in self._now_voters()):
            possible.append(set(self.previous.voters))
        return possible

    def _now_voters(self) -> list[str]:
        return [voter for voter in self.configuration.voters if voter in self.nodes]

    def _safe(self, voters: set[str], lost: set[str]) -> bool:
        alive = [v for v in voters if v not in lost and v in self.nodes and not self.nodes[v].gone]
        return len(alive) >= majority(len(voters))

    # --- members ------------------------------------------------------------------------------------------------------

    def change(self) -> None:
        if self.healing:
            return
        self.at(self.now + self.rng.expovariate(1 / self.changes_mean), self.change)
        leaders = [node for node in self.nodes.values() if node.leads()]
        if not leaders:
            return
        node = self.rng.choice(leaders)
        configuration = node.core._s.configuration  # type: ignore[union-attr]
        change = self._some_change(configuration)
        for _ in range(7 if self.jinx else 0):  # look for one that makes sense; elsewhere the core has to refuse it
            if change is not None and (mistake(configuration, change) or unseats(change, node.id)):
                change = self._some_change(configuration)
        if change is None:
            return
        after = apply_change(configuration, change)
        if not after.voters or not self._safe(set(after.voters), set()):
            return
        outcome = node.core.propose_change(change)  # type: ignore[union-attr]
        self.note("change" if isinstance(outcome, Accepted) else "change refused", node, change)
        voting = isinstance(outcome, Accepted) and isinstance(change, Demote | Remove | Promote)
        if self.haste and voting and self.rng.random() < 0.5:
            self.at(self.now + self.rng.random() * 3, node.crash)
        node.pump()

    def _some_change(self, configuration: Configuration) -> ConfChange | None:
        rng = self.rng
        gone = [m for m in configuration.members if m.id in self.nodes and self.nodes[m.id].gone]
        if gone and rng.random() < 0.5:
            return Remove(rng.choice(gone).id)
        member = rng.choice(configuration.members)
        match rng.choices(range(5), self.change_weights)[0] if any(self.change_weights) else 0:
            case 0:
                taken = {node_of(m.id) for m in configuration.members}
                free = [f"n{i + 1}" for i in range(NODES_MAX) if f"n{i + 1}" not in taken]
                return AddLearner(rng.choice(free), standby=rng.random() < 0.2) if free else None
            case 1:
                return Remove(member.id)
            case 2:
                return Demote(member.id)
            case 3:
                return Promote(member.id)
            case _:
                return Readdress(member.id, f"h{rng.randrange(9)}:1")

    def config_applied(self, node: Node, entry: Entry) -> None:
        if entry.index > self.configured:
            assert entry.kind == Kind.CHANGE
            change = decode_change(entry.data)
            self.configured, self.previous = entry.index, self.configuration
            self.configuration = apply_change(self.configuration, change)
            if isinstance(change, AddLearner):
                self._join(change.node_id)
            voting = set(self.configuration.voters) != set(self.previous.voters)
            if self.jinx and voting and not self.healing and self.rng.random() < self.jinx:
                self.at(self.now + self.rng.random() * self.rng.choice((0.0, 0.1, 1.0)), self.strike, node)

    def strike(self, node: Node) -> None:
        """Who was the first to have made a change is hit while it tells the others: it reaches some of them."""
        if self.healing:
            return
        self.note("strike", node)
        self.blocked = self.blocked | {(node.id, other) for other in self.nodes if self.rng.random() < 0.5}
        if self.rng.random() < self.jinx_loses:
            self.lose_disk(node)
        else:
            node.fuse = self.rng.randrange(6)

    def _join(self, node_id: str) -> None:
        """A process with an empty disk, that knows its id and nobody."""
        [member_id] = [m.id for m in self.configuration.members if node_of(m.id) == node_id]
        for node in self.nodes.values():
            if node_of(node.id) == node_id and not node.gone:
                node.gone = True  # its former life
                self.at(self.now, node.crash)
        self.nodes[member_id] = node = Node(self, member_id, Disk())
        self.at(self.now + self.rng.random(), self.restart, node, 0)

    def retire(self, node: Node) -> None:
        """It knows that it was removed, and stops for good."""
        if not node.gone:
            self.note("retire", node)
            node.gone = True
            node.crash()

    # --- clients ------------------------------------------------------------------------------------------------------

    def client(self, number: int, op: Operation | None) -> None:
        """One thing after the other; what takes too long is given up, its outcome unknown."""
        if op is not None and id(op) in self.open:
            if self.now - op.called < PATIENCE:
                self.at(self.now + 0.7, self.client, number, op)
                return
            self.unknown(op)
        op = self.invoke()
        self.at(self.now + self.rng.random() * 1.5 + 0.5, self.client, number, op)

    def invoke(self) -> Operation | None:
        rng = self.rng
        now = self.now
        candidates = [n for n in self.nodes.values() if n.core is not None and n.paused_until <= now]
        leaders = [n for n in candidates if n.core._s.role is Role.LEADER]  # type: ignore[union-attr]
        if leaders and rng.random() < 0.8:
            candidates = leaders
        if not candidates:
            return None
        kind = rng.choice(("write", "write", "read", "read", "cas"))
        node = rng.choice(candidates)
        if len(leaders) > 1 and rng.random() < 0.6:  # ask the one that was deposed, perhaps
            node = min(leaders, key=lambda n: n.core._s.term if kind == "read" else -n.core._s.term)  # type: ignore[union-attr]
        op = Operation(kind, rng.randrange(KEYS), called=self.now)
        if kind == "read":
            self._call(op)
            if not node.ask(op, self.acked_index):
                self.failed(op)
                return None
            return op
        op.value = next(self.values)
        if kind == "cas":
            op.expected = node.machine.registers.get(op.key, 0)
        self._call(op)
        self.operations.append(op)
        taken = node.propose(op, len(self.operations) - 1)
        if not taken:
            self.failed(op)
        for _ in range(rng.randrange(self.burst) if taken and node.core is not None else 0):
            node.propose(FILLING, 0)
        return op if taken else None

    def ask(self, node: Node) -> None:
        """A read of its own."""
        if node.core is None:
            return
        if node.paused_until > self.now:
            self.at(node.paused_until + self.rng.random() * 0.02, self.ask, node)
            return
        op = Operation("read", self.rng.randrange(KEYS), called=self.now)
        self._call(op)
        if not node.ask(op, self.acked_index):
            self.failed(op)

    def _call(self, op: Operation) -> None:
        self.open[id(op)] = op
        self.history[id(op)] = op

    def failed(self, op: Operation) -> None:
        """It certainly did not happen."""
        if self.open.pop(id(op), None) is not None:
            del self.history[id(op)]

    def unknown(self, op: Operation) -> None:
        if op.kind == "read":
            self.failed(op)
        elif self.open.pop(id(op), None) is not None:
            self.counts["unknown"] += 1

    def acknowledge(self, op: Operation, index: int, result: bool | None) -> None:
        term = self.checks.agreed[index].term
        self.checks.acknowledged(index, term)
        self.acked_index = max(self.acked_index, index)
        for other in self.nodes.values():
            if other.leads() and other.core._s.term < term:  # type: ignore[union-attr]
                self.at(self.now, self.ask, other)  # it was deposed, and may not know
        if self.open.pop(id(op), None) is not None:
            op.returned, op.result = self.now, result
            self.counts["writes"] += 1

    def read_done(self, op: Operation, value: int) -> None:
        if self.open.pop(id(op), None) is not None:
            op.returned, op.result = self.now, value
            self.counts["reads"] += 1

    # --- the end ------------------------------------------------------------------------------------------------------

    def heal(self) -> None:
        """Repair everything; what is lost stays lost."""
        self.note("heal")
        self.healing = True
        self.blocked = set()
        self.loss = self.duplicates = self.echo = self.delay_tail = self.sync_fails = 0.0
        self.delay_mean, self.sync_mean, self.uneven = 0.05, 0.05, False
        self.goal = 0  # what was acknowledged when writes and reads had gone on
        self.heal_writes, self.heal_reads = self.counts["writes"], self.counts["reads"]
        for node in list(self.nodes.values()):
            node.paused_until = node.hang_until = node.full_until = 0.0
            node.fuse = None
            if node.core is None and not node.gone:
                node.start()
            node.disk_free()

    def all_are_low(self) -> None:
        """All disks are nearly full, and nothing else is wrong: whoever leads stays, and takes what there is."""
        self.note("all low")
        pause = HAND_OVER_PAUSE * self.options.election_ticks
        self._until(self.now + pause, lambda: False)  # no disk that was full before comes to have space again
        for node in self.nodes.values():
            node.disk_full(self.now)
        # Whoever began to lead just now, or does not know yet how the others are, may still hand over once.
        self._until(self.now + 2 * pause, lambda: False)
        before, writes = self._terms(), self.counts["writes"]
        self._until(self.now + LOW_PAUSES * pause, lambda: False)
        if self._terms() != before:
            raise Violation("leadership goes round", f"{before} became {self._terms()}")
        if self.counts["writes"] == writes:
            raise Violation("progress", "no writes while all disks are nearly full")

    def _terms(self) -> set[int]:
        return {node.core.status().soft.term for node in self.alive() if node.core is not None}

    def alive(self) -> list[Node]:
        return [
            self.nodes[m.id] for m in self.configuration.members if m.id in self.nodes and not self.nodes[m.id].gone
        ]

    def recovered(self) -> bool:
        """Writes and reads go on, and every member that there still is has what was acknowledged."""
        return not self.why_not()

    def why_not(self) -> str:
        if self.counts["writes"] < self.heal_writes + 3 or self.counts["reads"] < self.heal_reads + 2:
            return "no writes or reads after all was repaired"
        self.goal = self.goal or self.acked_index
        behind = [n.id for n in self.alive() if n.core is None or n.machine.applied < self.goal]
        return f"{behind} stay behind {self.goal}" if behind else ""


def run(seed: int) -> World:
    """One run. Raises Violation."""
    world = World(seed)
    world.run()
    return world


__all__ = ["FOREVER", "World", "run"]
