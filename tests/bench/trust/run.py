"""What trust costs: handshakes with the managers' API and at the door, certificates, and the guard of a call.

    nice -n 10 taskset -c 1 .venv/bin/python -m tests.bench.trust.run

Both sides of each handshake run in this process: a manager alone has about twice as many. Figures are per second of
processor time (all threads), the middle of ROUNDS; calls without TLS are measured in the same run, beside them.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import statistics
import time
from collections.abc import Awaitable, Callable

import grpc

from control.ca.contexts import Credentials
from control.ca.names import CertificateRole, Holder
from control.ca.requests import key_of_request, make_request
from control.ca.root import Root, issue, key_pem, make_root, new_key, pem
from control.ca.verify import root_of_digest, verify_manager
from control.rpc import control_pb2 as pb
from control.rpc.control_pb2_grpc import QuorumServicer, QuorumStub, add_QuorumServicer_to_server
from control.server.edge import Edge
from control.server.enrolment import EnrolmentServer, enrol
from control.server.guard import Guard

ROUNDS = 5
HANDSHAKES, CALLS, CERTIFICATES = 60, 600, 300
NOW = time.time_ns() / 1e9
ROOT = make_root("c" * 25, new_key(), NOW, os.urandom(16))


def credentials(role: CertificateRole, root: Root = ROOT) -> Credentials:
    key = new_key()
    leaf = issue(root, Holder("c" * 25, role, "n1"), key.public_key(), NOW, os.urandom(16))
    return Credentials(key_pem(key), pem(leaf), pem(root.certificate))


class _Quorum(QuorumServicer):
    async def Look(self, request: pb.LookRequest, context: object) -> pb.LookReply:
        return pb.LookReply()


async def rate(count: int, once: Callable[[], Awaitable[object]]) -> float:
    """Per second of processor time, the middle of some rounds: the machine may have other work."""
    rounds = []
    for _ in range(ROUNDS):
        began = time.process_time()
        for _ in range(count):
            await once()
        rounds.append(count / (time.process_time() - began))
    return statistics.median(rounds)


async def api(*, secure: bool) -> tuple[float, float]:
    """Connections with one call each, and calls on one connection."""
    mine, theirs = credentials("manager"), credentials("worker")
    guard = Guard(lambda who, _: who, lambda *_: None, secure=True)
    server = (Edge(lambda: mine) if secure else Edge()).server([guard] if secure else [])
    add_QuorumServicer_to_server(_Quorum(), server)
    edge = Edge(lambda: theirs) if secure else Edge()
    port = (Edge(lambda: mine) if secure else Edge()).listen(server, "127.0.0.1:0")
    await server.start()

    async def connect() -> None:
        async with edge.channel(f"127.0.0.1:{port}") as channel:
            await QuorumStub(channel).Look(pb.LookRequest(), timeout=10)

    connections = await rate(HANDSHAKES, connect)
    async with edge.channel(f"127.0.0.1:{port}") as channel:
        stub = QuorumStub(channel)
        calls = await rate(CALLS, lambda: stub.Look(pb.LookRequest(), timeout=10))
    await server.stop(0)
    return connections, calls


async def door() -> float:
    """Newcomers, without the commit that lets them in. The limit per address is not what is measured."""
    mine = credentials("manager")

    async def decide(request: bytes, address: str) -> bytes:
        leaf = issue(ROOT, Holder("c" * 25, "worker", "n2"), key_of_request(request), NOW, os.urandom(16))
        return pem(leaf)

    with socket.create_server(("127.0.0.1", 0)) as sock:
        server = EnrolmentServer(sock, lambda: mine, decide)
        server._admission.admit = lambda address, now_s: True  # type: ignore[method-assign]
        request = make_request(new_key())
        address = f"127.0.0.1:{sock.getsockname()[1]}"
        async with asyncio.TaskGroup() as group:
            task = group.create_task(server.run())
            found = await rate(
                HANDSHAKES,
                lambda: enrol(
                    address,
                    lambda leaf, chain, roots: verify_manager(leaf, chain, [root_of_digest(roots, ROOT.digest)], NOW),
                    request,
                ),
            )
            task.cancel()
    return found


async def certificates() -> float:
    request = make_request(new_key())

    async def one() -> None:
        pem(issue(ROOT, Holder("c" * 25, "worker", "n2"), key_of_request(request), NOW, os.urandom(16)))

    return await rate(CERTIFICATES, one)


async def main() -> None:
    logging.disable()
    plain, tls = await api(secure=False), await api(secure=True)
    print(f"load {os.getloadavg()[0]:.1f}, gRPC {grpc.__version__}")
    print(f"{'':34}{'clear':>10}{'TLS, guard':>12}{'ratio':>8}")
    for what, a, b in (("connections with a call, per s", plain[0], tls[0]), ("calls, per s", plain[1], tls[1])):
        print(f"{what:34}{a:10.0f}{b:12.0f}{b / a:8.2f}")
    print(f"{'newcomers at the door, per s':34}{'':10}{await door():12.0f}")
    print(f"{'requests read and certificates, /s':34}{'':10}{await certificates():12.0f}")


if __name__ == "__main__":
    asyncio.run(main())
