"""The thread that does the journal's jobs."""

import asyncio
import gc
import threading
import time

import pytest

from control.store.worker import Outcome, ThreadWorker, done


def threads() -> int:
    return sum(thread.name == "test worker" for thread in threading.enumerate())


async def gone() -> None:
    async with asyncio.timeout(5):
        while threads():
            await asyncio.sleep(0.01)


async def test_jobs_are_done_in_order_in_a_thread_and_told_on_the_loop():
    worker, told = ThreadWorker("test worker"), []
    here = threading.get_ident()

    def then(outcome: Outcome[tuple[int, int]]) -> None:
        assert threading.get_ident() == here
        told.append(outcome.result())

    for number in range(100):
        worker.do(lambda number=number: (number, threading.get_ident()), then)
    assert not told
    await done(worker, lambda: None)
    assert [number for number, _ in told] == list(range(100))
    assert {thread for _, thread in told} != {here}
    worker.stop()
    await gone()


async def test_what_a_job_raises_is_for_who_gave_it_and_the_next_one_is_done():
    worker = ThreadWorker("test worker")
    with pytest.raises(ZeroDivisionError):
        await done(worker, lambda: 1 / 0)
    assert await done(worker, lambda: 7) == 7
    worker.stop()
    await gone()


async def test_the_job_of_a_cancelled_caller_is_done_and_so_are_those_before_the_end():
    worker, did = ThreadWorker("test worker"), []
    async with asyncio.TaskGroup() as group:
        waiting = group.create_task(done(worker, lambda: (time.sleep(0.05), did.append("first"))))
        await asyncio.sleep(0.01)
        waiting.cancel()
    worker.do(lambda: did.append("last"), lambda _: None)
    worker.stop()
    await gone()
    assert did == ["first", "last"]
    assert waiting.cancelled()


async def test_without_a_job_there_is_no_thread_and_a_worker_that_nobody_has_any_more_ends():
    worker = ThreadWorker("test worker")
    assert threads() == 0
    assert await done(worker, threads) == 1
    del worker
    gc.collect()
    await gone()


def test_a_loop_that_was_closed_hears_nothing():
    worker, began, go_on = ThreadWorker("test worker"), threading.Event(), threading.Event()

    def job() -> None:
        began.set()
        go_on.wait(5)

    async def give() -> None:
        worker.do(job, lambda _: pytest.fail("told"))
        await asyncio.to_thread(began.wait, 5)

    asyncio.run(give())
    go_on.set()
    deadline = time.monotonic() + 5
    while threads() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threads() == 0
