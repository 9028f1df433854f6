"""Many nodes in one process, as far as managers see them: sessions over mutual TLS, renewal of certificates.

Run inside a lab's client by `fleet`. Reads a plan (`Plan`) on standard input; prints what happens, one JSON a line:
{"at": seconds of the machine's monotonic clock, "connected": how many have a session, "renewed": certificates so far}.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import cast

import grpc
import msgspec
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from control.ca.contexts import Credentials
from control.ca.names import Holder, holder_in
from control.ca.requests import make_request
from control.ca.root import key_pem, load_certificates, new_key
from control.ca.verify import verify_manager
from control.model import NodeDescription
from control.rpc import control_pb2 as pb
from control.rpc.control_pb2_grpc import MembershipStub
from control.server.edge import Edge
from control.server.enrolment import Believe
from mesh.agent.connection import Connection
from mesh.agent.session import Session
from mesh.daemon.identity import Identity
from mesh.daemon.papers import Papers
from mesh.daemon.renewal import Renewal

REPORT_S = 0.1
JOINING = 16  # at a time: each is a commit


class Plan(msgspec.Struct, frozen=True):
    """How many nodes, where the managers are, and a manager's own papers (PEM): it hands the requests to join on."""

    count: int
    managers: tuple[str, ...]
    token: str
    key: str
    chain: str
    roots: str


class Held:
    """A node's papers in memory: what `mesh.daemon.papers` keeps on disk."""

    expired = False

    def __init__(self, key: ec.EllipticCurvePrivateKey) -> None:
        self._key, self.made, self.credentials = key, 0, Credentials(b"", b"", b"")

    @property
    def holder(self) -> Holder | None:
        return holder_in(self.credentials.certificate)

    def renew_in_s(self, fraction: float) -> float:
        return 86400.0

    async def request(self) -> bytes:
        return make_request(self._key)

    async def keep(self, chain: bytes, roots: bytes) -> None:
        self.credentials = Credentials(key_pem(self._key), chain, roots)
        self.made += 1

    def by_roots(self) -> Believe:
        roots = load_certificates(self.credentials.roots)

        def believe(leaf: x509.Certificate, chain: list[x509.Certificate], _: list[x509.Certificate]) -> Holder:
            return verify_manager(leaf, chain, roots, time.time_ns() / 1e9)

        return believe


class Agent:
    """One node."""

    def __init__(self, reply: pb.JoinReply, held: Held, address: str, described: NodeDescription) -> None:
        self.held, self.node_id, self._source = held, reply.node_id, random.Random(reply.node_id)
        self.session = Session(reply.node_id, reply.secret, address, described)
        edge, managers = Edge(lambda: held.credentials), tuple(reply.managers)
        self.connection = Connection(self.session, managers, self._applied, self._source, edge)
        self._identity = Identity(
            node_id=reply.node_id,
            node_number=reply.node_number,
            secret=reply.secret,
            cluster_id=reply.cluster_id,
            data_address=address,
            role="worker",
            managers=managers,
        )
        self._renewal = Renewal(
            cast(Papers, held),
            edge,
            lambda: self._identity,
            lambda: self.connection.managers,
            lambda: self.session.connected,
            self._source,
        )

    def _applied(self) -> None:
        self.session.applied(self.session.assignments.sequence)

    async def run(self) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(self.connection.run())
            group.create_task(self._renewal.run())
            group.create_task(self._follow())

    async def _follow(self) -> None:
        while True:
            await self.connection.told.wait()
            self.connection.told.clear()
            self._renewal.reconsider(asked=self.connection.renew)


async def join(plan: Plan, channel: grpc.aio.Channel, number: int) -> Agent:
    """As newcomers that a manager has heard at its door."""
    held, described = Held(new_key()), NodeDescription(hostname=f"n{number}")
    address = f"100.64.{number // 250}.{number % 250 + 1}"
    request = pb.JoinRequest(
        token=plan.token,
        description=msgspec.msgpack.encode(described),
        data_address=address,
        availability="drain",
        csr=await held.request(),
    )
    reply = await MembershipStub(channel).Join(request, timeout=60)
    await held.keep(reply.certificate, reply.roots)
    return Agent(reply, held, address, described)


async def main(tell: Callable[[str], object]) -> None:
    plan = msgspec.json.decode(sys.stdin.readline(), type=Plan)
    mine = Credentials(plan.key.encode(), plan.chain.encode(), plan.roots.encode())
    agents: list[Agent] = []
    places = asyncio.Semaphore(JOINING)
    async with Edge(lambda: mine).channel(plan.managers[0]) as channel:

        async def one(number: int) -> None:
            async with places:
                agents.append(await join(plan, channel, number))

        async with asyncio.TaskGroup() as group:
            for number in range(plan.count):
                group.create_task(one(number))
    async with asyncio.TaskGroup() as group:
        for agent in agents:
            group.create_task(agent.run())
        while True:
            tell(report(agents))
            await asyncio.sleep(REPORT_S)


def report(agents: list[Agent]) -> str:
    said = {
        "at": time.monotonic(),
        "connected": sum(agent.session.connected for agent in agents),
        "renewed": sum(agent.held.made - 1 for agent in agents),
    }
    return json.dumps(said)


if __name__ == "__main__":
    asyncio.run(main(partial(print, flush=True)))
