"""A daemon that is none: Control and Local over a real unix socket, on objects in memory; and a way to run `mesh`."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import msgspec
import pytest
from msgspec.structs import replace

from control.lifecycle import TaskState
from control.model import (
    KIND_OF,
    Cluster,
    ClusterSpec,
    Meta,
    Network,
    NetworkSpec,
    Node,
    NodeDescription,
    NodeSpec,
    NodeStatus,
    Object,
    ProcessSpec,
    ReplicatedMode,
    Service,
    ServiceMode,
    ServiceSpec,
    Task,
    TaskAddress,
    TaskSpec,
    TaskStatus,
    User,
)
from control.rpc import control_pb2 as pb
from control.rpc.control_pb2_grpc import (
    ControlServicer,
    LocalServicer,
    LogsServicer,
    add_ControlServicer_to_server,
    add_LocalServicer_to_server,
    add_LogsServicer_to_server,
)
from mesh.cli.main import run
from mesh.cli.session import Session

NOW_MS = 1_790_000_000_000
MINUTE_MS = 60_000


def make_node(number: int, **rest: Any) -> Node:
    fields: dict[str, Any] = {
        "id": f"node{number}" + "x" * 20,
        "number": number,
        "spec": NodeSpec(role="manager" if number == 1 else "worker"),
        "description": NodeDescription(
            hostname=f"h{number}",
            os="linux",
            architecture="x86_64",
            kernel="6.1",
            version="0.1.0",
            cpus=2.0,
            memory_bytes=4 << 30,
            executors=("process",),
            balancer="nftables",
            mtu=1500,
        ),
        "status": NodeStatus(state="ready", address=f"10.0.0.{number}", data_address=f"10.0.0.{number}"),
        "meta": Meta(version=1, created_ms=NOW_MS - 60 * MINUTE_MS, updated_ms=NOW_MS),
    }
    return Node(**(fields | rest))


def make_network(name: str, number: int, **rest: Any) -> Network:
    fields: dict[str, Any] = {
        "id": f"net{name}" + "x" * 20,
        "spec": NetworkSpec(name=name),
        "vni": 4096 + number,
        "subnet": f"10.128.{16 * number}.0/20",
        "gateway": f"10.128.{16 * number}.1",
        "meta": Meta(version=1, created_ms=NOW_MS, updated_ms=NOW_MS),
    }
    return Network(**(fields | rest))


def make_service(name: str, replicas: int = 2, **rest: Any) -> Service:
    spec = ServiceSpec(
        name=name,
        mode=ServiceMode(replicated=ReplicatedMode(replicas=replicas)),
        task=TaskSpec(process=ProcessSpec(command=("python3", "-m", "http.server", "80"))),
    )
    fields: dict[str, Any] = {
        "id": f"svc{name}" + "x" * 20,
        "spec": spec,
        "meta": Meta(version=7, created_ms=NOW_MS - 5 * MINUTE_MS, updated_ms=NOW_MS),
    }
    return Service(**(fields | rest))


def make_task(
    service: Service, slot: int, node: Node | None, state: TaskState = TaskState.RUNNING, **rest: Any
) -> Task:
    fields: dict[str, Any] = {
        "id": f"t{slot}{service.spec.name}" + "x" * 20,
        "service_id": service.id,
        "service_name": service.spec.name,
        "slot": slot,
        "node_id": node.id if node is not None else "",
        "spec": service.spec.task,
        "spec_version": service.spec_version,
        "status": TaskStatus(state=state, at_ms=NOW_MS - 5000),
        "meta": Meta(version=3, created_ms=NOW_MS - 10_000 + slot, updated_ms=NOW_MS - 5000),
        "addresses": (TaskAddress(network_id="net", address=f"10.128.16.{slot + 1}"),),
    }
    return Task(**(fields | rest))


def wire(obj: Object) -> pb.Object:
    return pb.Object(kind=KIND_OF[type(obj)], value=msgspec.msgpack.encode(obj))


SPECS: dict[str, Any] = {
    "CreateNetwork": NetworkSpec,
    "CreateService": ServiceSpec,
    "UpdateService": ServiceSpec,
    "UpdateNode": NodeSpec,
    "UpdateCluster": ClusterSpec,
    "Init": ClusterSpec,
}


def manager_info() -> pb.InfoReply:
    """Of a manager that is well."""
    return pb.InfoReply(
        version="0.1.0",
        state="active",
        node_id=make_node(1).id,
        node_name="h1",
        cluster_id="cluster",
        role="manager",
        managers=["10.0.0.1:7377"],
        connected=True,
        executor="process",
        balancer="nftables",
        sequence=12,
        repairs=1,
    )


@dataclass
class FakeDaemon(ControlServicer, LocalServicer, LogsServicer):
    """Objects in memory. `refuse` ends calls of a method with a status; `before` runs before each call."""

    objects: dict[str, Object] = field(default_factory=dict)
    info: pb.InfoReply = field(default_factory=manager_info)
    unlock_key: str = "MSHKEY-1-key"
    dns_reply: pb.DnsQueryReply = field(default_factory=pb.DnsQueryReply)
    dns_asked: pb.DnsQueryRequest | None = None
    trace_steps: list[pb.TraceStep] = field(default_factory=list)
    trace_asked: pb.TraceRequest | None = None
    log_pieces: list[pb.LogPiece] = field(default_factory=list)
    dns_names: list[pb.DnsName] = field(default_factory=list)
    refuse: dict[str, tuple[grpc.StatusCode, str]] = field(default_factory=dict)
    refuse_once: dict[str, tuple[grpc.StatusCode, str]] = field(default_factory=dict)
    before: Callable[[str], None] = lambda _: None
    warnings: tuple[str, ...] = ()
    processes: dict[str, tuple[str, int]] = field(default_factory=dict)
    watches_stay: bool = False
    watched: list[pb.Event] = field(default_factory=list)
    calls: list[tuple[str, Any]] = field(default_factory=list)

    quorum: pb.QuorumReply | None = None  # what the managers are; None: all there, the first one leads

    def add(self, *objects: Object) -> None:
        self.objects |= {obj.id: obj for obj in objects}

    def specs(self, method: str) -> list[Any]:
        """The specs that a method was given."""
        return [msgspec.msgpack.decode(r.spec, type=SPECS[method]) for name, r in self.calls if name == method]

    def requests(self, method: str) -> list[Any]:
        return [request for name, request in self.calls if name == method]

    def _begin(self, method: str, request: Any, context: grpc.ServicerContext) -> None:
        self.before(method)
        self.calls.append((method, request))
        refusal = self.refuse_once.pop(method, None) or self.refuse.get(method)
        if refusal is not None:
            context.abort(*refusal)

    def _of(self, kind: str) -> list[Any]:
        return [obj for obj in self.objects.values() if KIND_OF[type(obj)] == kind]

    def _find(self, kind: str, reference: str, context: grpc.ServicerContext) -> Any:
        for obj in self._of(kind):
            if reference in _names(obj) or (isinstance(obj, Cluster) and not reference):
                return obj
        context.abort(grpc.StatusCode.NOT_FOUND, f'no {kind} "{reference}"')
        raise AssertionError

    def List(self, request: pb.ListRequest, context: grpc.ServicerContext) -> pb.ListReply:
        self._begin("List", request, context)
        filters = {key: list(values.values) for key, values in request.filters.items()}
        found = self._of(request.kind)
        for key, attribute in (("service", "service_id"), ("node", "node_id")):
            if key in filters:
                found = [obj for obj in found if getattr(obj, attribute) in filters[key]]
        if "name" in filters:
            found = [obj for obj in found if any(name in filters["name"] for name in _names(obj))]
        return pb.ListReply(objects=[wire(obj) for obj in found])

    def Get(self, request: pb.GetRequest, context: grpc.ServicerContext) -> pb.Object:
        self._begin("Get", request, context)
        return wire(self._find(request.kind, request.reference, context))

    def Watch(self, request: pb.WatchRequest, context: grpc.ServicerContext) -> Iterator[pb.Event]:
        self._begin("Watch", request, context)
        yield from (event for event in self.watched if event.object.kind in ("", request.kind))
        while self.watches_stay and context.is_active():
            time.sleep(0.02)

    def CreateNetwork(self, request: pb.CreateRequest, context: grpc.ServicerContext) -> pb.CreateReply:
        self._begin("CreateNetwork", request, context)
        return pb.CreateReply(id="newnetwork", warnings=self.warnings)

    def CreateService(self, request: pb.CreateRequest, context: grpc.ServicerContext) -> pb.CreateReply:
        self._begin("CreateService", request, context)
        spec = msgspec.msgpack.decode(request.spec, type=ServiceSpec)
        self.add(Service(id="newservice", spec=spec, meta=Meta(version=1)))
        return pb.CreateReply(id="newservice", warnings=self.warnings)

    def UpdateService(self, request: pb.UpdateRequest, context: grpc.ServicerContext) -> pb.Object:
        self._begin("UpdateService", request, context)
        old = self._find("service", request.reference, context)
        spec = msgspec.msgpack.decode(request.spec, type=ServiceSpec)
        grown = old.spec_version + (spec.task != old.spec.task)
        self.add(replace(old, spec=spec, spec_version=grown, previous_spec=old.spec))
        return wire(self.objects[old.id])

    def RollbackService(self, request: pb.GetRequest, context: grpc.ServicerContext) -> pb.Object:
        self._begin("RollbackService", request, context)
        return wire(self._find("service", request.reference, context))

    def UpdateNode(self, request: pb.UpdateRequest, context: grpc.ServicerContext) -> pb.Object:
        self._begin("UpdateNode", request, context)
        return wire(self._find("node", request.reference, context))

    def UpdateCluster(self, request: pb.UpdateRequest, context: grpc.ServicerContext) -> pb.Object:
        self._begin("UpdateCluster", request, context)
        old = self._find("cluster", request.reference, context)
        self.add(replace(old, spec=msgspec.msgpack.decode(request.spec, type=ClusterSpec)))
        return wire(self.objects[old.id])

    def Remove(self, request: pb.RemoveRequest, context: grpc.ServicerContext) -> pb.RemoveReply:
        self._begin("Remove", request, context)
        return pb.RemoveReply(id=self._find(request.kind, request.reference, context).id)

    def RotateToken(self, request: pb.RotateTokenRequest, context: grpc.ServicerContext) -> pb.RotateTokenReply:
        self._begin("RotateToken", request, context)
        return pb.RotateTokenReply(token=f"NEW-{request.role}")

    def AddUser(self, request: pb.AddUserRequest, context: grpc.ServicerContext) -> pb.UserReply:
        self._begin("AddUser", request, context)
        self.add(User(id=request.name, role=request.role))
        return pb.UserReply(certificate=b"CERTIFICATE", roots=b"ROOTS", managers=["10.0.0.1:7377"])

    def Info(self, request: pb.InfoRequest, context: grpc.ServicerContext) -> pb.InfoReply:
        self._begin("Info", request, context)
        return self.info

    def Init(self, request: pb.InitRequest, context: grpc.ServicerContext) -> pb.InitReply:
        self._begin("Init", request, context)
        return pb.InitReply(
            node_id="node1", cluster_id="cluster", worker_token="MTKN-1-w", manager_address="10.0.0.1:7377"
        )

    def Join(self, request: pb.LocalJoinRequest, context: grpc.ServicerContext) -> pb.LocalJoinReply:
        self._begin("Join", request, context)
        return pb.LocalJoinReply(node_id="node2")

    def GetUnlockKey(self, request: pb.UnlockKeyRequest, context: grpc.ServicerContext) -> pb.UnlockKeyReply:
        self._begin("GetUnlockKey", request, context)
        return pb.UnlockKeyReply(key=self.unlock_key)

    def RotateUnlockKey(self, request: pb.UnlockKeyRequest, context: grpc.ServicerContext) -> pb.UnlockKeyReply:
        self._begin("RotateUnlockKey", request, context)
        return pb.UnlockKeyReply(key="MSHKEY-1-other")

    def Unlock(self, request: pb.UnlockRequest, context: grpc.ServicerContext) -> pb.UnlockReply:
        self._begin("Unlock", request, context)
        return pb.UnlockReply()

    def Leave(self, request: pb.LeaveRequest, context: grpc.ServicerContext) -> pb.LeaveReply:
        self._begin("Leave", request, context)
        return pb.LeaveReply()

    def TaskProcess(self, request: pb.TaskProcessRequest, context: grpc.ServicerContext) -> pb.TaskProcessReply:
        self._begin("TaskProcess", request, context)
        if request.reference not in self.processes:
            context.abort(grpc.StatusCode.NOT_FOUND, f'no task "{request.reference}" runs on this node')
        task_id, pid = self.processes[request.reference]
        return pb.TaskProcessReply(task_id=task_id, pid=pid)

    def QuorumStatus(self, request: pb.LookRequest, context: grpc.ServicerContext) -> pb.QuorumReply:
        self._begin("QuorumStatus", request, context)
        if self.quorum is not None:
            return self.quorum
        managers = [node for node in self._of("node") if node.spec.role == "manager"]
        reply = pb.QuorumReply()
        for number, node in enumerate(managers):
            row = reply.managers.add(node_id=node.id, name=node.description.hostname, voter=True)
            row.status = "reachable" if number else "leader"
        return reply

    def Backup(self, request: pb.BackupRequest, context: grpc.ServicerContext) -> Iterator[pb.BackupPiece]:
        self._begin("Backup", request, context)
        yield from (pb.BackupPiece(data=data) for data in (b"all of ", b"it"))

    def Read(self, request: pb.LogsRequest, context: grpc.ServicerContext) -> Iterator[pb.LogPiece]:
        self._begin("Read", request, context)
        if request.service:
            self._find("service", request.service, context)
        yield from self.log_pieces

    def Trace(self, request: pb.TraceRequest, context: grpc.ServicerContext) -> pb.TraceReply:
        self._begin("Trace", request, context)
        self.trace_asked = request
        return pb.TraceReply(steps=self.trace_steps)

    def DnsQuery(self, request: pb.DnsQueryRequest, context: grpc.ServicerContext) -> pb.DnsQueryReply:
        self._begin("DnsQuery", request, context)
        self.dns_asked = request
        return self.dns_reply

    def DnsDump(self, request: pb.DnsDumpRequest, context: grpc.ServicerContext) -> Iterator[pb.DnsDumpReply]:
        self._begin("DnsDump", request, context)
        yield pb.DnsDumpReply(names=self.dns_names)


def _names(obj: Object) -> set[str]:
    match obj:
        case Node():
            return {obj.id, obj.description.hostname}
        case Network() | Service():
            return {obj.id, obj.spec.name}
        case Task():
            return {obj.id, f"{obj.service_name}.{obj.slot}"}
        case _:
            return {obj.id}


@dataclass
class FakeClock:
    """Time that passes only while somebody sleeps. `events` happen when their time has come."""

    now: float = 0.0
    events: list[tuple[float, Callable[[], None]]] = field(default_factory=list)

    def at(self, now: float, event: Callable[[], None]) -> None:
        self.events.append((now, event))

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        due = [event for at, event in self.events if at <= self.now]
        self.events = [(at, event) for at, event in self.events if at > self.now]
        for event in due:
            event()


@dataclass(frozen=True)
class Result:
    code: int
    out: str
    err: str


@dataclass
class Mesh:
    """Runs command lines against the fake daemon."""

    daemon: FakeDaemon
    clock: FakeClock
    socket: str
    capture: pytest.CaptureFixture[str]
    executed: list[tuple[str, list[str], dict[str, str]]] = field(default_factory=list)

    def __call__(self, *arguments: str) -> Result:
        session = Session(
            wall_ms=lambda: NOW_MS,
            monotonic_s=lambda: self.clock.now,
            sleep=self.clock.sleep,
            execute=lambda path, words, env: self.executed.append((path, words, env)),
        )
        self.capture.readouterr()
        code = run(["--socket", self.socket, *arguments], session)
        captured = self.capture.readouterr()
        return Result(code, captured.out, captured.err)

    def ok(self, *arguments: str) -> str:
        """What a command that succeeds prints."""
        result = self(*arguments)
        assert result.code == 0, result
        return result.out


@contextmanager
def serving(daemon: FakeDaemon, path: Path) -> Iterator[None]:
    """Serve on a unix socket. Its path must be short: such a path has at most 107 bytes."""
    server = grpc.server(ThreadPoolExecutor(max_workers=8))
    add_ControlServicer_to_server(daemon, server)
    add_LocalServicer_to_server(daemon, server)
    add_LogsServicer_to_server(daemon, server)
    server.add_insecure_port(f"unix:{path}")
    server.start()
    try:
        yield
    finally:
        server.stop(None).wait()
