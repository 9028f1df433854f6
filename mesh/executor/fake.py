"""The in-memory twin of an executor, for tests and simulations: tasks that run until they are told otherwise.

It lives on when the daemon of a test is thrown away: give it to the next one, which adopts. What goes wrong is scripted
with `refuse`, `deaf` and `end`; what was asked is in `calls`.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Literal

from mesh.executor.protocol import LOST, NEVER, Adopted, ExecutorError, Exit, Launch, Sandbox

Call = Literal["adopt", "prepare", "start", "wait", "stop", "remove"]
CALLS_MAX = 100_000  # a test that asks more often has gone round in circles


@dataclass
class FakeTask:
    """One task. `pid` is None before it is started; `exit` is set when it has ended."""

    sandbox: Sandbox
    launch: Launch
    pid: int | None = None
    exit: Exit | None = None
    ended: asyncio.Event = field(default_factory=asyncio.Event)


class FakeExecutor:
    """See the module and `mesh.executor.protocol.Executor`."""

    def __init__(self, name: str = "process", netns_dir: str = "/run/netns") -> None:
        self.name = name
        self.tasks: dict[str, FakeTask] = {}
        self.calls: list[tuple[Call, str]] = []
        self.refuse: dict[tuple[Call, str], str] = {}  # (call, task id or host name) -> the sentence of its refusal
        self.deaf: set[str] = set()  # tasks that only SIGKILL ends
        self._netns_dir = netns_dir
        self._next_pid = 1000

    # --- script -----------------------------------------------------------------------------------------------------

    def end(self, task_id: str, code: int = 0, message: str = "") -> None:
        """The task ends by itself. One that has ended already stays as it is."""
        task = self.tasks[task_id]
        assert task.pid is not None, f"{task_id} was not started"
        if task.exit is None:
            task.exit = Exit(code, message)
            task.ended.set()

    def power_off(self) -> None:
        """The machine goes down: no task runs any more, and those that were only prepared have no namespace."""
        for task_id, task in list(self.tasks.items()):
            if task.pid is None:
                del self.tasks[task_id]
            else:
                self.end(task_id, LOST.code, LOST.message)

    def running(self) -> set[str]:
        """The tasks that run now."""
        return {task_id for task_id, task in self.tasks.items() if task.pid is not None and task.exit is None}

    # --- the protocol -----------------------------------------------------------------------------------------------

    async def adopt(self) -> list[Adopted]:
        """All tasks there are."""
        self._called("adopt", "")
        return [Adopted(task_id, t.sandbox, t.pid, t.exit) for task_id, t in sorted(self.tasks.items())]

    async def prepare(self, launch: Launch) -> Sandbox:
        """Remember the task."""
        self._called("prepare", launch.task_id, launch.hostname)
        sandbox = Sandbox(launch.task_id, f"{self._netns_dir}/mesh-t-{launch.task_id}")
        return self.tasks.setdefault(launch.task_id, FakeTask(sandbox, launch)).sandbox

    async def start(self, launch: Launch) -> int:
        """Give the task a pid, once and for all."""
        self._called("start", launch.task_id, launch.hostname)
        task = self.tasks[launch.task_id]
        if task.pid is None:
            task.pid = self._next_pid
            self._next_pid += 1
        return task.pid

    async def wait(self, task_id: str) -> Exit:
        """Wait for `end`, `stop` or `power_off`."""
        self._called("wait", task_id)
        task = self.tasks.get(task_id)
        if task is None or task.pid is None:
            return NEVER
        await task.ended.wait()
        assert task.exit is not None
        return task.exit

    async def stop(self, task_id: str, signal: str, grace_s: float) -> None:
        """End the task as the signal does: at once, or when it is deaf, after `grace_s`."""
        self._called("stop", task_id)
        if task_id not in self.running():
            return
        if signal not in ("KILL", "SIGKILL") and task_id not in self.deaf:
            self.end(task_id, 143)
            return
        await asyncio.sleep(grace_s if task_id in self.deaf else 0)
        self.end(task_id, 137)

    async def remove(self, task_id: str) -> None:
        """Forget the task; one that still runs is killed."""
        self._called("remove", task_id)
        if task_id in self.running():
            self.end(task_id, 137)
        self.tasks.pop(task_id, None)

    def _called(self, call: Call, task_id: str, hostname: str = "") -> None:
        assert len(self.calls) < CALLS_MAX, "the executor is asked in circles"
        self.calls.append((call, task_id))
        for name in (task_id, hostname):
            sentence = self.refuse.get((call, name))
            if sentence is not None:
                raise ExecutorError(sentence)
