"""A manager's services over a store in memory, behind real gRPC on loopback."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
from collections.abc import AsyncIterator, Iterable
from typing import Any

import grpc
import msgspec
import pytest

from control.model import (
    Cluster,
    ClusterSpec,
    Meta,
    NetworkAttachment,
    NetworkSpec,
    Node,
    NodeDescription,
    NodeSpec,
    NodeStatus,
    Object,
    PortSpec,
    ProcessSpec,
    ServiceSpec,
    TaskSpec,
)
from control.quorum.seat import Seat
from control.rpc import control_pb2 as pb
from control.rpc.control_pb2_grpc import (
    ControlStub,
    DispatcherStub,
    MembershipStub,
    add_ControlServicer_to_server,
    add_DispatcherServicer_to_server,
    add_MembershipServicer_to_server,
)
from control.server.api import ControlService
from control.server.dispatcher import DispatcherService
from control.server.membership import MembershipService
from control.server.options import SERVER_OPTIONS
from control.store.fake import FakeBackend
from control.store.store import Store
from control.token import make_token, secret_digest

WORKER_TOKEN = make_token("d" * 50, b"w" * 16)
MANAGER_TOKEN = make_token("d" * 50, b"m" * 16)


def cluster(**spec: Any) -> Cluster:
    return Cluster(
        id="cluster1",
        spec=ClusterSpec(**spec),
        worker_token=WORKER_TOKEN,
        manager_token=MANAGER_TOKEN,
        next_node_number=3,
    )


def node(number: int, **fields: Any) -> Node:
    """Node 1 is the manager."""
    defaults: dict[str, Any] = {
        "spec": NodeSpec(role="manager" if number == 1 else "worker"),
        "description": NodeDescription(hostname=f"h{number}"),
        "status": NodeStatus(state="ready", data_address=f"192.0.2.{number}"),
        "control_address": "192.0.2.1:7377" if number == 1 else "",
    }
    return Node(
        id=f"node{number}", number=number, secret_digest=secret_digest(f"secret{number}"), **(defaults | fields)
    )


def service_spec(name: str, *networks: str, ports: tuple[PortSpec, ...] = (), **fields: Any) -> ServiceSpec:
    attachments = tuple(NetworkAttachment(network_id=n) for n in networks)
    task = TaskSpec(process=ProcessSpec(command=("true",)), networks=attachments)
    return ServiceSpec(name=name, **({"task": task, "ports": ports} | fields))


class Manager:
    """The services, their store and clients of them."""

    def __init__(
        self,
        store: Store,
        backend: FakeBackend,
        decisions: asyncio.Lock,
        channel: grpc.aio.Channel,
        dispatcher: DispatcherService,
    ) -> None:
        self.store, self.backend, self.decisions = store, backend, decisions
        self.channel, self.dispatcher = channel, dispatcher
        self.control: Any = ControlStub(channel)
        self.membership: Any = MembershipStub(channel)
        self.sessions: Any = DispatcherStub(channel)

    def get(self, cls: type[Any], id_: str) -> Any:
        return self.store.view().get(cls, id_)

    async def create_network(self, name: str, **fields: Any) -> str:
        spec = msgspec.msgpack.encode(NetworkSpec(name=name, **fields))
        return str((await self.control.CreateNetwork(pb.CreateRequest(spec=spec))).id)

    async def create_service(self, name: str, *networks: str, **fields: Any) -> str:
        return str((await self.create_service_reply(name, *networks, **fields)).id)

    async def create_service_reply(self, name: str, *networks: str, **fields: Any) -> Any:
        spec = msgspec.msgpack.encode(service_spec(name, *networks, **fields))
        return await self.control.CreateService(pb.CreateRequest(spec=spec))

    async def update_service(self, reference: str, spec: ServiceSpec, version: int = 0) -> Any:
        request = pb.UpdateRequest(reference=reference, version=version, spec=msgspec.msgpack.encode(spec))
        return await self.control.UpdateService(request)

    async def remove(self, kind: str, reference: str, *, force: bool = False) -> Any:
        return await self.control.Remove(pb.RemoveRequest(kind=kind, reference=reference, force=force))

    async def join(self, **fields: Any) -> Any:
        defaults = {
            "token": WORKER_TOKEN,
            "description": msgspec.msgpack.encode(NodeDescription(hostname="h3")),
            "data_address": "192.0.2.3",
        }
        return await self.membership.Join(pb.JoinRequest(**(defaults | fields)))


async def admit(node_id: str, address: str, *, enrolled: bool) -> Seat | None:
    """Every manager has its place already."""
    return None if enrolled else Seat(f"{node_id}.1", 0)


@contextlib.asynccontextmanager
async def serving(objects: Iterable[Object], *, dispatch: bool = True) -> AsyncIterator[Manager]:
    """A manager with these objects in its store."""
    stamped = [msgspec.structs.replace(o, meta=Meta(version=1)) for o in objects]
    backend = FakeBackend(stamped)
    store = Store(backend, lambda: 1_000)
    await store.open()
    numbers, decisions = itertools.count(1), asyncio.Lock()

    def new_id() -> str:
        return f"id{next(numbers):023d}"

    dispatcher = DispatcherService(store, lambda: 1_000, random.Random(1))
    server = grpc.aio.server(options=SERVER_OPTIONS)
    add_ControlServicer_to_server(ControlService(store, decisions, new_id, lambda: b"r" * 16, lambda: 1_000), server)
    add_MembershipServicer_to_server(MembershipService(store, decisions, new_id, "disk", admit, lambda: 0), server)
    add_DispatcherServicer_to_server(dispatcher, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    term = await store.leading()
    async with asyncio.TaskGroup() as group:
        running = group.create_task(dispatcher.run(term)) if dispatch else None
        try:
            async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
                yield Manager(store, backend, decisions, channel, dispatcher)
        finally:
            await server.stop(0)
            if running is not None:
                running.cancel()
    await store.close()


@contextlib.asynccontextmanager
async def refused(code: str, *sentences: str) -> AsyncIterator[None]:
    """The call in the block is refused with this code and, if given, exactly these sentences."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        yield
    assert caught.value.code() is grpc.StatusCode[code], caught.value.details()
    if sentences:
        assert caught.value.details() == "\n".join(sentences)


@pytest.fixture
async def manager() -> AsyncIterator[Manager]:
    """A cluster of a manager and a worker."""
    async with serving([cluster(), node(1), node(2)]) as made:
        yield made


@pytest.fixture
async def quiet() -> AsyncIterator[Manager]:
    """The same without a dispatcher: nodes keep the state they have."""
    async with serving([cluster(), node(1), node(2)], dispatch=False) as made:
        yield made


class Kit:
    """What tests need of this file (conftest files cannot be imported)."""

    serving = staticmethod(serving)
    refused = staticmethod(refused)
    cluster = staticmethod(cluster)
    node = staticmethod(node)
    service_spec = staticmethod(service_spec)
    worker_token = WORKER_TOKEN
    manager_token = MANAGER_TOKEN


@pytest.fixture
def kit() -> type[Kit]:
    return Kit
