"""The managers' side of the nodes' streams: who is there, what each is told, and what each has said.

Sans-IO core. The shell (`control.server.dispatcher`) feeds `receive` and `wake`, performs what `drain` hands out and
arms one timer for `deadline`. Times are seconds of a monotonic clock. Semantics and constants after SwarmKit's
manager/dispatcher/dispatcher.go.

A node is `unknown` when this manager has not heard of it yet, `ready` while it is heard within three heartbeat
periods (sooner if gossip has it for dead, see `patience`), then `down`; after a day down its tasks are orphaned. A
stream that breaks changes nothing by itself: the node has until its deadline to come back. Each node has at most one
stream; a new one ends the old.

    Opened ──Hello, secret right──> session: Welcome, complete Assignments, then differences and answers
       └── anything else, or nothing for 10 s ──> Close
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Mapping
from ipaddress import ip_address

import msgspec

from control.assignment import AttachmentReport
from control.dispatcher.assignments import advance, build
from control.dispatcher.attaching import read_report
from control.dispatcher.events import (
    Close,
    Closed,
    Code,
    Committed,
    Event,
    Heard,
    Opened,
    Output,
    Resynced,
    Rumoured,
    Send,
    Sent,
    Status,
    Written,
)
from control.dispatcher.feed import Encoder, Feed
from control.dispatcher.managers import managers, reached
from control.dispatcher.members import REGISTRATIONS, Member, Stream
from control.dispatcher.patience import LOOK_AGAIN_S, Rumour, is_cut_off, longest_s, patience_s
from control.dispatcher.renewals import Renewals
from control.dispatcher.withdrawal import Withdrawals, began_to_drain, is_draining
from control.dispatcher.writes import NodeUpdate, Write, is_news, is_placed, is_same
from control.model import Node, NodeDescription, Task, TaskStatus
from control.rpc import control_pb2 as pb
from control.spec import DescriptionError, read_description
from control.store.tables import Event as StoreEvent
from control.store.tables import Snapshot
from control.token import same, secret_digest

# Changes within this time after a first one go to the nodes together.
BATCH_S = 0.05
# A node that registers REGISTRATIONS times within this is in a loop; the next attempt is refused.
REGISTRATION_WINDOW_S = 8.0
# Heartbeats of many nodes must not come in step.
JITTER = 0.1
ORPHAN_AFTER_S = 86400.0
# Messages that a stream may leave unread: at most 20 a second are made, so such a node is 12 s behind.
UNREAD_MAX = 256
# Streams that have not said who they are, and how long they may take to.
UNNAMED_MAX, HELLO_TIMEOUT_S = 1000, 10.0
# `deadline` is never further off; a longer silence means that this process stood still, and says nothing of the nodes.
TICK_S, STALL_S = 1.0, 1.0
SENTENCE_MAX = 1000  # characters of a task's message; more is cut


class Sessions:
    """The core. See the module."""

    def __init__(self, snapshot: Snapshot, now: float, random_source: random.Random) -> None:
        """Begin to lead: every node that is not down is unknown until it is heard."""
        self._random = random_source
        self._snapshot = snapshot
        self._tables = build(snapshot)
        self._encoder = Encoder()
        self._events: list[StoreEvent] = []  # since `_tables` was made; drained after BATCH_S
        self._version = snapshot.version
        self._rebuild = False
        self._flush_at: float | None = None
        self._nodes: dict[str, Member] = {}
        self._streams: dict[int, Stream] = {}
        self._unnamed: dict[int, Stream] = {}  # those that have not said who they are
        self._reports: dict[str, TaskStatus] = {}
        self._updates: dict[str, NodeUpdate] = {}
        self._orphaned: set[str] = set()
        self._attached: dict[str, AttachmentReport] = {}
        self._rumours: Mapping[str, Rumour] = {}
        self._withdrawals = Withdrawals()
        self._renewals = Renewals()
        self._writing: Write | None = None
        self._writes = 0
        self._out: list[Output] = []
        self._seen = now
        self._next_due = now
        self._counters: Counter[str] = Counter()
        self._managers = managers(snapshot)
        self._follow_nodes(now)
        for node in self._nodes.values():
            if node.state == "ready":
                node.state = "unknown"
                self._set_due(node)
                self._update(node.id, NodeUpdate("unknown", "a manager has just started and has not heard of it yet"))
        self._orphan_strays(snapshot.all(Task))
        self._withdraw(filter(is_draining, snapshot.all(Task)))
        self._write()

    # --- the house form ---------------------------------------------------------------------------------------------

    def receive(self, event: Event, now: float) -> None:
        """Something happened."""
        self._notice_stall(now)
        match event:
            case Opened():
                self._open(event, now)
            case Heard(stream=stream, message=message):
                self._hear(stream, message, now)
            case Sent(stream=stream):
                if stream in self._streams:
                    self._streams[stream].unread -= 1
            case Closed(stream=stream):
                self._forget_stream(stream)
            case Committed():
                self._commit(event, now)
            case Resynced(snapshot=snapshot):
                self._resync(snapshot, now)
            case Written(number=number):
                self._written(number)
            case Rumoured(nodes=rumours):
                self._follow_rumours(rumours)
        self._write()

    def wake(self, now: float) -> None:
        """Do what is due."""
        self._notice_stall(now)
        if self._flush_at is not None and now >= self._flush_at:
            self._flush()
        if now >= self._next_due:
            self._expire(now)
        self._write()

    def deadline(self) -> float:
        """When `wake` has something to do, if nothing happens before."""
        due = min(self._next_due, self._seen + TICK_S)
        return due if self._flush_at is None else min(due, self._flush_at)

    def drain(self) -> list[Output]:
        """What to do now, each once, in this order."""
        out, self._out = self._out, []
        return out

    def status(self) -> Status:
        """What is going on."""
        states = Counter(node.state for node in self._nodes.values())
        return Status(
            streams=len(self._streams),
            sessions=len(self._streams) - len(self._unnamed),
            nodes=dict(states),
            version=self._tables.version,
            counters=dict(self._counters),
        )

    def applied(self, node_id: str) -> int:
        """The store version that a node's kernel holds; 0 if that is not known in this session."""
        node = self._nodes.get(node_id)
        return node.applied if node is not None else 0

    def caught_up(self, node_id: str, version: int) -> bool:
        """Whether a node's kernel holds all that concerns it up to a store version."""
        node = self._nodes.get(node_id)
        if node is None or node.feed is None or self._tables.version < version:
            return False
        return node.applied == node.feed.sequence or node.applied >= version

    # --- streams ----------------------------------------------------------------------------------------------------

    def _open(self, event: Opened, now: float) -> None:
        stream = Stream(event.stream, event.address, now + HELLO_TIMEOUT_S)
        self._streams[stream.id] = self._unnamed[stream.id] = stream
        if len(self._unnamed) > UNNAMED_MAX:
            self._close(stream, "RESOURCE_EXHAUSTED", "too many nodes are connecting at once: try again", "crowded")
            return
        self._next_due = min(self._next_due, stream.hello_by)

    def _hear(self, stream_id: int, message: pb.NodeMessage, now: float) -> None:
        stream = self._streams.get(stream_id)
        if stream is None:
            return  # closed meanwhile
        kind = message.WhichOneof("message")
        if kind == "hello":
            self._hello(stream, message.hello, now)
            return
        node = stream.node
        if node is None:
            self._close(stream, "INVALID_ARGUMENT", "a session begins with Hello", "no_hello")
            return
        if kind == "heartbeat":
            node.period_s = self._period_s()
        self._hear_of(node, now)
        match kind:
            case "heartbeat":
                self._answer(node, stream)
            case "statuses":
                self._report(stream, node, message.statuses)
            case "applied":
                self._note_applied(node, message.applied.sequence)
            case "attachments":
                self._note_attached(node, message.attachments)
            case "description":
                self._note_description(node, message.description)
            case _:
                self._counters["unknown_message"] += 1  # of a newer version

    def _hello(self, stream: Stream, hello: pb.Hello, now: float) -> None:
        known = self._snapshot.get(Node, hello.node_id)
        if stream.node is not None:
            self._close(stream, "INVALID_ARGUMENT", "a session has only one Hello", "second_hello")
            return
        if known is None or not same(secret_digest(hello.secret), known.secret_digest):
            sentence = (
                "this node is not a member of the cluster (any more): "
                'use "mesh leave" on it, then "mesh join" with a token of this cluster'
            )
            self._close(stream, "UNAUTHENTICATED", sentence, "bad_secret")
            return
        if known.id not in self._nodes:
            self._add_node(known, now)
        node = self._nodes[known.id]
        if len(node.registrations) == REGISTRATIONS and now - node.registrations[0] < REGISTRATION_WINDOW_S:
            name = known.description.hostname or known.id
            sentence = f'node "{name}" registers more than {REGISTRATIONS} times in {REGISTRATION_WINDOW_S:g} s: wait'
            self._close(stream, "UNAVAILABLE", sentence, "rate_limited")
            return
        node.registrations.append(now)
        description, data_address = _description(hello.description), _data_address(hello.data_address)
        if description is None or data_address is None:
            self._close(stream, "INVALID_ARGUMENT", "unreadable description or data address of the node", "undecodable")
            return
        if node.stream is not None:
            self._close(node.stream, "UNAVAILABLE", "another session of this node has begun", "replaced")
        news = NodeUpdate("ready", "", description, stream.address or None, data_address or None)
        self._begin(node, known, stream, news, now)

    def _begin(self, node: Member, known: Node, stream: Stream, news: NodeUpdate, now: float) -> None:
        """The session of a node that has proved who it is."""
        del self._unnamed[stream.id]
        stream.node, node.stream = node, stream
        node.period_s = self._period_s()
        node.state = "ready"
        self._hear_of(node, now)
        self._orphaned.discard(node.id)
        self._update(node.id, news)
        self._flush()  # so that the complete set is as new as what the other nodes have
        node.feed = Feed(node.id)
        welcome = pb.Welcome(
            session_id=f"{self._random.getrandbits(64):016x}",
            heartbeat_period_s=node.period_s,
            managers=self._managers,
            role=known.spec.role,
        )
        self._send(stream, pb.ManagerMessage(welcome=welcome))
        self._send(stream, pb.ManagerMessage(assignments=node.feed.complete(self._tables, self._encoder)))
        draining = [t.id for t in self._snapshot.tasks_on_node(node.id) if is_draining(t)]
        self._tell_withdrawn(node, [t for t in draining if not self._withdrawals.pending(t)])

    def _answer(self, node: Member, stream: Stream, *, managers: Iterable[str] = ()) -> None:
        """To a heartbeat, or because something has changed that the node must know."""
        known = self._snapshot.get(Node, node.id)
        role = known.spec.role if known is not None else ""
        renew = self._renewals.ask(self._snapshot, known, self._seen)
        reply = pb.HeartbeatReply(period_s=node.period_s, role=role, managers=managers, renew=renew)
        self._send(stream, pb.ManagerMessage(heartbeat=reply))

    def _tell_managers(self) -> None:
        """Every node, if they have changed: it needs them when this one is gone."""
        found = managers(self._snapshot)
        if found == self._managers:
            return
        self._managers = found
        for node in self._nodes.values():
            if node.stream is not None:
                self._answer(node, node.stream, managers=found)

    def tell(self, node_id: str, message: pb.ManagerMessage) -> bool:
        """Send a node what has nothing to do with its assignments; whether it has a session."""
        node = self._nodes.get(node_id)
        if node is None or node.stream is None:
            return False
        self._send(node.stream, message)
        return True

    def _send(self, stream: Stream, message: pb.ManagerMessage) -> None:
        if stream.id not in self._streams:
            return
        if stream.unread >= UNREAD_MAX:
            self._close(stream, "RESOURCE_EXHAUSTED", "the node does not read what it is sent", "slow")
            return
        stream.unread += 1
        self._out.append(Send(stream.id, message))

    def _close(self, stream: Stream, code: Code, sentence: str, counter: str) -> None:
        self._counters[counter] += 1
        self._out.append(Close(stream.id, code, sentence))
        self._forget_stream(stream.id)

    def _forget_stream(self, stream_id: int) -> None:
        self._unnamed.pop(stream_id, None)
        stream = self._streams.pop(stream_id, None)
        if stream is not None and stream.node is not None and stream.node.stream is stream:
            stream.node.stream = stream.node.feed = None
            stream.node.applied, stream.node.acks = 0, []

    def _period_s(self) -> float:
        period_s = self._snapshot.cluster().spec.heartbeat_period_s
        return period_s * self._random.uniform(1 - JITTER, 1 + JITTER)

    # --- what nodes say ---------------------------------------------------------------------------------------------

    def _report(self, stream: Stream, node: Member, report: pb.StatusReport) -> None:
        for task_id, data in report.statuses.items():
            self._report_task(node, task_id, data)
        # Acknowledged when all of it is durable: also what an earlier session of the node has brought already.
        if self._reports:
            node.acks.append((self._writes + 1, report.number))
        elif self._writing is not None:
            node.acks.append((self._writing.number, report.number))
        else:
            self._send(stream, _ack(report.number))
        if len(node.acks) > UNREAD_MAX:
            self._close(stream, "RESOURCE_EXHAUSTED", "the node does not wait for acknowledgements", "slow")

    def _report_task(self, node: Member, task_id: str, data: bytes) -> None:
        task = self._snapshot.get(Task, task_id)
        if task is None:
            self._counters["unknown_task"] += 1
            return
        if task.node_id != node.id:
            self._counters["foreign_task"] += 1
            return
        try:
            status = msgspec.msgpack.decode(data, type=TaskStatus)
        except (msgspec.MsgspecError, UnicodeDecodeError):
            self._counters["undecodable"] += 1
            return
        status = msgspec.structs.replace(
            status, message=status.message[:SENTENCE_MAX], error=status.error[:SENTENCE_MAX]
        )
        writing = self._writing.reports.get(task_id) if self._writing is not None else None
        before = self._reports.get(task_id) or writing or task.status
        if is_news(before, status):
            self._reports[task_id] = status
        elif not is_same(before, status):
            self._counters["regressions"] += 1

    def _note_description(self, node: Member, data: bytes) -> None:
        description = _description(data)
        if description is None:
            self._counters["undecodable"] += 1
        else:
            self._update(node.id, NodeUpdate(description=description))

    def _note_attached(self, node: Member, data: bytes) -> None:
        report = read_report(data)
        if report is None:
            self._counters["undecodable"] += 1
        else:
            self._attached[node.id] = report

    def _note_applied(self, node: Member, sequence: int) -> None:
        if node.feed is None or sequence > node.feed.sequence:
            self._counters["applied_ahead"] += 1
            return
        node.applied = max(node.applied, sequence)
        self._check_withdrawals(node)

    # --- the store --------------------------------------------------------------------------------------------------

    def _commit(self, event: Committed, now: float) -> None:
        self._snapshot = event.snapshot
        self._version = event.version
        self._events += event.events
        if self._flush_at is None:
            self._flush_at = now + BATCH_S
        for change in event.events:
            match change.before, change.after:
                case None, Node() as node if self._snapshot.get(Node, node.id) is not None:
                    if node.id not in self._nodes:
                        self._add_node(node, now)
                case Node() as node, None:
                    self._remove_node(node.id)
                case Node(spec=before), Node(spec=after) as node if before.role != after.role:
                    self._tell_role(node.id)
                case _, Task() as task:
                    self._orphan_strays((task,))
                case _:
                    pass
        if any(reached(change.before) != reached(change.after) for change in event.events):
            self._tell_managers()

    def _tell_role(self, node_id: str) -> None:
        node = self._nodes.get(node_id)
        if node is not None and node.stream is not None:
            self._answer(node, node.stream)

    def _resync(self, snapshot: Snapshot, now: float) -> None:
        self._snapshot = snapshot
        self._version = snapshot.version
        self._events, self._rebuild = [], True
        if self._flush_at is None:
            self._flush_at = now + BATCH_S
        for node_id in [n for n in self._nodes if snapshot.get(Node, n) is None]:
            self._remove_node(node_id)
        self._follow_nodes(now)
        self._orphan_strays(snapshot.all(Task))
        self._tell_managers()
        for node_id in self._nodes:
            self._tell_role(node_id)

    def _flush(self) -> None:
        """Tell every session what has changed."""
        self._flush_at = None
        if not self._events and not self._rebuild:
            return
        old = self._tables
        draining = began_to_drain(self._events)
        if self._rebuild:
            self._tables = build(self._snapshot)
            self._withdrawals.restart()
            draining = [task for task in self._snapshot.all(Task) if is_draining(task)]
        else:
            self._tables = advance(old, self._snapshot, self._events, self._version)
        self._events, self._rebuild = [], False
        for node in self._nodes.values():
            if node.feed is not None and node.stream is not None:
                message = node.feed.next(self._tables, self._encoder)
                if message is not None:
                    self._send(node.stream, pb.ManagerMessage(assignments=message))
        self._encoder.end_round(self._tables)
        self._withdraw(draining)

    # --- draining ---------------------------------------------------------------------------------------------------

    def _withdraw(self, tasks: Iterable[Task]) -> None:
        """Wait until no node sends these tasks connections."""
        self._withdrawals.begin(self._tables.version, tasks, self._nodes)
        for node in self._nodes.values():
            self._check_withdrawals(node)

    def _check_withdrawals(self, node: Member) -> None:
        gone = node.state == "down" or node.id not in self._nodes
        self._withdrawals.check(node.id, lambda version: gone or self.caught_up(node.id, version))
        for node_id, task_ids in self._withdrawals.finished():
            if node_id in self._nodes:
                self._tell_withdrawn(self._nodes[node_id], task_ids)

    def _tell_withdrawn(self, node: Member, task_ids: Iterable[str]) -> None:
        found = list(task_ids)
        if found and node.stream is not None:
            self._send(node.stream, pb.ManagerMessage(withdrawn=pb.Withdrawn(task_ids=found)))

    # --- liveness ---------------------------------------------------------------------------------------------------

    def _follow_nodes(self, now: float) -> None:
        for node in self._snapshot.all(Node):
            if node.id not in self._nodes:
                self._add_node(node, now)

    def _add_node(self, node: Node, now: float) -> None:
        found = Member(node.id, node.status.state, now, now + ORPHAN_AFTER_S, self._period_s())
        found.rumour = self._rumours.get(node.id, "alive")
        self._nodes[node.id] = found
        if found.state != "down":
            self._hear_of(found, now)

    def _hear_of(self, node: Member, now: float) -> None:
        """It lives, or from now on is to be heard of."""
        node.since = now
        self._set_due(node)

    def _follow_rumours(self, rumours: Mapping[str, Rumour]) -> None:
        self._rumours = rumours
        for node in self._nodes.values():
            node.rumour = rumours.get(node.id, "alive")
            if node.state != "down":
                self._set_due(node)

    def _set_due(self, node: Member) -> None:
        node.due = node.since + patience_s(node.state, node.rumour, node.period_s)
        self._next_due = min(self._next_due, node.due)

    def _remove_node(self, node_id: str) -> None:
        node = self._nodes.pop(node_id, None)
        if node is not None and node.stream is not None:
            self._close(node.stream, "UNAUTHENTICATED", "this node was removed from the cluster", "removed")
        if node is not None:
            self._check_withdrawals(node)
        self._updates.pop(node_id, None)
        self._attached.pop(node_id, None)
        if self._snapshot.tasks_on_node(node_id):
            self._orphaned.add(node_id)

    def _orphan_strays(self, tasks: Iterable[Task]) -> None:
        """Tasks placed on a node that does not exist will never be heard of."""
        for task in tasks:
            if is_placed(task) and self._snapshot.get(Node, task.node_id) is None:
                self._orphaned.add(task.node_id)

    def _expire(self, now: float) -> None:
        for stream in [s for s in self._unnamed.values() if now >= s.hello_by]:
            self._close(stream, "INVALID_ARGUMENT", f"no Hello within {HELLO_TIMEOUT_S:g} s", "no_hello")
        for node in [n for n in self._nodes.values() if now >= n.due]:
            last = node.since + longest_s(node.state, node.period_s) if node.state != "down" else now
            if node.state == "down":
                node.due = float("inf")
                self._orphaned.add(node.id)
            elif now < last and is_cut_off(n.sign(now) for n in self._nodes.values()):
                node.due = min(last, now + LOOK_AGAIN_S)
            else:
                self._give_up(node, now)
        dues = [node.due for node in self._nodes.values()]
        dues += [stream.hello_by for stream in self._unnamed.values()]
        self._next_due = min(dues, default=float("inf"))

    def _give_up(self, node: Member, now: float) -> None:
        message = f"nothing heard of it for {now - node.since:.1f} s"
        if now < node.since + longest_s(node.state, node.period_s):
            message += ", and gossip has it for dead"
            self._counters["nodes_lost_early"] += 1
        node.state, node.since, node.due = "down", now, now + ORPHAN_AFTER_S
        self._counters["nodes_lost"] += 1
        self._update(node.id, NodeUpdate("down", message))
        self._check_withdrawals(node)
        if node.stream is not None:
            self._close(node.stream, "UNAVAILABLE", f"{message}: begin a new session", "silent")

    def _notice_stall(self, now: float) -> None:
        """If this process stood still, the nodes' messages of that time are still to be read: wait for them."""
        gap = now - self._seen
        self._seen = now
        if gap > TICK_S + STALL_S:
            self._counters["stalls"] += 1
            self._next_due += gap
            for node in self._nodes.values():
                node.since += gap
                node.due += gap
            for stream in self._unnamed.values():
                stream.hello_by += gap

    # --- writing ----------------------------------------------------------------------------------------------------

    def _update(self, node_id: str, update: NodeUpdate) -> None:
        before = self._updates.get(node_id)
        self._updates[node_id] = before.then(update) if before is not None else update

    def _write(self) -> None:
        """One write at a time; what comes meanwhile goes into the next."""
        news = self._reports or self._updates or self._orphaned or self._attached
        if self._writing is not None or not news:
            return
        self._writes += 1
        orphaned = frozenset(self._orphaned)
        self._writing = Write(self._writes, self._reports, self._updates, orphaned, self._attached)
        self._reports, self._updates, self._orphaned, self._attached = {}, {}, set(), {}
        self._out.append(self._writing)

    def _written(self, number: int) -> None:
        assert self._writing is not None, "only a write under way can be written"
        assert self._writing.number == number, "writes end in the order they were made"
        self._writing = None
        for node in self._nodes.values():
            while node.acks and node.acks[0][0] <= number:
                _, report = node.acks.pop(0)
                if node.stream is not None:
                    self._send(node.stream, _ack(report))


def _ack(number: int) -> pb.ManagerMessage:
    return pb.ManagerMessage(status_ack=pb.StatusAck(number=number))


def _description(data: bytes) -> NodeDescription | None:
    """What a node says of itself; None if that cannot be used."""
    try:
        return read_description(data)
    except DescriptionError:
        return None


def _data_address(text: str) -> str | None:
    """A node's end of VXLAN tunnels; "" stays (as it was); None if it is none."""
    try:
        return str(ip_address(text)) if text else ""
    except ValueError:
        return None
