"""The serving process's event loop: epoll and a list of handlers, no more. A shell.

Not asyncio: its datagram protocol alone costs five times what a whole answer does (design/dns.md).
"""

from __future__ import annotations

import select
from collections.abc import Callable
from typing import Final

READ: Final = select.EPOLLIN
WRITE: Final = select.EPOLLOUT
# File descriptors handled in one turn; the rest are next, before any of these again.
_EVENTS_MAX = 256


class Loop:
    """Calls handlers with the events of their descriptors."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._handlers: dict[int, Callable[[int], None]] = {}

    def watch(self, fd: int, events: int, handler: Callable[[int], None]) -> None:
        """Call `handler` with the events (EPOLLIN, EPOLLOUT, EPOLLERR, EPOLLHUP) of a descriptor."""
        self._epoll.register(fd, events)
        self._handlers[fd] = handler

    def change(self, fd: int, events: int) -> None:
        """Watch a descriptor for other events."""
        self._epoll.modify(fd, events)

    def forget(self, fd: int) -> None:
        """Stop watching. To be called before the descriptor is closed."""
        if self._handlers.pop(fd, None) is not None:
            self._epoll.unregister(fd)

    def turn(self, timeout_s: float) -> None:
        """Wait, and handle what came."""
        for fd, events in self._epoll.poll(timeout_s, _EVENTS_MAX):
            handler = self._handlers.get(fd)
            if handler is not None:  # None: an earlier handler of this turn has closed it
                handler(events)

    def close(self) -> None:
        """Let go of the epoll descriptor."""
        self._epoll.close()
