"""The Control service of a manager: a thin shell over the pure operations beside it.

Served over TCP and, by the same object, on the daemon's local socket. No tasks of its own. Each call decides under the
`Decisions` lock from a durable snapshot and answers when its commit is durable.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

import grpc

from control.ca import rotation
from control.dispatcher.managers import managers
from control.lifecycle import Writer
from control.lock import SALT_BYTES, backup_key_id, backup_sealer
from control.model import (
    Attachment,
    Cluster,
    ClusterSpec,
    Network,
    NetworkSpec,
    Node,
    NodeSpec,
    Service,
    ServiceSpec,
    Task,
    User,
)
from control.rpc import control_pb2 as pb
from control.rpc.control_pb2_grpc import ControlServicer
from control.server import certificates, networks, nodes, services, users
from control.server.filters import predicate
from control.server.hop import LEADER
from control.server.objects import spec_from_wire, to_wire
from control.server.references import Public, find, public_kind
from control.server.refusal import Refusal, of_store
from control.server.signing import Signatures
from control.server.transact import Decisions, transact
from control.server.watching import Told, Watching, message
from control.store.aesgcm import Keys
from control.store.backup import write_backup
from control.store.errors import NotLeader, StoreError
from control.store.store import Commit, Resync, Store
from control.store.tables import Snapshot
from control.store.txn import Change, Delete, Put, name_of

Context = grpc.aio.ServicerContext[Any, Any]
U = TypeVar("U", Cluster, Node, Service)
X = TypeVar("X")

# A change that is not agreed on by then will not be soon; the caller is told that it may still come to pass.
CALL_TIMEOUT_S = 20.0
# Each watch holds a place in the store's history and the objects it has told of.
WATCHES_MAX = 256
# Objects encoded in one turn of the loop: 5 ms, so that a long list does not make the manager look dead.
SLICE = 1000
# Far below gRPC's 4 MiB.
BACKUP_PIECE_BYTES = 1 << 20
# A list longer than this is refused: it would have to be held in memory several times over. 50,000 tasks.
LIST_MAX_BYTES = 32 << 20


class ControlService(ControlServicer):
    """See the module. `new_id` makes ids, `random_bytes` gives 16 of them for secrets."""

    def __init__(
        self,
        store: Store,
        decisions: Decisions,
        new_id: Callable[[], str],
        random_bytes: Callable[[], bytes],
        wall_ms: Callable[[], int],
        may_go: Callable[[Node], None] = lambda _: None,
        signatures: Signatures | None = None,
    ) -> None:
        """`may_go` raises Refusal if a manager must stay one; `signatures` are those of an external CA."""
        self._signatures = signatures or Signatures(None, wall_ms)
        self._store, self._decisions, self._may_go = store, decisions, may_go
        self._new_id, self._random_bytes, self._wall_ms = new_id, random_bytes, wall_ms
        self._watches = 0

    # --- reading ----------------------------------------------------------------------------------------------------

    async def List(self, request: pb.ListRequest, context: Context) -> pb.ListReply:
        async with answering(context):
            view = self._store.view()
            cls = public_kind(request.kind)
            passes = predicate(view, cls, _filters(request.filters))
            reply, size = pb.ListReply(), 0
            async for obj in _sliced(obj for obj in view.all(cls) if passes(obj)):
                wire = to_wire(obj)
                size += len(wire.value)
                if size > LIST_MAX_BYTES:
                    raise Refusal(
                        "FAILED_PRECONDITION", f"too many {request.kind}s for one answer: use a filter, or watch them"
                    )
                reply.objects.append(wire)
            return reply

    async def Get(self, request: pb.GetRequest, context: Context) -> pb.Object:
        async with answering(context):
            return to_wire(_find(self._store.view(), request.kind, request.reference))

    async def Watch(self, request: pb.WatchRequest, context: Context) -> AsyncIterator[pb.Event]:
        async with answering(context, timeout_s=None):
            if self._watches >= WATCHES_MAX:
                raise Refusal("UNAVAILABLE", f"this manager serves {WATCHES_MAX} watches already: try again later")
            self._watches += 1
            try:
                async for event in self._watch(request):
                    yield event
            finally:
                self._watches -= 1

    async def _watch(self, request: pb.WatchRequest) -> AsyncIterator[pb.Event]:
        view = self._store.view()
        watcher = self._store.watch(view.version)
        cls = public_kind(request.kind)
        watching = Watching(cls, predicate(view, cls, _filters(request.filters)))
        async for told in _sliced(watching.begin(view)):
            yield message(told)
        yield pb.Event(action=pb.Event.LIVE)
        async for item in watcher:
            news: Iterator[Told]
            match item:
                case Commit(events=events):
                    news = watching.follow(events)
                case Resync(view=view):
                    news = watching.resync(view)
            async for told in _sliced(news):
                yield message(told)

    # --- networks ---------------------------------------------------------------------------------------------------

    async def CreateNetwork(self, request: pb.CreateRequest, context: Context) -> pb.CreateReply:
        async with answering(context):
            spec, new_id = spec_from_wire(request.spec, NetworkSpec), self._new_id()
            await self._change(lambda view: networks.create_network(view, spec, new_id))
            return pb.CreateReply(id=new_id)

    # --- services ---------------------------------------------------------------------------------------------------

    async def CreateService(self, request: pb.CreateRequest, context: Context) -> pb.CreateReply:
        async with answering(context):
            spec, new_id = spec_from_wire(request.spec, ServiceSpec), self._new_id()
            warnings: tuple[str, ...] = ()

            def decide(view: Snapshot) -> list[Change]:
                nonlocal warnings
                creation = services.create_service(view, spec, new_id)
                warnings = creation.warnings
                return creation.changes

            await self._change(decide)
            return pb.CreateReply(id=new_id, warnings=warnings)

    async def UpdateService(self, request: pb.UpdateRequest, context: Context) -> pb.Object:
        async with answering(context):
            spec = spec_from_wire(request.spec, ServiceSpec)
            return await self._update(
                lambda view: _seen(find(view, Service, request.reference), request.version),
                lambda view, service: services.update_service(view, service, spec),
            )

    async def RollbackService(self, request: pb.GetRequest, context: Context) -> pb.Object:
        async with answering(context):
            return await self._update(
                lambda view: find(view, Service, request.reference),
                lambda view, service: services.rollback_service(view, service, self._wall_ms()),
            )

    # --- nodes and the cluster --------------------------------------------------------------------------------------

    async def UpdateNode(self, request: pb.UpdateRequest, context: Context) -> pb.Object:
        async with answering(context):
            spec = spec_from_wire(request.spec, NodeSpec)
            if spec.role != "manager":
                await (
                    self._store.barrier()
                )  # a farewell that waits for a lost majority would come when nobody expects it

            def decide(view: Snapshot, node: Node) -> list[Change]:
                changes = nodes.update_node(view, node, spec)
                if node.spec.role == "manager" and spec.role != "manager":
                    self._may_go(node)
                return changes

            return await self._update(lambda view: _seen(find(view, Node, request.reference), request.version), decide)

    async def UpdateCluster(self, request: pb.UpdateRequest, context: Context) -> pb.Object:
        async with answering(context):
            spec, unlock_random = spec_from_wire(request.spec, ClusterSpec), self._unlock_random()
            return await self._update(
                lambda view: _seen(find(view, Cluster, request.reference), request.version),
                lambda _, cluster: nodes.update_cluster(cluster, spec, unlock_random),
            )

    async def RotateToken(self, request: pb.RotateTokenRequest, context: Context) -> pb.RotateTokenReply:
        async with answering(context):
            random_bytes, token = self._random_bytes(), ""

            def decide(view: Snapshot) -> list[Change]:
                nonlocal token
                changes, token = nodes.rotate_token(view.cluster(), request.role, random_bytes)
                return changes

            await self._change(decide)
            return pb.RotateTokenReply(token=token)

    async def GetUnlockKey(self, request: pb.UnlockKeyRequest, context: Context) -> pb.UnlockKeyReply:
        async with answering(context):
            return _unlock_key_reply(self._store.view())

    async def RotateUnlockKey(self, request: pb.UnlockKeyRequest, context: Context) -> pb.UnlockKeyReply:
        async with answering(context):
            unlock_random = self._unlock_random()
            await self._change(lambda view: nodes.rotate_unlock_key(view.cluster(), unlock_random))
            return _unlock_key_reply(self._store.view())

    def _unlock_random(self) -> bytes:
        return self._random_bytes() + self._random_bytes()

    # --- trust ------------------------------------------------------------------------------------------------------

    async def GetAuthority(self, request: pb.GetAuthorityRequest, context: Context) -> pb.AuthorityReply:
        async with answering(context):
            return _authority_reply(self._store.view())

    async def RotateAuthority(self, request: pb.RotateAuthorityRequest, context: Context) -> pb.AuthorityReply:
        async with answering(context):
            now_s, serials = self._wall_ms() / 1000, (self._random_bytes(), self._random_bytes())
            await self._change(
                lambda view: certificates.rotate(view, request.certificate, request.key, now_s, *serials)
            )
            return _authority_reply(self._store.view())

    # --- users ------------------------------------------------------------------------------------------------------

    async def AddUser(self, request: pb.AddUserRequest, context: Context) -> pb.UserReply:
        async with answering(context):
            now_s, serial = self._wall_ms() / 1000, self._random_bytes()
            issued: list[users.IssuedUser] = []

            def decide(view: Snapshot) -> list[Change]:
                asked = request.name, request.role, request.csr, request.life_s
                issued[:] = [users.add(view, *asked, now_s, serial, self._signatures.take)]
                return [Put(issued[0].user)]

            await self._signatures.decided(lambda: self._change(decide))
            return pb.UserReply(
                certificate=issued[0].chain, roots=issued[0].roots, managers=managers(self._store.view())
            )

    # --- removal ----------------------------------------------------------------------------------------------------

    async def Remove(self, request: pb.RemoveRequest, context: Context) -> pb.RemoveReply:
        async with answering(context):
            obj = _find(self._store.view(), request.kind, request.reference)
            match obj:
                case Network(id=id_):
                    await self._change(lambda view: networks.remove_network(view, find(view, Network, id_)))
                case Node(id=id_):
                    await self._change(lambda view: self._remove_node(view, id_, force=request.force))
                case Service(id=id_):
                    await self._remove_service(id_)
                case User(id=id_):
                    await self._change(lambda view: _remove_user(find(view, User, id_)))
                case _:
                    raise Refusal("INVALID_ARGUMENT", f"a {request.kind} cannot be removed")
            return pb.RemoveReply(id=obj.id)

    def _remove_node(self, view: Snapshot, node_id: str, *, force: bool) -> list[Change]:
        node = find(view, Node, node_id)
        changes = nodes.remove_node(view, node, force=force)
        if node.spec.role == "manager":
            self._may_go(node)
        return changes

    async def _remove_service(self, service_id: str) -> None:
        """In steps, under one lock: nobody may replace the tasks between them."""
        last = False

        def decide(view: Snapshot) -> list[Change]:
            nonlocal last
            changes, last = services.remove_service(view, find(view, Service, service_id))
            return changes

        async with self._decisions:
            while not last:
                await transact(self._store, decide, Writer.ORCHESTRATOR)

    # --- backups ----------------------------------------------------------------------------------------------------

    async def Backup(self, request: pb.BackupRequest, context: Context) -> AsyncIterator[pb.BackupPiece]:
        async with answering(context, timeout_s=None):
            view, term = self._store.view(), self._store.status().term
            with tempfile.TemporaryDirectory(prefix="meshd-backup-") as directory:
                path = Path(directory) / "backup"
                ring = backup_ring(view.cluster())
                await asyncio.to_thread(write_backup, path, view.cluster().id, term, view, ring)
                with path.open("rb") as file:
                    while data := await asyncio.to_thread(file.read, BACKUP_PIECE_BYTES):
                        yield pb.BackupPiece(data=data)

    # --- in common --------------------------------------------------------------------------------------------------

    async def _change(self, decide: Callable[[Snapshot], Iterable[Change]]) -> None:
        async with self._decisions:
            await transact(self._store, decide, Writer.ORCHESTRATOR)

    async def _update(
        self, look_up: Callable[[Snapshot], U], decide: Callable[[Snapshot, U], Iterable[Change]]
    ) -> pb.Object:
        """Change one object; how it is then."""
        found: list[U] = []

        def step(view: Snapshot) -> Iterable[Change]:
            found[:] = [look_up(view)]
            return decide(view, found[0])

        await self._change(step)
        after = self._store.view().get(type(found[0]), found[0].id)
        return to_wire(after if after is not None else found[0])


def _unlock_key_reply(view: Snapshot) -> pb.UnlockKeyReply:
    cluster = view.cluster()
    return pb.UnlockKeyReply(key=cluster.unlock_key, version=cluster.unlock_version)


def backup_ring(cluster: Cluster) -> Keys | None:
    """What a backup is encrypted with: what a user has, who has autolock; None if there is nothing of that kind."""
    if not cluster.unlock_key:
        return None
    key_id = backup_key_id(cluster.unlock_version, os.urandom(SALT_BYTES))
    return Keys([backup_sealer(cluster.unlock_key, key_id, os.urandom)])


def _authority_reply(view: Snapshot) -> pb.AuthorityReply:
    authority = certificates.authority_of(view)
    progress = rotation.progress(authority, view.all(Node))
    return pb.AuthorityReply(
        certificate=authority.certificate.encode(),
        digest=progress.digest,
        changing=progress.changing,
        done=progress.done,
        total=progress.total,
        away=progress.away,
    )


@asynccontextmanager
async def answering(context: Context, timeout_s: float | None = CALL_TIMEOUT_S) -> AsyncIterator[None]:
    """End the call with the right status when it is refused, or when no agreement is reached in time."""
    try:
        async with asyncio.timeout(timeout_s):
            yield
    except Refusal as refusal:
        await _abort(context, refusal)
    except NotLeader as error:  # nothing was done: who has handed the call on may try again
        await context.abort(grpc.StatusCode.UNAVAILABLE, str(error), trailing_metadata=((LEADER, ""),))
    except StoreError as error:
        await _abort(context, of_store(error))
    except TimeoutError:
        sentence = "the managers did not agree in time; the change may still come to pass: look before trying again"
        await _abort(context, Refusal("UNAVAILABLE", sentence))


async def _abort(context: Context, refusal: Refusal) -> None:
    await context.abort(grpc.StatusCode[refusal.code], str(refusal))


def _remove_user(user: User) -> list[Change]:
    return [Delete(User, user.id, user.meta.version)]


def _find(view: Snapshot, kind: str, reference: str) -> Public:
    match public_kind(kind):
        case cls if cls is Cluster:
            return find(view, Cluster, reference)
        case cls if cls is Node:
            return find(view, Node, reference)
        case cls if cls is Network:
            return find(view, Network, reference)
        case cls if cls is Service:
            return find(view, Service, reference)
        case cls if cls is User:
            return find(view, User, reference)
        case cls if cls is Attachment:
            return find(view, Attachment, reference)
        case _:
            return find(view, Task, reference)


def _seen(obj: U, version: int) -> U:
    """The object, if it is still as the caller has seen it (version 0: however it is). Raises Refusal."""
    if version not in (0, obj.meta.version):
        raise Refusal("ABORTED", f"{name_of(obj)} has changed meanwhile: read it again and decide again")
    return obj


def _filters(filters: Mapping[str, pb.StringList]) -> dict[str, tuple[str, ...]]:
    return {key: tuple(values.values) for key, values in filters.items()}


async def _sliced(items: Iterable[X]) -> AsyncIterator[X]:
    """The items, with a turn of the loop for others now and then."""
    for number, item in enumerate(items, start=1):
        yield item
        if number % SLICE == 0:
            await asyncio.sleep(0)
