"""Who may speak with a manager: the guard of its API, the door for newcomers, and the authority of a new cluster.

`Trust` is made by the manager for its store. One task, `run`, which is the door's; it exists only where callers show
certificates.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable
from dataclasses import dataclass

from google.protobuf.message import DecodeError

from control.access import Caller
from control.ca import rotation
from control.ca.external import External, Order
from control.ca.greeting import enrolment_address
from control.ca.names import Holder
from control.ca.requests import key_of_request
from control.ca.root import (
    NODE_LIFE_S,
    SERIAL_BYTES,
    CaError,
    Root,
    digest,
    issue,
    key_digest,
    load_root_certificate,
    make_root,
    new_key,
    pem,
)
from control.decision import Decision
from control.lifecycle import Writer
from control.model import Authority
from control.rpc import control_pb2 as pb
from control.server.certificates import finish_change, standing
from control.server.doorkeeper import Doorkeeper
from control.server.edge import Edge, ListenError
from control.server.enrolment import BACKLOG, EnrolmentServer
from control.server.forward import ForwardingMembership
from control.server.guard import Audit, Guard
from control.server.refusal import Refusal
from control.server.signing import Signatures
from control.store.store import Store
from control.store.tables import Snapshot


@dataclass(frozen=True, slots=True)
class Founding:
    """The authority of a new cluster, and the certificate of its first node (PEM; empty without a request)."""

    authority: Authority
    digest: str
    key_digest: str
    chain: bytes
    roots: bytes


class Trust:
    """See the module. Without credentials in `edge`, callers come over sockets of this machine, or are tests."""

    def __init__(self, store: Store, edge: Edge, audit: Audit, wall_ms: Callable[[], int]) -> None:
        self._store, self._credentials, self._wall_ms = store, edge.credentials, wall_ms
        self._audit, self.guard = audit, Guard(self._standing, audit, secure=True)
        self.secure = edge.credentials is not None
        self._membership: ForwardingMembership | None = None
        self._door: EnrolmentServer | None = None
        self._doorkeeper: Doorkeeper | None = None
        self._socket: socket.socket | None = None

    def listen(self, api: str, membership: ForwardingMembership) -> None:
        """Open the door beside the API, which is at host:port. Raises ListenError."""
        if self._credentials is None:
            return
        self._doorkeeper = Doorkeeper(int(api.rpartition(":")[2]))
        self.guard.proved = self._doorkeeper.proved
        address = enrolment_address(api)
        self._membership, self._socket = membership, _listen(address)
        self._door = EnrolmentServer(self._socket, self._credentials, self._decide)

    async def run(self) -> None:
        """Let newcomers in, until cancelled; returns at once where there is no door."""
        if self._door is None or self._doorkeeper is None:
            return
        async with asyncio.TaskGroup() as group:
            group.create_task(self._door.run())
            group.create_task(self._doorkeeper.run())

    def close(self) -> None:
        """Let go of the port. Idempotent."""
        if self._socket is not None:
            self._socket.close()

    async def _decide(self, data: bytes, address: str) -> bytes:
        assert self._membership is not None
        try:
            request = pb.JoinRequest.FromString(data)
        except DecodeError as error:
            raise Refusal("INVALID_ARGUMENT", "the request cannot be read") from error
        if not request.csr:
            raise Refusal("INVALID_ARGUMENT", "the request has no key to certify")
        reply = await self._membership.let_in(request, address)
        # Refusals are in the log only: strangers shall not push others' lines out of the audit log.
        who = f"user {request.user}" if request.user else f"node {reply.node_id} ({reply.role})"
        self._audit("Membership/Join", who, address, "renewal" if request.user else "", "done")
        return reply.SerializeToString()

    def _standing(self, who: Caller, certificate: bytes) -> Caller | str:
        return standing(self._store.view(), who, certificate, self._wall_ms() / 1000)


def found(
    cluster_id: str, node_id: str, root: Root | None, csr: bytes, now_s: float, life_s: float = NODE_LIFE_S
) -> Founding:
    """The authority of a new cluster: of its own, or `root`. Raises CaError."""
    root = root or make_root(cluster_id, new_key(), now_s, os.urandom(SERIAL_BYTES))
    authority = rotation.new_authority(cluster_id, root)
    if not csr:
        return Founding(authority, root.digest, "", b"", b"")
    key = key_of_request(csr)
    leaf = issue(root, Holder(cluster_id, "manager", node_id), key, now_s, os.urandom(SERIAL_BYTES), life_s)
    return Founding(authority, root.digest, key_digest(key), pem(leaf), rotation.bundle(authority))


async def found_outside(
    cluster_id: str, node_id: str, external: External, csr: bytes, wall_ms: Callable[[], int]
) -> Founding:
    """The authority of a cluster whose certificates an external CA signs. Raises CaError."""
    root = load_root_certificate(external.root, wall_ms() / 1000)
    authority = Authority(id=cluster_id, certificate=pem(root).decode(), key="", url=external.url)
    order = Order(external.url, pem(root), Holder(cluster_id, "manager", node_id), csr)
    signatures = Signatures(None, wall_ms)
    await signatures.fetch(order)
    key = key_digest(key_of_request(csr))
    return Founding(authority, digest(root), key, signatures.take(order), rotation.bundle(authority))


def decide(snapshot: Snapshot, _now_ms: int) -> Decision:
    """What a leader does of its own accord: end a change of the root. A core like the others."""
    try:
        return Decision(tuple((Writer.ORCHESTRATOR, change) for change in finish_change(snapshot)))
    except CaError:  # a damaged record changes nothing
        return Decision()


def _listen(address: str) -> socket.socket:
    host, _, port = address.rpartition(":")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host.strip("[]"), int(port)), family=family, backlog=BACKLOG)
    except OSError as error:
        raise ListenError(f"cannot listen on {address} for nodes that join: {error.strerror}") from error
