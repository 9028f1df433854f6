"""A bounded pool of threads that a process does not wait for when it ends.

The standard library's pool joins its threads at exit; a pull that hangs would keep the daemon from ending for minutes.
"""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")


class Pool:
    """`threads` threads at most, begun when they are first needed. Calls wait in line: a task has one at a time."""

    def __init__(self, threads: int, name: str) -> None:
        self._threads, self._name, self._begun = threads, name, 0
        self._line: queue.SimpleQueue[tuple[Callable[[], Any], asyncio.AbstractEventLoop, asyncio.Future[Any]]]
        self._line = queue.SimpleQueue()

    async def run(self, call: Callable[[], T]) -> T:
        """What the call returns or raises. When this is cancelled, a call that has begun goes on unheard."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()
        self._line.put((call, loop, future))
        if self._begun < self._threads:
            self._begun += 1
            threading.Thread(target=self._work, name=f"{self._name}-{self._begun}", daemon=True).start()
        return await future

    def _work(self) -> None:
        while True:
            call, loop, future = self._line.get()
            if future.cancelled():
                continue
            try:
                result, error = call(), None
            except Exception as failure:  # noqa: BLE001 - it is the caller's, who gets it
                result, error = None, failure
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody hears it any more
                loop.call_soon_threadsafe(_tell, future, result, error)


def _tell(future: asyncio.Future[Any], result: object, error: Exception | None) -> None:
    if future.cancelled():
        return
    if error is not None:
        future.set_exception(error)
    else:
        future.set_result(result)
