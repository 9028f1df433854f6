"""The daemon's local socket, called synchronously: model values in and out, failures as one sentence.

The only module here that imports gRPC, so it is imported when a command makes its first call (`Session.client`).
Every call ends in bounded time; only a watch lasts as long as its caller wants.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, TypeVar, cast

os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # its own words on standard error are not for users

import grpc
import msgspec

from control.model import (
    KIND_OF,
    KINDS,
    Attachment,
    Cluster,
    ClusterSpec,
    Kind,
    Network,
    NetworkSpec,
    Node,
    NodeSpec,
    Object,
    Service,
    ServiceSpec,
    Task,
    User,
)
from control.rpc import control_pb2 as pb
from control.rpc.control_pb2_grpc import ControlStub, LocalStub, LogsStub
from mesh.cli.contexts import ClusterContext
from mesh.cli.door import Door, Elsewhere, SocketDoor
from mesh.cli.errors import OF_STATUS, ExitCode, Failure

# A manager answers within 20 s or says why not (control.server.api); the daemon in between needs a moment too.
CALL_TIMEOUT_S = 25.0
# Joining asks managers one after the other; leaving stops every task of the node within their grace periods.
JOIN_TIMEOUT_S = 60.0
ATTACH_TIMEOUT_S = 90.0  # a lease is waited for, and an interface
LEAVE_TIMEOUT_S = 120.0

Filters = Mapping[str, Sequence[str]]
Action = Literal["present", "created", "updated", "removed", "live"]
T = TypeVar("T", Cluster, Node, Network, Service, Task, User, Attachment)
X = TypeVar("X")

_ACTIONS: dict[int, Action] = {
    pb.Event.PRESENT: "present",
    pb.Event.CREATED: "created",
    pb.Event.UPDATED: "updated",
    pb.Event.REMOVED: "removed",
    pb.Event.LIVE: "live",
}


@dataclass(frozen=True, slots=True)
class Created:
    """A new object, and what its maker should know besides."""

    id: str
    warnings: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Change:
    """One message of a watch; `object` is None for "live"."""

    action: Action
    object: Object | None


class Client:
    """One connection, made at once. Raises Failure, also when nothing listens."""

    def __init__(self, place: str | ClusterContext, timeout_s: float = CALL_TIMEOUT_S) -> None:
        """`place`: the path of a socket, or a cluster elsewhere."""
        self._door = _door_to(place)
        self._timeout_s = timeout_s
        self._door.knock()
        self._channel = self._door.channel()
        self._control = ControlStub(self._channel)
        self._local = (
            LocalStub(self._channel) if self.context is None else cast(LocalStub, Elsewhere(self.context.name))
        )
        self._logs = LogsStub(self._channel)

    @property
    def context(self) -> ClusterContext | None:
        """The cluster elsewhere that is called; None: the daemon of this machine is."""
        return self._door.context

    @property
    def node_id(self) -> str:
        """Of this machine; "" where it is not this machine that is called."""
        return "" if self.context is not None else self.info().node_id

    @property
    def managers(self) -> list[str]:
        """host:port of each, as far as they are known."""
        return list(self.context.managers if self.context is not None else self.info().managers)

    def close(self) -> None:
        """End the connection, and all watches."""
        self._channel.close()

    # --- this machine -----------------------------------------------------------------------------------------------

    def info(self) -> pb.InfoReply:
        """What the daemon says of itself."""
        with self._failures():
            return self._local.Info(pb.InfoRequest(), timeout=self._timeout_s)

    def remote_info(self) -> pb.InfoReply:
        """What there is to say instead, where a cluster elsewhere is called: who calls, and whom."""
        assert self.context is not None
        return pb.InfoReply(
            state="remote", node_name=self.context.user, role=self.context.role, managers=self.context.managers
        )

    def init(self, request: pb.InitRequest) -> pb.InitReply:
        """Start a cluster here."""
        with self._failures():
            return self._local.Init(request, timeout=JOIN_TIMEOUT_S)

    def join(self, request: pb.LocalJoinRequest) -> str:
        """Enter a cluster; the node's id."""
        with self._failures():
            return self._local.Join(request, timeout=JOIN_TIMEOUT_S).node_id

    def unlock(self, key: str) -> None:
        """Give the manager on this machine the key to its state."""
        with self._failures():
            self._local.Unlock(pb.UnlockRequest(key=key), timeout=self._timeout_s)

    def leave(self, *, force: bool) -> None:
        """Leave the cluster."""
        with self._failures():
            self._local.Leave(pb.LeaveRequest(force=force), timeout=LEAVE_TIMEOUT_S)

    def task_process(self, reference: str) -> tuple[str, int]:
        """Id and process id of a task on this machine."""
        with self._failures():
            reply = self._local.TaskProcess(pb.TaskProcessRequest(reference=reference), timeout=self._timeout_s)
            return reply.task_id, reply.pid

    def attach(self, container: str, network: str, labels: dict[str, str]) -> list[str]:
        """Put a container of this machine on a network; network and address."""
        with self._failures():
            request = pb.AttachRequest(container=container, network=network, labels=labels)
            return list(self._local.Attach(request, timeout=ATTACH_TIMEOUT_S).addresses)

    def detach(self, container: str, network: str) -> list[str]:
        """Take a container off a network, or off all; networks and addresses."""
        with self._failures():
            request = pb.AttachRequest(container=container, network=network, detach=True)
            return list(self._local.Attach(request, timeout=ATTACH_TIMEOUT_S).addresses)

    def dns_query(self, request: pb.DnsQueryRequest) -> pb.DnsQueryReply:
        """How a name is answered on this machine."""
        with self._failures():
            return self._local.DnsQuery(request, timeout=self._timeout_s)

    def trace(self, request: pb.TraceRequest) -> list[pb.TraceStep]:
        """The way of a connection."""
        with self._failures():
            return list(self._local.Trace(request, timeout=self._timeout_s).steps)

    def dns_dump(self) -> Iterator[pb.DnsName]:
        """Every name that is served on this machine."""
        with self._failures():
            for piece in self._local.DnsDump(pb.DnsDumpRequest(), timeout=self._timeout_s):
                yield from piece.names

    def survey(self) -> pb.QuorumReply:
        """How the managers are, as they say one by one; answers without a leader."""
        if self.context is not None:
            from mesh.cli.cluster_door import ClusterDoor

            return ClusterDoor(self.context).survey()
        with self._failures():
            return self._local.QuorumStatus(pb.LookRequest(), timeout=self._timeout_s)

    # --- the cluster --------------------------------------------------------------------------------------------------

    def list(self, cls: type[T], filters: Filters | None = None) -> list[T]:
        """All objects of a class that pass the filters."""
        request = pb.ListRequest(kind=KIND_OF[cls], filters=_filters(filters))
        with self._failures():
            reply = self._control.List(request, timeout=self._timeout_s)
        return [_decode(wire, cls) for wire in reply.objects]

    def get(self, cls: type[T], reference: str) -> T:
        """The object with that id, name, or beginning of an id."""
        with self._failures():
            wire = self._control.Get(pb.GetRequest(kind=KIND_OF[cls], reference=reference), timeout=self._timeout_s)
        return _decode(wire, cls)

    def watch(self, kind: Kind, filters: Filters | None = None) -> Iterator[Change]:
        """What there is, then every change, until `close`."""
        with self._failures():
            for event in self._control.Watch(pb.WatchRequest(kind=kind, filters=_filters(filters))):
                action = _ACTIONS.get(event.action)
                if action is not None:
                    yield Change(action, None if action == "live" else _decode(event.object, KINDS[kind]))

    def read_logs(self, *, service: str, task: str, follow: bool, tail: int | None) -> Iterator[pb.LogPiece]:
        """What the tasks of a service, or one task, have printed; with `follow` until `close`."""
        request = pb.LogsRequest(service=service, task=task, follow=follow)
        if tail is not None:
            request.tail = tail
        with self._failures():
            yield from self._logs.Read(request)

    def create_network(self, spec: NetworkSpec) -> Created:
        """Make a network."""
        return self._create(self._control.CreateNetwork, spec)

    def create_service(self, spec: ServiceSpec) -> Created:
        """Make a service; its networks may be given by name."""
        return self._create(self._control.CreateService, spec)

    def _create(self, call: Callable[..., pb.CreateReply], spec: NetworkSpec | ServiceSpec) -> Created:
        with self._failures():
            reply = call(pb.CreateRequest(spec=msgspec.msgpack.encode(spec)), timeout=self._timeout_s)
        return Created(reply.id, tuple(reply.warnings))

    def update_service(self, reference: str, version: int, spec: ServiceSpec) -> Service:
        """Another spec for the service that was seen at `version`."""
        return _decode(self._update(self._control.UpdateService, reference, version, spec), Service)

    def update_node(self, reference: str, version: int, spec: NodeSpec) -> Node:
        """Another spec for the node that was seen at `version`."""
        return _decode(self._update(self._control.UpdateNode, reference, version, spec), Node)

    def update_cluster(self, reference: str, version: int, spec: ClusterSpec) -> Cluster:
        """Other settings for the cluster that was seen at `version`."""
        return _decode(self._update(self._control.UpdateCluster, reference, version, spec), Cluster)

    def _update(
        self, call: Callable[..., pb.Object], reference: str, version: int, spec: ServiceSpec | NodeSpec | ClusterSpec
    ) -> pb.Object:
        request = pb.UpdateRequest(reference=reference, version=version, spec=msgspec.msgpack.encode(spec))
        with self._failures():
            return call(request, timeout=self._timeout_s)

    def rollback_service(self, reference: str) -> Service:
        """Back to the version before the last update."""
        with self._failures():
            wire = self._control.RollbackService(pb.GetRequest(reference=reference), timeout=self._timeout_s)
        return _decode(wire, Service)

    def remove(self, kind: Kind, reference: str, *, force: bool = False) -> str:
        """Remove a network, service or node; its id."""
        request = pb.RemoveRequest(kind=kind, reference=reference, force=force)
        with self._failures():
            return self._control.Remove(request, timeout=self._timeout_s).id

    def rotate_token(self, role: str) -> str:
        """A new join token; the old one is worth nothing any more."""
        with self._failures():
            return self._control.RotateToken(pb.RotateTokenRequest(role=role), timeout=self._timeout_s).token

    def authority(self) -> pb.AuthorityReply:
        """The root, and how far a change of it is."""
        with self._failures():
            return self._control.GetAuthority(pb.GetAuthorityRequest(), timeout=self._timeout_s)

    def rotate_authority(self, certificate: bytes, key: bytes) -> pb.AuthorityReply:
        """Begin to change the root; both empty: to a new one."""
        request = pb.RotateAuthorityRequest(certificate=certificate, key=key)
        with self._failures():
            return self._control.RotateAuthority(request, timeout=self._timeout_s)

    def unlock_key(self) -> str:
        """What managers that start are unlocked with; "" without autolock."""
        with self._failures():
            return self._control.GetUnlockKey(pb.UnlockKeyRequest(), timeout=self._timeout_s).key

    def rotate_unlock_key(self) -> str:
        """Another one."""
        with self._failures():
            return self._control.RotateUnlockKey(pb.UnlockKeyRequest(), timeout=self._timeout_s).key

    def add_user(self, request: pb.AddUserRequest) -> pb.UserReply:
        """A certificate for somebody."""
        with self._failures():
            return self._control.AddUser(request, timeout=self._timeout_s)

    def backup(self) -> Iterator[bytes]:
        """The whole store as a file, in pieces."""
        with self._failures():
            for piece in self._control.Backup(pb.BackupRequest()):
                yield piece.data

    # --- failures -----------------------------------------------------------------------------------------------------

    @contextmanager
    def _failures(self) -> Iterator[None]:
        """What gRPC raises, as a Failure."""
        try:
            yield
        except grpc.RpcError as error:
            if not isinstance(error, grpc.Call):  # by contract always one
                raise
            if error.code() is grpc.StatusCode.UNAVAILABLE:
                self._door.knock()
                if (explained := self._door.explain(error.details() or "")) is not None:
                    raise explained from error
            raise _failure(error) from error


def _door_to(place: str | ClusterContext) -> Door:
    if isinstance(place, str):
        return SocketDoor(place)
    from mesh.cli.cluster_door import ClusterDoor  # TLS takes a tenth of a second to import

    return ClusterDoor(place)


def _failure(error: grpc.Call) -> Failure:
    name = error.code().name
    match name:
        case "DEADLINE_EXCEEDED":
            sentence = "meshd did not answer in time; the change may still come to pass: look before trying again"
        case "UNIMPLEMENTED":
            sentence = f"this meshd cannot do that: {error.details() or 'it is of another version'}"
        case "CANCELLED":
            sentence = "meshd ended the call, or is of another version and does not know it"
        case _:
            sentence = error.details() or f"meshd answered {name} without a reason"
    return Failure(sentence, OF_STATUS.get(name, ExitCode.FAILED))


def _filters(filters: Filters | None) -> dict[str, pb.StringList]:
    return {key: pb.StringList(values=values) for key, values in (filters or {}).items()}


def _decode(wire: pb.Object, cls: type[X]) -> X:
    try:
        return msgspec.msgpack.decode(wire.value, type=cls)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise Failure(f"meshd speaks another version than this mesh: {error}") from error
