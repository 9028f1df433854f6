"""The one door to system calls that the standard library lacks: batches of datagrams, namespaces, a parent's death.

`Batch` receives up to BATCH datagrams with one system call and answers them with another, in place: an answer is
written over its question (its id stays where it is), so neither addresses nor lengths are copied about. Measured on
this machine, that and a dictionary look-up is a server at 6 µs for each query (design/dns.md).
"""

from __future__ import annotations

import ctypes
import errno
import os
import socket
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, TypeVar, cast

from dns.wire import UDP_MAX

# Datagrams of one system call. More brings nothing measurable, and makes others wait.
BATCH = 64
# Room for one datagram: answers go up to UDP_MAX; longer questions are cut, flagged by the kernel, and dropped.
SLOT = 1280
assert SLOT >= UDP_MAX

_NAME_LEN = 28  # struct sockaddr_in6, the larger one
_NAME_WORDS = _NAME_LEN // 4
_CLONE_NEWNET = 0x40000000
_PR_SET_PDEATHSIG, _PR_SET_NAME, _PR_SET_NO_NEW_PRIVS = 1, 15, 38
_WOULD_BLOCK = (errno.EAGAIN, errno.EWOULDBLOCK, errno.EINTR)
_IPV6_FREEBIND = 78
# A burst of this many bytes waits in the kernel while a plan is loaded; the kernel counts about 1 KiB for a query.
RECEIVE_BUFFER = 4 * 1024 * 1024
_BACKLOG = 256

_libc = ctypes.CDLL(None, use_errno=True)

T = TypeVar("T")


class Characters(Protocol):
    """An array of characters, as the type checker does not know it: a slice is `bytes`."""

    def __getitem__(self, where: slice, /) -> bytes: ...


class _Iovec(ctypes.Structure):
    _fields_ = [("base", ctypes.c_void_p), ("len", ctypes.c_size_t)]


class _Msghdr(ctypes.Structure):
    _fields_ = [
        ("name", ctypes.c_void_p),
        ("namelen", ctypes.c_uint32),
        ("iov", ctypes.POINTER(_Iovec)),
        ("iovlen", ctypes.c_size_t),
        ("control", ctypes.c_void_p),
        ("controllen", ctypes.c_size_t),
        ("flags", ctypes.c_int),
    ]


class _Mmsghdr(ctypes.Structure):
    _fields_ = [("hdr", _Msghdr), ("len", ctypes.c_uint)]


_HEADER_LEN = ctypes.sizeof(_Mmsghdr)
# Where a message's length is, counted in 32-bit words of the array of headers.
_WORDS = _HEADER_LEN // 4
_LEN_AT = _Mmsghdr.len.offset // 4


class Batch:
    """Buffers for one batch at a time, for sockets of one family: the kernel leaves its address length in them.

    Slot `i` is `buffer[i * SLOT:]`; the length of its answer is `sizes[2 * i + 1]`.
    """

    def __init__(self) -> None:
        self.buffer = bytearray(BATCH * SLOT)
        self.names = bytearray(BATCH * _NAME_LEN)
        self._iovecs = (_Iovec * BATCH)()
        self._headers = (_Mmsghdr * BATCH)()
        # Slicing an array of characters gives `bytes` at once; writing is done through the bytearray.
        characters = (ctypes.c_char * len(self.buffer)).from_buffer(self.buffer)
        self.questions = cast(Characters, characters)
        buffer_at = ctypes.addressof(characters)
        names_at = ctypes.addressof((ctypes.c_char * len(self.names)).from_buffer(self.names))
        for i in range(BATCH):
            self._iovecs[i].base, self._iovecs[i].len = buffer_at + i * SLOT, SLOT
            header = self._headers[i].hdr
            header.name, header.namelen = names_at + i * _NAME_LEN, _NAME_LEN
            header.iov, header.iovlen = ctypes.pointer(self._iovecs[i]), 1
        self._first = ctypes.addressof(self._headers)
        # Plain memory under these structures: setting an attribute of a ctypes object costs five times as much.
        self._words = memoryview(self._headers).cast("B").cast("I")
        self.sizes = memoryview(self._iovecs).cast("B").cast("L")
        self._full_sizes = memoryview((ctypes.c_size_t * BATCH)(*[SLOT] * BATCH)).cast("B").cast("L")
        self._addresses4 = memoryview(self.names).cast("I")[1::_NAME_WORDS]  # behind family and port
        self._used = 0
        self._recvmmsg, self._sendmmsg = _libc.recvmmsg, _libc.sendmmsg
        self._recvmmsg.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_uint, ctypes.c_int, ctypes.c_void_p]
        self._sendmmsg.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_uint, ctypes.c_int]

    def receive(self, fd: int) -> list[int]:
        """The lengths of what came, in the order of slots; SLOT for what did not fit. Empty: nothing more to read.

        Raises OSError when the socket is broken.
        """
        self.sizes[1 : 2 * self._used : 2] = self._full_sizes[: self._used]
        count = self._recvmmsg(fd, self._first, BATCH, socket.MSG_DONTWAIT, None)
        self._used = max(count, 0)
        if count < 0:
            code = ctypes.get_errno()
            if code in _WOULD_BLOCK:
                return []
            raise OSError(code, os.strerror(code))
        return self._words[_LEN_AT : _WORDS * count : _WORDS].tolist()

    def answer(self, slot: int, data: bytes) -> None:
        """Write what goes back to the sender of a slot, id included."""
        at = slot * SLOT
        self.buffer[at : at + len(data)] = data
        self.sizes[2 * slot + 1] = len(data)

    def send(self, fd: int, first: int, count: int) -> int:
        """Send the slots `first` to `first + count`; how many could not be sent (unreachable client, full buffer)."""
        lost, at = 0, first
        while at < first + count:
            sent = self._sendmmsg(fd, self._first + at * _HEADER_LEN, first + count - at, socket.MSG_DONTWAIT)
            if sent < 0:  # the first of them is at fault: an error of a later one ends the call early
                lost, sent = lost + 1, 1
            at += sent
        return lost

    def sender(self, slot: int) -> bytes:
        """The packed address of a slot's sender."""
        at = slot * _NAME_LEN
        if self.names[at : at + 2] == _AF_INET:
            return bytes(self.names[at + 4 : at + 8])
        return bytes(self.names[at + 8 : at + 24])

    def senders(self, count: int) -> list[int] | list[bytes]:
        """What tells the senders of the first `count` slots apart: made for all of them at once, and cheap for IPv4."""
        if self.names[:2] == _AF_INET:
            return self._addresses4[:count].tolist()
        return [self.sender(slot) for slot in range(count)]

    def sockaddr(self, slot: int) -> tuple[str, int]:
        """The sender of a slot, to answer later."""
        at = slot * _NAME_LEN
        (port,) = struct.unpack_from("!H", self.names, at + 2)
        packed = self.sender(slot)
        return socket.inet_ntop(socket.AF_INET if len(packed) == 4 else socket.AF_INET6, packed), port


