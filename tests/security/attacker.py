"""Tries everything that somebody on the network could try at the ports of a node, and says what came of it.

`tests.security.attempts` is the program, which runs inside a host of a lab: a plan (`Plan`) on standard input, a list
of [port, attempt, outcome] on standard output. An outcome is a constant, so that a table can be made of it: it says
what the attacker got.
"""

from __future__ import annotations

import random
import socket
import ssl
import struct
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress

import grpc
import msgspec

from control.ca.greeting import ALPN
from control.ca.requests import make_request
from control.ca.root import load_key, new_key
from control.model import NodeDescription
from control.rpc import control_pb2 as pb
from control.transport.wire import PREAMBLE_BYTES, Answer, Hello, Preamble, Welcome, decode, encode, preamble
from tests.security import h2

# A server that ends a connection does so within its own limits, 10 s; a machine with much else to do takes longer.
WAIT_S = 60.0
READ_MAX = 1 << 20
MUTANTS = 60
HALF_OPEN = 1000
GIB = 1 << 30

CLOSED = "connection closed"
NO_TLS = "refused in the TLS handshake"


class Paper(msgspec.Struct, frozen=True):
    """A certificate with its key, PEM."""

    key: str
    chain: str
    node_id: str = ""
    secret: str = ""


class Plan(msgspec.Struct, frozen=True):
    """Whom to attack, and with what. `papers` by the attempt that they are for."""

    host: str
    cluster_id: str
    manager_id: str
    ports: list[str]
    papers: dict[str, Paper]
    tokens: dict[str, str]
    seed: int = 1


Found = list[tuple[str, str, str]]
Attempt = Callable[["Target"], str]


class Target:
    """One port of a plan."""

    def __init__(self, plan: Plan, port: int) -> None:
        self.plan, self.port = plan, port
        self.random = random.Random(plan.seed)

    def connect(self) -> socket.socket:
        sock = socket.create_connection((self.plan.host, self.port), WAIT_S)
        sock.settimeout(WAIT_S)
        return sock

    def say(self, data: bytes, *, end: bool = False) -> bytes:
        """What is answered until the connection ends. Raises TimeoutError if it never does."""
        with self.connect() as sock:
            with suppress(OSError):
                sock.sendall(data)
                if end:
                    sock.shutdown(socket.SHUT_WR)
            return until_closed(sock)

    @contextmanager
    def tls(self, paper: Paper | None, alpn: str = "h2", **options: object) -> Iterator[ssl.SSLSocket]:
        """A finished handshake, as far as the client sees it. Raises OSError."""
        with self.connect() as sock, context(paper, alpn, **options).wrap_socket(sock) as wrapped:
            yield wrapped


def context(paper: Paper | None, alpn: str, version: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3) -> ssl.SSLContext:
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    made.check_hostname, made.verify_mode = False, ssl.CERT_NONE
    made.minimum_version = made.maximum_version = version
    made.set_alpn_protocols([alpn])
    if paper is not None:
        with tempfile.NamedTemporaryFile() as file:
            file.write(paper.key.encode() + paper.chain.encode())
            file.flush()
            made.load_cert_chain(file.name)
    return made


def until_closed(sock: socket.socket) -> bytes:
    """All that comes. A reset is an end like another."""
    said = b""
    with suppress(ConnectionError, ssl.SSLError):
        while len(said) < READ_MAX and (data := sock.recv(65536)):
            said += data
    return said


# --- what every port gets ---------------------------------------------------------------------------------------------


def junk(target: Target) -> str:
    """Bytes that are nobody's protocol."""
    for data in (
        b"GET / HTTP/1.1\r\n\r\n",
        b"\x16\x03\x01\xff\xff" + bytes(99),
        target.random.randbytes(512),
        bytes(64),
    ):
        target.say(data, end=True)
    return CLOSED


def half_open(target: Target) -> str:
    """Many connections that say nothing. While they are there, others must be served: the caller looks."""
    with ExitStack() as stack:
        opened = []
        for _ in range(HALF_OPEN):
            with suppress(OSError):
                opened.append(stack.enter_context(target.connect()))
        print("half open", flush=True, file=sys.stderr)
        sys.stdin.readline()  # the caller has looked
        deadline, left = time.monotonic() + WAIT_S, opened
        for sock in opened:
            sock.setblocking(False)
        while left and time.monotonic() < deadline:
            left = [sock for sock in left if not ended(sock)]
            time.sleep(0.2)
    return "all ended by the node" if not left else f"some stay for more than {WAIT_S:g} s"


