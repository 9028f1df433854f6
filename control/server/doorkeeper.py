"""Ends connections to the managers' API on which nothing is ever called: the oldest ones, when there are many.

gRPC for Python gives a handshake ten seconds and sets no limit to how many there are. So the connections of this
process to the API's port are counted from outside of it: one on which a call was let through is proved, the others may
be UNPROVED_MAX, and new ones win. An honest caller proves itself within milliseconds. One task, `run`, which looks in
a thread and only when the number of descriptors says that there could be too many.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from urllib.parse import unquote

log = logging.getLogger(__name__)

# Agents that come to a new leader all at once: a handshake takes a core 2 ms, so a second holds 500 of them.
UNPROVED_MAX = 512
LOOK_S = 1.0
# Also when nothing has grown: connections that ended and others that came meanwhile look like none.
LOOK_ANYWAY_S = 30.0
# An entry is an address; what is open no more is forgotten at each look, which this many bring about.
PROVED_MAX = 16384
_FDS = "/proc/self/fd"


class Doorkeeper:
    """See the module. For connections to one port of this process."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._proved: set[str] = set()
        self._unproved: dict[str, None] = {}  # as of the last look, the oldest first
        self._descriptors = 0  # as of the last look, or fewer since
        self.ended = 0

    def proved(self, peer: str) -> None:
        """A call came over this connection, and was let through. `peer` is as gRPC has it."""
        self._proved.add(_address(peer))

    async def run(self) -> None:
        """Until cancelled."""
        loop = asyncio.get_running_loop()
        looked_s = loop.time()
        while True:
            await asyncio.sleep(LOOK_S)
            now = len(os.listdir(_FDS))
            self._descriptors = min(self._descriptors, now)
            could_be = len(self._unproved) + now - self._descriptors
            late = loop.time() - looked_s > LOOK_ANYWAY_S and now > UNPROVED_MAX
            if could_be <= UNPROVED_MAX and not late and len(self._proved) <= PROVED_MAX:
                continue
            looked_s = loop.time()
            if ended := await asyncio.to_thread(self.look):
                log.warning("ended connections on which nothing was called", extra={"connections": ended})

    def look(self) -> int:
        """Count, and end what is too much; how many. Blocking: 10 µs a descriptor."""
        found = self._connections()
        self._proved &= found.keys()
        fresh = [peer for peer in found if peer not in self._proved and peer not in self._unproved]
        waiting = [peer for peer in self._unproved if peer in found and peer not in self._proved] + fresh
        many = max(0, len(waiting) - UNPROVED_MAX)
        ended = sum(_end(found[peer], peer) for peer in waiting[:many])
        self._unproved = dict.fromkeys(waiting[many:])
        self._descriptors = len(os.listdir(_FDS))
        self.ended += ended
        return ended

    def _connections(self) -> dict[str, int]:
        """Descriptors of connections to the port, by who is at the other end."""
        found = {}
        for name in sorted(map(int, os.listdir(_FDS))):
            peer = self._peer(name)
            if peer:
                found[peer] = name
        return found

    def _peer(self, descriptor: int) -> str:
        """Who is at the other end; "" for what is no connection to the port, or not any more."""
        try:
            with _ours(descriptor) as sock:
                if sock.family not in (socket.AF_INET, socket.AF_INET6) or sock.type != socket.SOCK_STREAM:
                    return ""
                return _joined(sock.getpeername()) if sock.getsockname()[1] == self._port else ""
        except OSError:
            return ""


def _ours(descriptor: int) -> socket.socket:
    """Another descriptor of the same socket, since gRPC may close its own meanwhile. Raises OSError."""
    copy = os.dup(descriptor)
    try:
        return socket.socket(fileno=copy)
    except OSError:  # it is something else
        os.close(copy)
        raise


def _end(descriptor: int, peer: str) -> bool:
    """End a connection, if the descriptor is still the same one's. gRPC closes it then."""
    try:
        with _ours(descriptor) as sock:
            if _joined(sock.getpeername()) != peer:
                return False
            sock.shutdown(socket.SHUT_RDWR)
            return True
    except OSError:
        return False


def _joined(address: tuple[str, int]) -> str:
    return f"{address[0].removeprefix('::ffff:')} {address[1]}"


def _address(peer: str) -> str:
    """As `_joined`, from gRPC's `ipv4:1.2.3.4:5` or `ipv6:%5B::1%5D:5`."""
    host, _, port = unquote(peer).partition(":")[2].rpartition(":")
    return f"{host.strip('[]').removeprefix('::ffff:')} {port}"