_AF_INET = struct.pack("=H", socket.AF_INET)


# --- sockets in namespaces ----------------------------------------------------------------------------------------


def namespace_id(path: str | None) -> tuple[int, int] | None:
    """What tells a namespace from one made anew under the same path; None: it is not there."""
    try:
        found = os.stat("/proc/self/ns/net" if path is None else path)
    except OSError:
        return None
    return found.st_dev, found.st_ino


def inside(path: str | None, act: Callable[[], T]) -> T:
    """Do something with the calling *thread* in a network namespace. Raises OSError."""
    if path is None:
        return act()
    own = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        target = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            _setns(target)
        finally:
            os.close(target)
        try:
            return act()
        finally:
            _setns(own)
    finally:
        os.close(own)


def _setns(fd: int) -> None:
    if _libc.setns(fd, _CLONE_NEWNET) < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def sharing(address: str, port: int, pairs: int) -> list[tuple[socket.socket, socket.socket]]:
    """Pairs as of `listening`, that share the port between processes, also with one of an earlier daemon's.

    Raises OSError.
    """
    made: list[tuple[socket.socket, socket.socket]] = []
    try:
        while len(made) < pairs:
            made.append(listening(address, port, shared=True))
    except OSError:
        for pair in made:
            for sock in pair:
                sock.close()
        raise
    return made


def listening(address: str, port: int, *, shared: bool = False) -> tuple[socket.socket, socket.socket]:
    """A UDP and a TCP socket on an address that need not be there yet. Raises OSError."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    udp = socket.socket(family, socket.SOCK_DGRAM)
    tcp = socket.socket(family, socket.SOCK_STREAM)
    try:
        for made in (udp, tcp):
            made.setblocking(False)
            if shared:
                made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            if made is tcp:
                made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                made.setsockopt(socket.IPPROTO_IPV6, _IPV6_FREEBIND, 1)
            else:
                made.setsockopt(socket.IPPROTO_IP, _IP_FREEBIND, 1)
        _grow(udp)
        udp.bind((address, port))
        tcp.bind((address, udp.getsockname()[1]))
        tcp.listen(_BACKLOG)
    except OSError:
        udp.close()
        tcp.close()
        raise
    return udp, tcp


_IP_FREEBIND = 15


def _grow(udp: socket.socket) -> None:
    """A receive buffer larger than the system's limit, where we may."""
    try:
        udp.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, RECEIVE_BUFFER)
    except PermissionError:
        udp.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER)


_SO_RCVBUFFORCE = 33


@dataclass(frozen=True, slots=True)
class Buffered:
    """A socket's receive buffer."""

    part: float  # of it that is in use
    lost: int  # datagrams, since the socket was made, for which there was no room


def buffered(sock: socket.socket) -> Buffered:
    """How full a socket's receive buffer is. All zero on a kernel that does not tell (before 4.12)."""
    try:
        told = sock.getsockopt(socket.SOL_SOCKET, _SO_MEMINFO, _MEMINFO.size)
    except OSError:
        return Buffered(0.0, 0)
    used, limit, *_, lost = _MEMINFO.unpack(told)
    return Buffered(used / limit if limit else 0.0, lost)


_SO_MEMINFO = 55
_MEMINFO = struct.Struct("=9I")  # include/uapi/linux/sock_diag.h: used and limit first, drops last


# --- processes ----------------------------------------------------------------------------------------------------


def die_with_parent(signal_number: int) -> None:
    """Ask for a signal when the thread that started this process ends. To be asked after giving up privileges."""
    _libc.prctl(_PR_SET_PDEATHSIG, signal_number, 0, 0, 0)


def name_process(name: str) -> None:
    """What `ps -o comm` and `top` show; at most 15 bytes."""
    _libc.prctl(_PR_SET_NAME, name.encode(), 0, 0, 0)


def no_new_privileges() -> None:
    """No program started from here can gain privileges any more."""
    _libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
