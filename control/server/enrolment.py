"""The door for machines without a certificate: TLS by hand, one question, one answer (control.ca.greeting).

A port of its own, because gRPC's server for Python either demands a certificate of every caller or looks at none
(docs/decisions/0022-ports-and-certificates.md). `EnrolmentServer.run` owns a listener and a task per connection, in one
TaskGroup; whoever has not been served yet gives way to newer ones when there are too many. `enrol` is the other side.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import ssl
from collections import Counter
from collections.abc import Awaitable, Callable
from functools import partial

from cryptography import x509

from control.ca.admission import Admission
from control.ca.contexts import Credentials, enrolment_client_context, enrolment_server_context
from control.ca.greeting import (
    ALPN,
    ANSWER_MAX_BYTES,
    LENGTH_BYTES,
    REQUEST_MAX_BYTES,
    BadFrame,
    Greeting,
    Verdict,
    decode,
    encode,
    framed,
    length_of,
)
from control.ca.names import Holder
from control.ca.root import CaError, load_certificates
from control.server.refusal import Refusal
from control.store.errors import StoreError

log = logging.getLogger(__name__)

HANDSHAKE_S = 5.0
# From the first packet to the answer; deciding takes a commit, or a call to the leader.
EXCHANGE_S = 30.0
# Each waits for its handshake or its answer. The oldest gives way: a flood costs an honest one another attempt.
CONNECTIONS_MAX = 128
BACKLOG = 128
# Out of descriptors: others may give some back.
ACCEPT_PAUSE_S = 0.2
# What a refused newcomer is told at once, without being asked what it wants.
_SLOWLY = Verdict("RESOURCE_EXHAUSTED", "too many machines ask to be let in, or this one asks too often: wait a minute")

Decide = Callable[[bytes, str], Awaitable[bytes]]  # request, address of who asks -> answer; raises Refusal
Believe = Callable[[x509.Certificate, list[x509.Certificate], list[x509.Certificate]], Holder]


class EnrolmentServer:
    """See the module. `credentials` are read for each connection; `decide` has its own word on each request."""

    def __init__(self, sock: socket.socket, credentials: Callable[[], Credentials], decide: Decide) -> None:
        self._socket, self._credentials, self._decide = sock, credentials, decide
        self._admission = Admission()
        self._made: tuple[Credentials, ssl.SSLContext] | None = None  # making one costs as much as ten handshakes
        self._open: dict[asyncio.Task[None], None] = {}  # in the order of arrival
        self.refused: Counter[str] = Counter()

    async def run(self) -> None:
        """Until cancelled."""
        loop = asyncio.get_running_loop()
        self._socket.setblocking(False)
        async with asyncio.TaskGroup() as group:
            while True:
                try:
                    sock, address = await loop.sock_accept(self._socket)
                except OSError as error:
                    self.refused[f"accept: {error.strerror}"] += 1
                    await asyncio.sleep(ACCEPT_PAUSE_S)
                    continue
                self._admit(group, sock, str(address[0]).removeprefix("::ffff:"))

    def _admit(self, group: asyncio.TaskGroup, sock: socket.socket, address: str) -> None:
        if len(self._open) >= CONNECTIONS_MAX:
            oldest = next(iter(self._open))
            del self._open[oldest]
            oldest.cancel()
            self.refused["full"] += 1
        task = group.create_task(self._connection(sock, address))
        self._open[task] = None
        task.add_done_callback(partial(self._ended, sock))

    def _ended(self, sock: socket.socket, task: asyncio.Task[None]) -> None:
        """Also of one that was cancelled before it began."""
        self._open.pop(task, None)
        sock.close()

    async def _connection(self, sock: socket.socket, address: str) -> None:
        try:
            async with asyncio.timeout(EXCHANGE_S):
                await self._serve(sock, address)
        except (ssl.SSLError, BadFrame, EOFError) as error:
            self._refuse(address, f"bad bytes: {_words(error)}")
        except TimeoutError:
            self._refuse(address, "too slow")
        except OSError as error:
            self._refuse(address, error.strerror or "connection lost")

    async def _serve(self, sock: socket.socket, address: str) -> None:
        credentials = self._credentials()
        loop = asyncio.get_running_loop()
        reader = asyncio.StreamReader(limit=REQUEST_MAX_BYTES)
        protocol = asyncio.StreamReaderProtocol(reader)
        if self._made is None or self._made[0] is not credentials:
            self._made = credentials, enrolment_server_context(credentials)
        transport, _ = await loop.connect_accepted_socket(
            lambda: protocol, sock, ssl=self._made[1], ssl_handshake_timeout=HANDSHAKE_S
        )
        writer = asyncio.StreamWriter(transport, protocol, reader, loop)
        try:
            writer.write(encode(Greeting(credentials.roots, credentials.chain)))
            if self._admission.admit(address, loop.time()):
                verdict = await self._judge(await _read(reader, REQUEST_MAX_BYTES), address)
            else:
                verdict = _SLOWLY
                self._refuse(address, "too often")
            writer.write(encode(verdict))
            await writer.drain()
            writer.close()
            with contextlib.suppress(OSError, EOFError):
                await writer.wait_closed()
        finally:
            transport.abort()

    async def _judge(self, request: bytes, address: str) -> Verdict:
        try:
            return Verdict(answer=await self._decide(request, address))
        except Refusal as refusal:
            self._refuse(address, f"{refusal.code}: {refusal}")
            return Verdict(refusal.code, str(refusal))
        except StoreError as error:
            return Verdict("UNAVAILABLE", str(error))

    def _refuse(self, address: str, reason: str) -> None:
        self.refused[reason.partition(":")[0]] += 1
        log.warning("did not let a machine in", extra={"peer": address, "reason": reason})


async def enrol(address: str, believe: Believe, request: bytes) -> tuple[Holder, bytes]:
    """Ask at host:port to be let in; which manager answered, and what. `believe` is called before anything is said: it
    gets the manager's certificate, what links it, and the roots it names, and raises CaError.

    Raises CaError, Refusal, BadFrame, EOFError, OSError, TimeoutError.
    """
    host, _, port = address.rpartition(":")
    async with asyncio.timeout(EXCHANGE_S):
        reader, writer = await asyncio.open_connection(
            host.strip("[]"), int(port), ssl=enrolment_client_context(), limit=ANSWER_MAX_BYTES
        )
        try:
            found = writer.get_extra_info("ssl_object")
            if not isinstance(found, ssl.SSLObject) or found.selected_alpn_protocol() != ALPN:
                raise BadFrame(f"there is no manager that lets nodes in at {address}")
            leaf = x509.load_der_x509_certificate(found.getpeercert(binary_form=True) or b"")
            greeting = decode(await _read(reader, ANSWER_MAX_BYTES), Greeting)
            manager = believe(leaf, load_certificates(greeting.chain), load_certificates(greeting.roots))
            writer.write(framed(request))
            await writer.drain()
            verdict = decode(await _read(reader, ANSWER_MAX_BYTES), Verdict)
        except ValueError as error:
            raise CaError(f"the certificate of {address} cannot be read") from error
        finally:
            writer.transport.abort()
    if verdict.code:
        raise Refusal.of_wire(verdict.code, verdict.sentence)
    return manager, verdict.answer


async def _read(reader: asyncio.StreamReader, most: int) -> bytes:
    """One message. Raises BadFrame, EOFError, OSError."""
    return await reader.readexactly(length_of(await reader.readexactly(LENGTH_BYTES), most))


def _words(error: Exception) -> str:
    return getattr(error, "reason", None) or str(error) or type(error).__name__
