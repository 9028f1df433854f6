"""Two executors as one: a task is a container or a process, as its spec says; what exists is asked of who has it."""

from __future__ import annotations

from control.model import TaskSpec
from mesh.executor.docker.executor import DockerExecutor
from mesh.executor.process import ProcessExecutor
from mesh.executor.protocol import Adopted, Executor, Exit, Launch, Sandbox


class BothExecutors:
    """See the module and `mesh.executor.protocol.Executor`."""

    name = "docker, process"

    def __init__(self, containers: DockerExecutor, processes: ProcessExecutor) -> None:
        self.containers, self.processes = containers, processes

    async def adopt(self) -> list[Adopted]:
        """The tasks of both."""
        return [*await self.processes.adopt(), *await self.containers.adopt()]

    async def prepare(self, launch: Launch) -> Sandbox:
        """By the executor for this kind of task."""
        return await self._for(launch.spec).prepare(launch)

    async def start(self, launch: Launch) -> int:
        """By the executor for this kind of task."""
        return await self._for(launch.spec).start(launch)

    async def wait(self, task_id: str) -> Exit:
        """By the executor that has it."""
        return await self._of(task_id).wait(task_id)

    async def stop(self, task_id: str, signal: str, grace_s: float) -> None:
        """By the executor that has it."""
        await self._of(task_id).stop(task_id, signal, grace_s)

    async def remove(self, task_id: str) -> None:
        """By the executor that has it."""
        await self._of(task_id).remove(task_id)

    def _for(self, spec: TaskSpec) -> Executor:
        return self.containers if spec.container is not None else self.processes

    def _of(self, task_id: str) -> Executor:
        return self.containers if self.containers.has(task_id) else self.processes
