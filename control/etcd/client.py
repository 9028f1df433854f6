"""The door to etcd: its gRPC API, one member at a time.

A call that fails for want of a member, of a quorum or of time raises Unavailable; the caller tells `turn_from` which
channel it used, and the next call goes to the next member. Which member serves does not matter for safety: reads that
must be linearizable are, and writes compare revisions.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import grpc

from control.etcd import etcd_pb2 as pb
from control.etcd.url import EtcdOptions, Tls
from control.etcd.wire import end_of

T = TypeVar("T")
Request = TypeVar("Request")
Response = TypeVar("Response")

# One call. A transaction takes milliseconds; a quorum that is gone, or a member that hangs, are tried elsewhere.
CALL_S, WRITE_S = 2.0, 5.0
# All members are tried at once, then they get some rest, up to 1.6 s; jittered, so that managers do not come together.
RETRY_MIN_S, RETRY_DOUBLINGS = 0.05, 5
# etcd answers nothing larger: watches are fragmented at 2 MiB, pages of rows and parts are 8 MiB at most.
_RECEIVE_MAX = 16 * 1024 * 1024
# etcd closes connections whose clients ask for signs of life more often than every 5 s.
_CHANNEL_OPTIONS = (
    ("grpc.max_receive_message_length", _RECEIVE_MAX),
    ("grpc.max_send_message_length", _RECEIVE_MAX),
    ("grpc.keepalive_time_ms", 6_000),
    ("grpc.keepalive_timeout_ms", 3_000),
    ("grpc.keepalive_permit_without_calls", 1),
    # A member that was away is tried again soon; nothing of a channel that was given up is kept.
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 500),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    ("grpc.enable_http_proxy", 0),
)
# A member that is cut off from the others ends streams instead of keeping them silent.
_REQUIRE_LEADER = (("hasleader", "true"),)


class EtcdError(Exception):
    """etcd did not do it. The text is etcd's own."""


class Unavailable(EtcdError):
    """No answer, or none now. Whether it was done is not known."""


class Refused(EtcdError):
    """Certainly not done: no space, too large, not allowed."""


class Compacted(EtcdError):
    """That revision is not kept any more."""


class LeaseGone(EtcdError):
    """The lease has run out or was revoked."""


def _translated(error: grpc.aio.AioRpcError) -> EtcdError:
    code, text = error.code(), error.details() or error.code().name
    match code:
        case grpc.StatusCode.OUT_OF_RANGE if "compacted" in text:
            return Compacted(text)
        case grpc.StatusCode.NOT_FOUND if "lease" in text:
            return LeaseGone(text)
        case grpc.StatusCode.RESOURCE_EXHAUSTED if "space exceeded" in text:
            return Refused("etcd has no space left (alarm NOSPACE): compact and defragment it, then disarm the alarm")
        case grpc.StatusCode.RESOURCE_EXHAUSTED if "larger than max" in text:
            return Refused(f"etcd refuses the commit: {text}")
        case grpc.StatusCode.INVALID_ARGUMENT if "too large" in text or "too many operations" in text:
            return Refused(f"etcd refuses the commit ({text}): raise its max-request-bytes or max-txn-ops")
        case grpc.StatusCode.PERMISSION_DENIED | grpc.StatusCode.UNAUTHENTICATED:
            return Refused(f"etcd does not let this manager in: {text}")
        case _:
            return Unavailable(text)


class Channel:
    """A connection to one member."""

    def __init__(self, endpoint: str, tls: Tls | None) -> None:
        self.endpoint = endpoint
        options = list(_CHANNEL_OPTIONS)
        if tls is None:
            self._channel = grpc.aio.insecure_channel(endpoint, options=options)
        else:
            self._channel = grpc.aio.secure_channel(endpoint, _credentials(tls), options=options)
        self.range = self._unary("KV/Range", pb.RangeRequest, pb.RangeResponse)
        self.txn = self._unary("KV/Txn", pb.TxnRequest, pb.TxnResponse)
        self.grant = self._unary("Lease/LeaseGrant", pb.LeaseGrantRequest, pb.LeaseGrantResponse)
        self.revoke = self._unary("Lease/LeaseRevoke", pb.LeaseRevokeRequest, pb.LeaseRevokeResponse)
        self.status = self._unary("Maintenance/Status", pb.StatusRequest, pb.StatusResponse)
        self.watch = self._stream("Watch/Watch", pb.WatchRequest, pb.WatchResponse)
        self.keep_alive = self._stream("Lease/LeaseKeepAlive", pb.LeaseKeepAliveRequest, pb.LeaseKeepAliveResponse)

    def _unary(self, method: str, request: type[Request], response: type[Response]) -> Any:
        return self._channel.unary_unary(f"/etcdserverpb.{method}", **_codec(request, response))

    def _stream(self, method: str, request: type[Request], response: type[Response]) -> Any:
        return self._channel.stream_stream(f"/etcdserverpb.{method}", **_codec(request, response))

    async def close(self) -> None:
        """End all calls."""
        await self._channel.close()


def _codec(request: Any, response: Any) -> dict[str, Callable[..., Any]]:
    return {"request_serializer": request.SerializeToString, "response_deserializer": response.FromString}


def _credentials(tls: Tls) -> grpc.ChannelCredentials:
    def read(path: str) -> bytes | None:
        if not path:
            return None
        try:
            return Path(path).read_bytes()
        except OSError as error:
            raise Unavailable(f"cannot read {path}: {error.strerror}") from error

    return grpc.ssl_channel_credentials(read(tls.ca), read(tls.key), read(tls.cert))


