"""One stream on a socket, by callbacks of the loop and without a task: connect, send, receive one message, close."""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import Callable

from gossip.packet import Envelope
from gossip.stream import Reader, StreamMessage
from gossip.swim_ports import StreamFailure
from gossip.wire import WireError

# Bytes of all messages that are being read, of all streams together.
BUFFERED_MAX = 16 << 20
READ_SIZE = 64 << 10
# Messages from this size on are decrypted and decoded in a thread: compressed ones stand for twenty times as much, and
# 32 KiB (a cluster of 2,400) take 30 ms of a loop that must answer pings.
THREAD_FROM = 32 << 10
# Errors that say something about this machine, and nothing about the other one.
_LOCAL = frozenset(
    (
        errno.ENETUNREACH,
        errno.ENETDOWN,
        errno.EADDRNOTAVAIL,
        errno.EAFNOSUPPORT,
        errno.EINVAL,
        errno.EACCES,
        errno.EPERM,
        errno.EMFILE,
        errno.ENFILE,
        errno.ENOBUFS,
        errno.ENOMEM,
    )
)


def failure_of(error: OSError) -> StreamFailure:
    return StreamFailure.LOCAL if error.errno in _LOCAL else StreamFailure.REMOTE


class Budget:
    """What may be buffered together."""

    __slots__ = ("used",)

    def __init__(self) -> None:
        self.used = 0


class Connection:
    """`failed` is called at most once, when the stream is closed for any reason but `close`."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        sock: socket.socket,
        timeout_s: float,
        budget: Budget,
        failed: Callable[[StreamFailure], None],
    ) -> None:
        """Takes over a socket that does not block. All together may take `timeout_s`."""
        self._loop, self._sock, self._budget, self._failed = loop, sock, budget, failed
        self._timer = loop.call_later(timeout_s, self._fail, StreamFailure.REMOTE)
        self._held = 0
        self.closed = False

    def close(self) -> None:
        if self.closed:
            return
        self.closed = True
        self._timer.cancel()
        self._loop.remove_reader(self._sock)
        self._loop.remove_writer(self._sock)
        self._hold(0)
        self._sock.close()

    def _fail(self, failure: StreamFailure) -> None:
        if not self.closed:
            self.close()
            self._failed(failure)

    def _hold(self, size: int) -> None:
        self._budget.used += size - self._held
        self._held = size

    def connect(self, sockaddr: tuple[str, int], then: Callable[[], None]) -> None:
        try:
            self._sock.connect(sockaddr)
        except BlockingIOError:
            pass
        except OSError as error:
            self._fail(failure_of(error))
            return
        self._loop.add_writer(self._sock, self._connected, then)

    def _connected(self, then: Callable[[], None]) -> None:
        self._loop.remove_writer(self._sock)
        code = self._sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if code:
            self._fail(failure_of(OSError(code, "")))
        else:
            then()

    def send(self, data: bytes, then: Callable[[], None]) -> None:
        """Call `then` when the system has taken all of it."""
        self._send(memoryview(data), then)

    def _send(self, data: memoryview, then: Callable[[], None]) -> None:
        self._loop.remove_writer(self._sock)
        try:
            sent = self._sock.send(data)
        except BlockingIOError:
            sent = 0
        except OSError:
            self._fail(StreamFailure.REMOTE)
            return
        if sent == len(data):
            then()
        else:
            self._loop.add_writer(self._sock, self._send, data[sent:], then)

    def receive(self, envelope: Envelope, then: Callable[[StreamMessage], None]) -> None:
        """Read one message."""
        self._loop.add_reader(self._sock, self._readable, Reader(envelope), then)

    def _readable(self, reader: Reader, then: Callable[[StreamMessage], None]) -> None:
        try:
            data = self._sock.recv(READ_SIZE)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        try:
            complete = bool(data) and reader.feed(data)
        except WireError:
            data = b""
        if not data:
            self._fail(StreamFailure.REMOTE)
            return
        self._hold(reader.size)
        if complete:
            self._loop.remove_reader(self._sock)
            self._decode(reader, then)
        elif self._budget.used > BUFFERED_MAX:
            self._fail(StreamFailure.REMOTE)

    def _decode(self, reader: Reader, then: Callable[[StreamMessage], None]) -> None:
        if reader.size >= THREAD_FROM:
            future = self._loop.run_in_executor(None, _message, reader)
            future.add_done_callback(lambda done: self._decoded(None if done.cancelled() else done.result(), then))
        else:
            self._decoded(_message(reader), then)

    def _decoded(self, message: StreamMessage | None, then: Callable[[StreamMessage], None]) -> None:
        self._hold(0)
        if self.closed:
            return
        if message is None:
            self._fail(StreamFailure.REMOTE)
        else:
            then(message)


def _message(reader: Reader) -> StreamMessage | None:
    """None: it is none."""
    try:
        return reader.message()
    except WireError:
        return None
