"""A thread that does jobs, one after the other, and tells the event loop of each.

An executor of the library would do: but what it makes for each job (two futures, a condition, two turns of the loop)
costs 60 µs of processor time beside a sync of the log, which every commit waits for.
"""

from __future__ import annotations

import asyncio
import threading
import weakref
from collections.abc import Callable
from functools import partial
from queue import SimpleQueue
from typing import Any, Generic, Protocol, TypeVar

T = TypeVar("T")


class Outcome(Generic[T]):
    """What became of a job, as a future says it."""

    __slots__ = ("_error", "_value")

    def __init__(self, job: Callable[[], T]) -> None:
        self._value: T
        self._error: BaseException | None = None
        try:
            self._value = job()
        except BaseException as error:  # noqa: BLE001 - whatever it was is for who gave the job
            self._error = error

    def exception(self) -> BaseException | None:
        """What the job raised."""
        return self._error

    def result(self) -> T:
        """What the job returned. Raises what it raised."""
        if self._error is not None:
            raise self._error
        return self._value


class Worker(Protocol):
    """Who does jobs."""

    def do(self, job: Callable[[], T], then: Callable[[Outcome[T]], None]) -> None:
        """Do it after those before it; `then` is called in a turn of the running loop of its own."""

    def stop(self) -> None:
        """Do what was given; nothing more is."""


_Jobs = SimpleQueue[tuple[Callable[[], Any], Callable[[Outcome[Any]], None], asyncio.AbstractEventLoop] | None]


class ThreadWorker:
    """Implements Worker. The thread begins with the first job, and does not keep the process from ending."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._jobs: _Jobs = SimpleQueue()
        self._running = False

    def do(self, job: Callable[[], T], then: Callable[[Outcome[T]], None]) -> None:
        """See Worker."""
        if not self._running:
            self._running = True
            threading.Thread(target=_work, args=(self._jobs,), name=self._name, daemon=True).start()
            weakref.finalize(self, self._jobs.put, None)
        self._jobs.put((job, then, asyncio.get_running_loop()))

    def stop(self) -> None:
        """See Worker."""
        self._jobs.put(None)


async def done(worker: Worker, job: Callable[[], T]) -> T:
    """What a job returns. Raises what it raises; if the caller is cancelled it is done nevertheless."""
    future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
    worker.do(job, partial(settle, future))
    return await future


def settle(future: asyncio.Future[T], outcome: Outcome[T]) -> None:
    """A future says the same as an outcome, unless somebody has cancelled it."""
    if outcome.exception() is not None:
        resolve(future, outcome.exception())
    elif not future.cancelled():
        future.set_result(outcome.result())


def resolve(future: asyncio.Future[Any], error: BaseException | None) -> None:
    """Of something that has no result. A future that somebody has cancelled stays so."""
    if future.cancelled():
        return
    if error is not None:
        future.set_exception(error)
    else:
        future.set_result(None)


def _work(jobs: _Jobs) -> None:
    while (given := jobs.get()) is not None:
        job, then, loop = given
        outcome = Outcome(job)
        try:
            loop.call_soon_threadsafe(then, outcome)
        except RuntimeError:  # the loop was closed meanwhile: nobody waits for it
            return
        del given, job, then, loop, outcome  # nothing is kept until the next one comes
