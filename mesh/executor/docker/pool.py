"""A bounded pool of threads that a process does not wait for when it ends.

The standard library's pool joins its threads at exit; a pull that hangs would keep the daemon from ending for minutes.
The threads end, and with them what is theirs, when nobody has the pool any more.
"""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
import weakref
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")
_Line = queue.SimpleQueue[tuple[Callable[[], Any], asyncio.AbstractEventLoop, asyncio.Future[Any]] | None]


class Pool:
    """`threads` threads at most, begun when they are first needed. Calls wait in line: a task has one at a time."""

    def __init__(self, threads: int, name: str) -> None:
        self._threads, self._name, self._begun = threads, name, 0
        self._line: _Line = queue.SimpleQueue()
        weakref.finalize(self, _end, self._line, threads).atexit = False

    async def run(self, call: Callable[[], T]) -> T:
        """What the call returns or raises. When this is cancelled, a call that has begun goes on unheard."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()
        self._line.put((call, loop, future))
        if self._begun < self._threads:
            self._begun += 1
            name = f"{self._name}-{self._begun}"
            threading.Thread(target=_work, args=(self._line,), name=name, daemon=True).start()
        return await future


def _end(line: _Line, threads: int) -> None:
    for _ in range(threads):
        line.put(None)


def _work(line: _Line) -> None:
    """A thread's life. It has nothing of the pool but the line, nor anything of a call that is over."""
    while (item := line.get()) is not None:
        call, loop, future = item
        if not future.cancelled():
            try:
                result, error = call(), None
            except Exception as failure:  # noqa: BLE001 - it is the caller's, who gets it
                result, error = None, failure
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody hears it any more
                loop.call_soon_threadsafe(_tell, future, result, error)
            del result, error
        del item, call, loop, future


def _tell(future: asyncio.Future[Any], result: object, error: Exception | None) -> None:
    if future.cancelled():
        return
    if error is not None:
        future.set_exception(error)
    else:
        future.set_result(result)
