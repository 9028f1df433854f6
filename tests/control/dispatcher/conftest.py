"""A cluster in miniature: snapshots made by hand, a clock that is moved by hand, and the core under test."""

from __future__ import annotations

import random
from collections.abc import Iterable
from typing import Any

import msgspec
import pytest

from control.assignment import Key, Record, decode, key_of
from control.dispatcher.events import Close, Closed, Committed, Heard, Opened, Send, Sent, Written
from control.dispatcher.sessions import Sessions
from control.dispatcher.writes import Write, node_changes, report_changes
from control.lifecycle import TaskState
from control.model import (
    Attachment,
    Cluster,
    ClusterSpec,
    Lease,
    Meta,
    Network,
    NetworkAttachment,
    NetworkSpec,
    Node,
    NodeDescription,
    NodeSpec,
    NodeStatus,
    Object,
    PortSpec,
    ProcessSpec,
    Service,
    ServiceSpec,
    Task,
    TaskAddress,
    TaskSpec,
    TaskStatus,
    VirtualAddress,
)
from control.rpc import control_pb2 as pb
from control.store.tables import Event, Snapshot, event
from control.token import secret_digest


class Make:
    """Objects with few words."""

    def cluster(self, period_s: float = 5.0, **spec: Any) -> Cluster:
        return Cluster(id="cluster", spec=ClusterSpec(heartbeat_period_s=period_s, **spec))

    def node(self, number: int, state: str = "ready", role: str = "worker", **fields: Any) -> Node:
        return Node(
            id=f"node{number}",
            number=number,
            spec=NodeSpec(role=role),  # type: ignore[arg-type]
            description=NodeDescription(hostname=f"h{number}"),
            status=NodeStatus(state=state, data_address=f"192.0.2.{number}"),  # type: ignore[arg-type]
            secret_digest=secret_digest(f"secret{number}"),
            control_address=f"192.0.2.{number}:7377" if role == "manager" else "",
            **fields,
        )

    def network(self, name: str, **fields: Any) -> Network:
        defaults = {"vni": 4097, "subnet": "10.128.0.0/20", "gateway": "10.128.0.1"}
        return Network(id=name, spec=NetworkSpec(name=name), **(defaults | fields))

    def service(self, name: str, *networks: str, ports: tuple[PortSpec, ...] = (), **fields: Any) -> Service:
        task = TaskSpec(
            process=ProcessSpec(command=("true",)),
            networks=tuple(NetworkAttachment(network_id=n) for n in networks),
        )
        vips = tuple(VirtualAddress(network_id=n, address="10.128.0.2") for n in networks)
        return Service(
            id=name, spec=ServiceSpec(name=name, task=task, ports=ports), ports=ports, **({"vips": vips} | fields)
        )

    def task(
        self,
        service: str,
        slot: int,
        node: int | str,
        *networks: str,
        state: TaskState = TaskState.RUNNING,
        desired: TaskState = TaskState.RUNNING,
        **fields: Any,
    ) -> Task:
        return Task(
            id=f"{service}{slot}",
            service_id=service,
            service_name=service,
            slot=slot,
            node_id=f"node{node}" if isinstance(node, int) else node,
            spec=TaskSpec(process=ProcessSpec(command=("true",))),
            status=TaskStatus(state=state),
            desired_state=desired,
            addresses=tuple(TaskAddress(network_id=n, address=f"10.128.0.{10 + slot}") for n in networks),
            **fields,
        )

    def attachment(self, number: int, node: int, network: str, service: str, **fields: Any) -> Attachment:
        return Attachment(
            id=f"c{number}",
            node_id=f"node{node}",
            network_id=network,
            address=f"10.128.1.{number}",
            name=f"box{number}",
            service=service,
            **fields,
        )

    def lease(self, number: int, node: int, network: str, block: str = "") -> Lease:
        return Lease(id=f"{network}/node{node}/{number}", node_id=f"node{node}", network_id=network, block=block)


class Receiver:
    """What a node holds of what it was sent, checked as a node checks it."""

    def __init__(self) -> None:
        self.sequence = 0
        self.records: dict[Key, Record] = {}

    def take(self, message: pb.Assignments) -> None:
        assert message.applies_to in (0, self.sequence), "a gap in the sequence"
        assert message.results_in > message.applies_to
        if message.applies_to == 0:
            self.records = {}
        for key in message.removed:
            del self.records[key.kind, key.key]  # type: ignore[arg-type]
        for wire in message.records:
            record = decode(wire.kind, wire.value)  # type: ignore[arg-type]
            self.records[key_of(record)] = record
        self.sequence = message.results_in


