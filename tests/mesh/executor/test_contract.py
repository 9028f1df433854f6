"""What holds for every executor: the one that runs processes, and its in-memory twin."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from mesh.executor.fake import FakeExecutor
from mesh.executor.process import ProcessExecutor
from mesh.executor.protocol import NEVER, Executor, ExecutorError, Exit
from tests.mesh.executor.launches import launch

TASK = launch("sleep", "1000")


@pytest.fixture(params=["fake", pytest.param("process", marks=pytest.mark.root)])
async def either(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Executor]:
    if request.param == "fake":
        yield FakeExecutor()
        return
    if os.geteuid() != 0:
        pytest.skip("needs root")
    made = ProcessExecutor(tmp_path, netns_dir=str(tmp_path / "netns"))
    yield made
    for task in await made.adopt():
        await made.remove(task.task_id)


async def test_each_call_may_be_repeated(either: Executor) -> None:
    assert await either.prepare(TASK) == await either.prepare(TASK)
    pid = await either.start(TASK)
    assert await either.start(TASK) == pid
    assert (await either.prepare(TASK)).netns.endswith("mesh-t-t1")
    for _ in range(2):
        await either.stop("t1", "SIGTERM", 5)
        assert await either.wait("t1") == Exit(143)
    assert await either.start(TASK) == pid  # it has been started; it does not run again
    assert await either.wait("t1") == Exit(143)
    for _ in range(2):
        await either.remove("t1")
    assert await either.adopt() == []


async def test_adopt_tells_prepared_running_and_ended_apart(either: Executor) -> None:
    for name in ("t1", "t2", "t3"):
        await either.prepare(launch("sleep", "1000", name=name))
    pid = await either.start(launch("sleep", "1000", name="t2"))
    await either.start(launch("sleep", "1000", name="t3"))
    await either.stop("t3", "SIGKILL", 0)
    first, second, third = await either.adopt()
    assert (first.task_id, first.pid, first.exit) == ("t1", None, None)
    assert (second.task_id, second.pid, second.exit) == ("t2", pid, None)
    assert (third.task_id, third.exit) == ("t3", Exit(137))
    assert second.sandbox == await either.prepare(launch("sleep", "1000", name="t2"))


async def test_many_may_wait(either: Executor) -> None:
    await either.prepare(TASK)
    await either.start(TASK)
    async with asyncio.TaskGroup() as group:
        waiting = [group.create_task(either.wait("t1")) for _ in range(3)]
        await asyncio.sleep(0)
        await either.stop("t1", "TERM", 5)
    assert {task.result() for task in waiting} == {Exit(143)}


async def test_what_was_never_started_has_ended(either: Executor) -> None:
    await either.stop("t1", "SIGTERM", 5)
    assert await either.wait("t1") == NEVER
    await either.prepare(TASK)
    await either.stop("t1", "SIGTERM", 5)
    assert await either.wait("t1") == NEVER
    await either.remove("t1")


async def test_removing_a_running_task_kills_it(either: Executor) -> None:
    await either.prepare(TASK)
    pid = await either.start(TASK)
    await either.remove("t1")
    assert await either.adopt() == []
    if isinstance(either, ProcessExecutor):
        assert not Path(f"/proc/{pid}").exists()


# --- the script of the twin -----------------------------------------------------------------------------------------


async def test_the_twin_refuses_as_it_is_told() -> None:
    fake = FakeExecutor()
    fake.refuse = {("prepare", "api.1"): "no", ("start", "t2"): "never"}
    with pytest.raises(ExecutorError, match="no"):
        await fake.prepare(TASK)
    fake.refuse.pop(("prepare", "api.1"))
    await fake.prepare(launch("sleep", name="t2"))
    with pytest.raises(ExecutorError, match="never"):
        await fake.start(launch("sleep", name="t2"))
    assert fake.calls == [("prepare", "t1"), ("prepare", "t2"), ("start", "t2")]


async def test_the_twin_ends_tasks_as_it_is_told() -> None:
    fake = FakeExecutor()
    for name in ("t1", "t2", "t3"):
        await fake.prepare(launch("sleep", name=name))
    for name in ("t1", "t2"):
        await fake.start(launch("sleep", name=name))
    fake.end("t1", 3, "why")
    assert await fake.wait("t1") == Exit(3, "why")
    fake.deaf.add("t2")
    await fake.stop("t2", "SIGTERM", 0)
    assert await fake.wait("t2") == Exit(137)
    assert fake.running() == set()


async def test_the_twin_loses_all_that_runs_when_the_power_goes() -> None:
    fake = FakeExecutor()
    await fake.prepare(TASK)
    await fake.start(TASK)
    await fake.prepare(launch("sleep", name="t2"))
    fake.power_off()
    assert [(t.task_id, t.exit is not None) for t in await fake.adopt()] == [("t1", True)]
