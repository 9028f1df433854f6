"""A bounded pool of threads: what calls return and raise, how many run at once, and that none outlives the process."""

from __future__ import annotations

import asyncio
import gc
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from mesh.executor.docker.pool import Pool


async def test_results_and_errors_are_the_caller_s() -> None:
    pool = Pool(2, "test")
    assert await pool.run(lambda: 7) == 7
    with pytest.raises(ZeroDivisionError):
        await pool.run(lambda: 1 // 0)
    assert await pool.run(threading.current_thread) is not threading.current_thread()


async def test_no_more_run_at_once_than_there_are_threads() -> None:
    pool, free, running, most = Pool(2, "test"), threading.Event(), [0], [0]
    lock = threading.Lock()

    def call() -> None:
        with lock:
            running[0] += 1
            most[0] = max(most[0], running[0])
        free.wait(5)
        with lock:
            running[0] -= 1

    async with asyncio.TaskGroup() as group:
        for _ in range(6):
            group.create_task(pool.run(call))
        await asyncio.sleep(0.05)
        free.set()
    assert most == [2]


async def test_a_call_that_is_given_up_before_its_turn_is_not_made() -> None:
    pool, free, made = Pool(1, "test"), threading.Event(), []
    async with asyncio.TaskGroup() as group:
        group.create_task(pool.run(lambda: free.wait(5)))
        given_up = group.create_task(pool.run(lambda: made.append(1)))
        await asyncio.sleep(0)
        given_up.cancel()
        await asyncio.sleep(0)
        free.set()
    assert await pool.run(lambda: 1) == 1
    assert made == []


def test_a_call_that_hangs_does_not_keep_the_process_from_ending() -> None:
    script = """
import asyncio, time
from mesh.executor.docker.pool import Pool
async def main():
    try:
        async with asyncio.timeout(0.1):
            await Pool(1, "hangs").run(lambda: time.sleep(1000))
    except TimeoutError:
        print("given up")
asyncio.run(main())
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=20, check=True, cwd=Path.cwd()
    )
    assert done.stdout == "given up\n"


async def test_the_threads_end_when_nobody_has_the_pool() -> None:
    pool = Pool(2, "gone")
    threads = {await pool.run(threading.current_thread) for _ in range(4)}
    del pool
    gc.collect()
    for thread in threads:
        await asyncio.to_thread(thread.join, 60)
        assert not thread.is_alive()