class World:
    """The store, the clock and the core. Streams are known by their numbers."""

    def __init__(self, *objects: Object) -> None:
        self.make = Make()
        stamped = [msgspec.structs.replace(o, meta=Meta(version=1)) for o in objects]
        self.snapshot = Snapshot.of(stamped, 1)
        self.now = 100.0
        self.core = Sessions(self.snapshot, self.now, random.Random(1))
        self.sent: dict[int, list[pb.ManagerMessage]] = {}
        self.closed: dict[int, Close] = {}
        self.writes: list[Write] = []
        self.hold_writes = False
        self.unread: set[int] = set()  # streams whose node does not read
        self.run()

    # --- the store ---------------------------------------------------------------------------------------------------

    def put(self, *objects: Object) -> tuple[Event, ...]:
        return self._commit([(type(o), o.id, o) for o in objects])

    def delete(self, *objects: Object) -> tuple[Event, ...]:
        return self._commit([(type(o), o.id, None) for o in objects])

    def _commit(self, changes: Iterable[tuple[type[Object], str, Object | None]]) -> tuple[Event, ...]:
        version, events = self.snapshot.version + 1, []
        for cls, id_, after in changes:
            stamped = msgspec.structs.replace(after, meta=Meta(version=version)) if after is not None else None
            events.append(event(self.snapshot.get(cls, id_), stamped))
        self.snapshot = self.snapshot.apply(version, events)
        self.core.receive(Committed(self.snapshot, version, tuple(events)), self.now)
        self.run()
        return tuple(events)

    def get(self, cls: type[Any], id_: str) -> Any:
        return self.snapshot.get(cls, id_)

    # --- the shell ---------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Perform what the core wants."""
        while outputs := self.core.drain():
            for output in outputs:
                match output:
                    case Send(stream, message):
                        self.sent.setdefault(stream, []).append(message)
                        if stream not in self.unread:
                            self.core.receive(Sent(stream), self.now)
                    case Close(stream):
                        self.closed[stream] = output
                    case Write():
                        self.writes.append(output)
                        if not self.hold_writes:
                            self.write(output)

    def write(self, write: Write) -> None:
        """What the shell does with a Write."""
        if puts := report_changes(write, self.snapshot):
            self._commit([(type(p.obj), p.obj.id, p.obj) for p in puts])
        if puts := node_changes(write, self.snapshot, 0):
            self._commit([(type(p.obj), p.obj.id, p.obj) for p in puts])
        self.core.receive(Written(write.number), self.now)
        self.run()

    def pass_time(self, seconds: float) -> None:
        """Let time go by, with a wake whenever the core asked for one."""
        end = self.now + seconds
        while (due := self.core.deadline()) <= end:
            self.now = max(self.now, due)
            self.core.wake(self.now)
            self.run()
        self.now = end

    # --- nodes -------------------------------------------------------------------------------------------------------

    def open(self, stream: int, address: str = "198.51.100.1") -> None:
        self.core.receive(Opened(stream, address), self.now)
        self.run()

    def say(self, stream: int, **message: Any) -> list[pb.ManagerMessage]:
        """One message of a node; what it is answered at once."""
        before = len(self.sent.get(stream, []))
        self.core.receive(Heard(stream, pb.NodeMessage(**message)), self.now)
        self.run()
        return self.sent.get(stream, [])[before:]

    def hello(self, stream: int, number: int, secret: str | None = None, **fields: Any) -> list[pb.ManagerMessage]:
        """Open a stream and introduce a node."""
        self.open(stream)
        description = NodeDescription(hostname=f"h{number}")
        hello = {
            "node_id": f"node{number}",
            "secret": f"secret{number}" if secret is None else secret,
            "description": msgspec.msgpack.encode(description),
            "data_address": f"192.0.2.{number}",
        }
        return self.say(stream, hello=pb.Hello(**(hello | fields)))

    def hang_up(self, stream: int) -> None:
        self.core.receive(Closed(stream), self.now)
        self.run()

    def report(self, stream: int, number: int, **states: TaskStatus) -> list[pb.ManagerMessage]:
        statuses = {task_id: msgspec.msgpack.encode(status) for task_id, status in states.items()}
        return self.say(stream, statuses=pb.StatusReport(number=number, statuses=statuses))

    def assignments(self, stream: int) -> list[pb.Assignments]:
        return [m.assignments for m in self.sent.get(stream, []) if m.WhichOneof("message") == "assignments"]

    def held(self, stream: int) -> Receiver:
        """What the node of a stream holds by now."""
        node = Receiver()
        for message in self.assignments(stream):
            node.take(message)
        return node

    def count(self, counter: str) -> int:
        return self.core.status().counters.get(counter, 0)


@pytest.fixture
def make() -> Make:
    return Make()


@pytest.fixture
def world_of() -> type[World]:
    return World
