"""The node's side of the dispatcher's stream: what to say, and what the answers mean.

Sans-IO core. `open` gives the first messages of a new stream, `receive` takes the manager's, `wake` sends what is due.
Statuses are repeated in every new stream until they are acknowledged, so that none is lost with a manager.
The stream's order is: Hello, then Welcome, then a complete set of assignments, then differences.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import msgspec

from control.assignment import RECORDS, Key, Record, RecordKind, decode
from control.model import NodeDescription, TaskStatus
from control.rpc import control_pb2 as pb
from mesh.agent.view import Assignments, SequenceGapError

# Statuses in one report; a node rarely changes more at once, and the frame stays far below gRPC's 4 MiB.
REPORT_MAX = 1000
# Without a word from the manager for this many heartbeat periods the stream is dead, whatever TCP thinks.
SILENCE_PERIODS = 4
# A manager that has said nothing at all in a stream is tried no longer than this: the next one may be there.
FIRST_WORD_S = 5.0
# Logs asked for between two looks of the agent; a reader of more reads them task by task.
LOG_DEMANDS_MAX = 1024
FIRST_PERIOD_S = 5.0  # until the manager names one


class ProtocolError(Exception):
    """The manager said something that makes no sense; the stream is dropped and opened again."""


@dataclass(slots=True)
class Session:
    """One node's conversation, over all streams it takes. Times are seconds of a monotonic clock."""

    node_id: str
    secret: str
    data_address: str
    description: NodeDescription
    assignments: Assignments = field(default_factory=Assignments)
    managers: tuple[str, ...] = ()
    role: str = ""  # what this node is to be; "" until a manager has said
    renew: bool = False  # a manager has said so with its last heartbeat
    withdrawn: set[str] = field(default_factory=set)  # tasks that no node sends connections to; the agent takes them
    log_demands: tuple[pb.LogDemand, ...] = ()  # logs that a manager wants; the agent takes them
    connected: bool = False  # a complete set has been heard in this stream
    _greeted: bool = False  # something has been heard in this stream
    _period_s: float = FIRST_PERIOD_S
    _next_heartbeat: float = 0.0
    _last_heard: float = 0.0
    _report: int = 0
    _unsent: dict[str, TaskStatus] = field(default_factory=dict)
    _in_flight: dict[str, TaskStatus] = field(default_factory=dict)
    _applied: int = 0
    _told_applied: int = 0
    _attached: bytes = b""  # what is to be said of containers of others; empty: nothing
    _told_attached: bool = True
    _out: list[pb.NodeMessage] = field(default_factory=list)

    def open(self, now: float) -> None:
        """A new stream is there."""
        self._out = [
            pb.NodeMessage(
                hello=pb.Hello(
                    node_id=self.node_id,
                    secret=self.secret,
                    description=msgspec.msgpack.encode(self.description),
                    data_address=self.data_address,
                )
            )
        ]
        self._unsent = {**self._in_flight, **self._unsent}
        self._in_flight = {}
        self._told_applied = self._applied = 0
        self._told_attached = not self._attached
        # What we hold stays in force, but no difference of the new stream applies to it.
        self.assignments = self.assignments.restarted()
        self._last_heard, self._greeted = now, False
        self._next_heartbeat = now + self._period_s
        self.connected = False

    def close(self) -> None:
        """The stream is gone; what was not acknowledged goes into the next."""
        self.connected = False
        self._out = []

    def receive(self, message: pb.ManagerMessage, now: float) -> bool:
        """Take one message; True when the agent has to look at what changed. Raises ProtocolError."""
        self._last_heard, self._greeted = now, True
        match message.WhichOneof("message"):
            case "welcome":
                self._pace(message.welcome.heartbeat_period_s, now)
                self.managers = tuple(message.welcome.managers) or self.managers
                self.role = message.welcome.role or self.role
            case "heartbeat":
                self._pace(message.heartbeat.period_s, now)
                self.managers = tuple(message.heartbeat.managers) or self.managers
                self.role = message.heartbeat.role or self.role
                self.renew = message.heartbeat.renew
            case "status_ack":
                if message.status_ack.number == self._report:
                    self._in_flight = {}
            case "assignments":
                self._assign(message.assignments)
                return True
            case "withdrawn":
                self.withdrawn.update(message.withdrawn.task_ids)
                return True
            case "log_demand":
                self.log_demands = (*self.log_demands, message.log_demand)[-LOG_DEMANDS_MAX:]
                return True
            case None:
                raise ProtocolError("the manager sent a message this version does not know")
        return False

    def report(self, statuses: dict[str, TaskStatus]) -> None:
        """Statuses to be told; a later one of the same task replaces an earlier one that was not sent yet."""
        self._unsent.update(statuses)

    def applied(self, sequence: int) -> None:
        """The kernel holds the assignments up to `sequence`."""
        self._applied = sequence

    def attached(self, report: bytes) -> None:
        """All there is to say of containers of others (control.assignment.AttachmentReport), now and in each stream."""
        if report != self._attached:
            self._attached, self._told_attached = report, False

    def wake(self, now: float) -> None:
        """Queue what is due."""
        if self.connected and self._unsent and not self._in_flight:
            batch = dict(list(self._unsent.items())[:REPORT_MAX])
            self._unsent = {k: v for k, v in self._unsent.items() if k not in batch}
            self._in_flight, self._report = batch, self._report + 1
            statuses = {task_id: msgspec.msgpack.encode(status) for task_id, status in batch.items()}
            self._out.append(pb.NodeMessage(statuses=pb.StatusReport(number=self._report, statuses=statuses)))
        if self.connected and self._applied > self._told_applied:
            self._told_applied = self._applied
            self._out.append(pb.NodeMessage(applied=pb.Applied(sequence=self._applied)))
        if self.connected and not self._told_attached:
            self._told_attached = True
            self._out.append(pb.NodeMessage(attachments=self._attached))
        if now >= self._next_heartbeat:
            self._next_heartbeat = now + self._period_s
            self._out.append(pb.NodeMessage(heartbeat=pb.Heartbeat()))

    def silent(self, now: float) -> bool:
        """Whether the manager has been quiet for too long."""
        limit_s = SILENCE_PERIODS * self._period_s
        return now - self._last_heard > (limit_s if self._greeted else min(limit_s, FIRST_WORD_S))

    def deadline(self) -> float:
        """When `wake` has something to do, if nothing happens before."""
        return self._next_heartbeat if self._greeted else min(self._next_heartbeat, self._last_heard + FIRST_WORD_S)

    def drain(self) -> list[pb.NodeMessage]:
        """The messages to send now, each once."""
        out, self._out = self._out, []
        return out

    def _pace(self, period_s: float, now: float) -> None:
        if period_s <= 0:
            raise ProtocolError(f"the manager asked for a heartbeat period of {period_s} s")
        self._period_s = period_s
        self._next_heartbeat = min(self._next_heartbeat, now + period_s)

    def _assign(self, message: pb.Assignments) -> None:
        try:
            records = [_record(r) for r in message.records]
            removed = [_key(k) for k in message.removed]
            self.assignments = self.assignments.updated(message.applies_to, message.results_in, records, removed)
        except (msgspec.MsgspecError, UnicodeDecodeError, SequenceGapError) as error:
            raise ProtocolError(f"unusable assignments: {error}") from error
        self.connected = True


def _kind(kind: str) -> RecordKind:
    for known in RECORDS:
        if kind == known:
            return known
    raise ProtocolError(f'unknown kind of record "{kind}"')


def _record(record: pb.Record) -> Record:
    return decode(_kind(record.kind), record.value)


def _key(key: pb.RecordKey) -> Key:
    return (_kind(key.kind), key.key)