def ended(sock: socket.socket) -> bool:
    try:
        while sock.recv(4096):
            pass
    except BlockingIOError:
        return False
    except OSError:
        pass
    return True


# --- TLS --------------------------------------------------------------------------------------------------------------


def shown(paper: str | None, alpn: str = "h2") -> Attempt:
    """A handshake with a certificate, or without any: refused, or what is said next."""

    def attempt(target: Target) -> str:
        try:
            with target.tls(target.plan.papers[paper] if paper else None, alpn) as wrapped:
                # In TLS 1.3 the client is done before the server has looked: what it says next is what counts.
                wrapped.sendall(h2.PREFACE if alpn == "h2" else b"")
                return "let in" if until_said(wrapped) else NO_TLS
        except OSError:
            return NO_TLS

    return attempt


def until_said(wrapped: ssl.SSLSocket) -> bytes:
    try:
        return wrapped.recv(1)
    except (ConnectionError, ssl.SSLError):
        return b""


def old_tls(target: Target) -> str:
    """TLS 1.2, with a good certificate."""
    try:
        with target.tls(target.plan.papers["worker"], version=ssl.TLSVersion.TLSv1_2):
            return "let in"
    except OSError:
        return NO_TLS


def torn_tls(target: Target) -> str:
    """Every beginning of a client's first record, and some with a bit turned."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = context(None, "h2").wrap_bio(incoming, outgoing)
    with suppress(ssl.SSLWantReadError):
        client.do_handshake()
    hello = outgoing.read()
    for number in range(MUTANTS):
        data = bytearray(hello)
        if number % 2:
            data[target.random.randrange(5, len(data))] ^= 1 << target.random.randrange(8)
        else:
            del data[target.random.randrange(len(data)) :]
        said = target.say(bytes(data), end=True)
        assert b"mesh.control" not in said
    return CLOSED


# --- the managers' API ------------------------------------------------------------------------------------------------


def called(paper: str, method: str) -> Attempt:
    """A call with a certificate that TLS believes: the status."""

    def attempt(target: Target) -> str:
        mine = target.plan.papers[paper]
        options = (("grpc.ssl_target_name_override", "manager.mesh"), ("grpc.enable_http_proxy", 0))
        credentials = grpc.ssl_channel_credentials(
            target.plan.papers["roots"].chain.encode(), mine.key.encode(), mine.chain.encode()
        )
        with grpc.secure_channel(f"{target.plan.host}:{target.port}", credentials, options) as channel:
            try:
                channel.unary_unary(f"/mesh.control.v1.{method}")(b"", timeout=WAIT_S)
            except grpc.RpcError as error:
                return str(error.code().name)  # type: ignore[attr-defined]
            return "OK"

    return attempt


def announced(target: Target) -> str:
    """A gRPC message of 1 GiB, by a member."""
    with target.tls(target.plan.papers["worker"]) as wrapped:
        wrapped.sendall(h2.PREFACE + h2.settings() + h2.call("/mesh.control.v1.Quorum/Look", "manager.mesh"))
        wrapped.sendall(h2.data(struct.pack(">BI", 0, GIB) + bytes(1000)))
        return "call ended" if h2.until_call_ended(wrapped) else "nothing"


def large_frame(target: Target) -> str:
    """An HTTP/2 frame of 16 MiB, the largest there is, by a member."""
    with target.tls(target.plan.papers["worker"]) as wrapped:
        wrapped.sendall(h2.PREFACE + h2.settings() + struct.pack(">I", (1 << 24) - 1)[1:] + bytes(6) + bytes(1000))
        until_closed(wrapped)
    return CLOSED


def mutated_h2(target: Target) -> str:
    """A call with bits turned or cut short, by a member: the connection or the call ends."""
    plain = h2.PREFACE + h2.settings() + h2.call("/mesh.control.v1.Quorum/Look", "manager.mesh") + h2.data(bytes(5))
    for number in range(MUTANTS):
        data = bytearray(plain)
        for _ in range(1 + number % 3):
            data[target.random.randrange(len(h2.PREFACE), len(data))] ^= 1 << target.random.randrange(8)
        del data[target.random.randrange(len(data)) if number % 4 == 0 else len(data) :]
        with target.tls(target.plan.papers["worker"]) as wrapped, suppress(OSError):
            wrapped.sendall(bytes(data))
            wrapped.settimeout(0.05)
            until_closed(wrapped)
    return "call or connection ended"


# --- the door ---------------------------------------------------------------------------------------------------------


def asked(request: Callable[[Target], bytes]) -> Attempt:
    """A request at the door: the verdict, or that there was none."""

    def attempt(target: Target) -> str:
        try:
            with target.tls(None, ALPN) as wrapped:
                greeting = read_frame(wrapped)
                assert greeting, "it says what it believes before anything else"
                wrapped.sendall(request(target))
                verdict = read_frame(wrapped)
        except OSError:
            return CLOSED
        if not verdict:
            return CLOSED
        code, sentence, answer = (verdict.get(key) for key in ("code", "sentence", "answer"))
        if code:
            return f"{code}: {sentence}"
        return "let in as " + role_of(answer)

    return attempt


def role_of(answer: object) -> str:
    assert isinstance(answer, bytes)
    return pb.JoinReply.FromString(answer).role


def read_frame(sock: socket.socket) -> dict[str, object]:
    head = read_exactly(sock, 4)
    return msgspec.msgpack.decode(read_exactly(sock, struct.unpack(">I", head)[0])) if len(head) == 4 else {}


def read_exactly(sock: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count and (more := sock.recv(count - len(data))):
        data += more
    return data


def greeted(target: Target) -> str:
    """With another protocol than the one for newcomers (ALPN)."""
    with target.tls(None, "h2") as wrapped:
        said = read_frame(wrapped)
    assert b"PRIVATE" not in repr(said).encode()
    return "told the roots, as everybody is"


def joins(token: str) -> Callable[[Target], bytes]:
    def request(target: Target) -> bytes:
        data = pb.JoinRequest(
            token=target.plan.tokens[token],
            description=msgspec.msgpack.encode(NodeDescription(hostname="thief")),
            data_address="192.0.2.66",
            csr=make_request(new_key()),
        ).SerializeToString()
        return struct.pack(">I", len(data)) + data

    return request


def returns(paper: str) -> Callable[[Target], bytes]:
    """As a member that has lost its certificate: by key and secret, from its disk."""

    def request(target: Target) -> bytes:
        mine = target.plan.papers[paper]
        data = pb.JoinRequest(
            description=msgspec.msgpack.encode(NodeDescription(hostname="thief")),
            data_address="192.0.2.66",
            node_id=mine.node_id,
            secret=mine.secret,
            csr=make_request(load_key(mine.key.encode())),
        ).SerializeToString()
        return struct.pack(">I", len(data)) + data

    return request


def mutated_join(target: Target) -> str:
    """Requests with bits turned or cut short. All is closed or refused; none is let in."""
    plain, outcomes = joins("old worker")(target), set()
    for number in range(12):  # one address may ask twenty times at once
        data = bytearray(plain)
        if number % 2:
            data[target.random.randrange(4, len(data))] ^= 1 << target.random.randrange(8)
        else:
            del data[target.random.randrange(4, len(data)) :]
        with target.tls(None, ALPN) as wrapped, suppress(OSError):
            read_frame(wrapped)
            wrapped.sendall(bytes(data))
            if not number % 2:
                continue  # and the connection is closed: nothing is owed for half a request
            verdict = read_frame(wrapped)
            outcomes.add("let in" if verdict and not verdict["code"] else "refused")
    return "let in" if "let in" in outcomes else "refused, or connection closed"


# --- raft -------------------------------------------------------------------------------------------------------------


def greets(paper: str, **fields: object) -> Attempt:
    """A manager's first word, by somebody who is none."""

    def attempt(target: Target) -> str:
        plan = target.plan
        sender = plan.papers[paper].node_id
        hello = Hello(plan.cluster_id, 0, str(fields.get("sender", sender)) or plan.manager_id, plan.manager_id, 0)
        try:
            with target.tls(plan.papers[paper], "mesh") as wrapped:
                wrapped.sendall(preamble(encode(hello)))
                head = read_exactly(wrapped, PREAMBLE_BYTES)
                if not head:
                    return CLOSED
                answer = decode(Welcome, read_exactly(wrapped, Preamble.parse(head).length))
                return "told: " + Answer(answer.answer).name.lower().replace("_", " ")
        except OSError:
            return CLOSED

    return attempt