class Client:
    """Calls to whichever member is in use. All raise EtcdError."""

    def __init__(self, options: EtcdOptions, rng: random.Random) -> None:
        self._options, self._rng = options, rng
        self._at = 0
        self._channel: Channel | None = None
        self._failures = 0  # in a row
        self.message = ""  # what is wrong now

    @property
    def channel(self) -> Channel:
        """The member in use. Raises Unavailable if certificates cannot be read."""
        if self._channel is None:
            endpoints = self._options.endpoints
            self._channel = Channel(endpoints[self._at % len(endpoints)], self._options.tls)
        return self._channel

    async def turn_from(self, used: Channel | None) -> None:
        """This member did not serve: use the next one, unless somebody else has turned already."""
        if self._channel is used:
            self._at += 1
            self._channel = None
            if used is not None:
                await used.close()

    async def attempt(self, call: Callable[[], Awaitable[T]]) -> T:
        """Make a call. If no answer comes, the next one goes to another member, after a pause."""
        used = None
        try:
            used = self.channel
            result = await call()
        except Unavailable as error:
            self.message = f"etcd at {used.endpoint}: {error}" if used is not None else str(error)
            await self.turn_from(used)
            self._failures += 1
            rounds = min(self._failures // len(self._options.endpoints), RETRY_DOUBLINGS)
            await asyncio.sleep(RETRY_MIN_S * 2**rounds * self._rng.uniform(0.5, 1))
            raise
        self.answered()
        return result

    async def insisting(self, call: Callable[[], Awaitable[T]]) -> T:
        """Make a call until there is an answer. What was compacted meanwhile is asked for anew."""
        while True:
            try:
                return await self.attempt(call)
            except (Unavailable, Compacted):
                continue

    def answered(self) -> None:
        """The member in use is well."""
        self._failures = 0
        self.message = ""

    async def close(self) -> None:
        """End all calls."""
        channel, self._channel = self._channel, None
        if channel is not None:
            await channel.close()

    async def range(self, request: pb.RangeRequest, timeout_s: float) -> pb.RangeResponse:
        """Linearizable, unless it asks for an older revision."""
        response: pb.RangeResponse = await _call(self.channel.range, request, timeout_s)
        return response

    async def txn(self, request: pb.TxnRequest, timeout_s: float) -> pb.TxnResponse:
        """All or nothing."""
        response: pb.TxnResponse = await _call(self.channel.txn, request, timeout_s)
        return response

    async def grant(self, ttl_s: int, timeout_s: float) -> pb.LeaseGrantResponse:
        """A new lease."""
        response: pb.LeaseGrantResponse = await _call(self.channel.grant, pb.LeaseGrantRequest(TTL=ttl_s), timeout_s)
        return response

    async def revoke(self, lease: int, timeout_s: float) -> None:
        """End a lease, and remove its keys. One that has ended already is fine."""
        try:
            await _call(self.channel.revoke, pb.LeaseRevokeRequest(ID=lease), timeout_s)
        except LeaseGone:
            return

    async def keep_alive(self, lease: int, timeout_s: float) -> int:
        """Renew a lease once; its time to live in seconds. Raises LeaseGone."""
        with _translating():
            call = self.channel.keep_alive(timeout=timeout_s, metadata=_REQUIRE_LEADER)
            try:
                await call.write(pb.LeaseKeepAliveRequest(ID=lease))
                await call.done_writing()
                response = await call.read()
            finally:
                call.cancel()
        if response is grpc.aio.EOF:
            raise Unavailable("the member ended the call")
        if response.TTL <= 0:
            raise LeaseGone("the lease has run out")
        ttl: int = response.TTL
        return ttl

    async def size_bytes(self, timeout_s: float) -> int:
        """Of the member's database on disk."""
        response: pb.StatusResponse = await _call(self.channel.status, pb.StatusRequest(), timeout_s)
        return response.dbSize

    async def watch(self, prefix: bytes, start_revision: int) -> AsyncGenerator[pb.WatchResponse, None]:
        """Everything below `prefix` from a revision on, without end. Raises Compacted, Unavailable."""
        create = pb.WatchCreateRequest(
            key=prefix, range_end=end_of(prefix), start_revision=start_revision, fragment=True
        )
        with _translating():
            call = self.channel.watch(metadata=_REQUIRE_LEADER)
            try:
                await call.write(pb.WatchRequest(create_request=create))
                while (response := await call.read()) is not grpc.aio.EOF:
                    if response.compact_revision:
                        raise Compacted(f"revisions up to {response.compact_revision} are not kept")
                    if response.canceled:
                        raise Unavailable(response.cancel_reason or "the member ended the watch")
                    yield response
            finally:
                call.cancel()
        raise Unavailable("the member ended the watch")


async def _call(method: Any, request: Any, timeout_s: float) -> Any:
    with _translating():
        return await method(request, timeout=timeout_s)


@contextmanager
def _translating() -> Iterator[None]:
    """EtcdError instead of gRPC's."""
    try:
        yield
    except grpc.aio.AioRpcError as error:
        raise _translated(error) from error
    except (grpc.aio.UsageError, grpc.RpcError, asyncio.InvalidStateError) as error:
        raise Unavailable(f"the connection was closed: {error}") from error
    except asyncio.CancelledError:
        # gRPC says this, too, when another task has turned from the channel; that must not end the task.
        task = asyncio.current_task()
        if task is None or task.cancelling():
            raise
        raise Unavailable("the connection was given up") from None
