"""The one seam between the agent and whatever runs tasks.

Every call is idempotent: the agent repeats it after a crash of either side. Tasks outlive the daemon; `adopt` finds
them again. All errors that a user can do something about are `ExecutorError`, with one sentence.
"""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv4Address
from typing import Protocol

from control.model import HealthCheck, TaskSpec


class ExecutorError(Exception):
    """A task could not be prepared, started or stopped. The text is shown to the user as it is."""


@dataclass(frozen=True, slots=True)
class Launch:
    """What an executor needs to know of a task."""

    task_id: str
    service_name: str
    slot: int
    hostname: str
    spec: TaskSpec
    nameservers: tuple[IPv4Address, ...]  # the gateways of its networks, first network first
    search: tuple[str, ...]  # DNS search domains


@dataclass(frozen=True, slots=True)
class Sandbox:
    """Where a prepared task will run: a network namespace that exists, with nothing in it but `lo`."""

    task_id: str
    netns: str  # path
    health: HealthCheck | None = None  # of its image; counts unless its service has one


@dataclass(frozen=True, slots=True)
class Exit:
    """How a task ended. `code` is the exit code, or 128 + the signal that killed it, as shells have it."""

    code: int
    message: str = ""


LOST = Exit(137, "its shim vanished: the machine was restarted, or somebody killed it")
NEVER = Exit(137, "it was never started")


@dataclass(frozen=True, slots=True)
class Adopted:
    """A task that was there when the daemon started."""

    task_id: str
    sandbox: Sandbox
    pid: int | None  # None: prepared, not started
    exit: Exit | None  # set: it has ended meanwhile


class Executor(Protocol):
    """Runs tasks. `name` is what `--executor` takes."""

    name: str

    async def adopt(self) -> list[Adopted]:
        """All tasks of ours that exist, whatever their state."""

    async def prepare(self, launch: Launch) -> Sandbox:
        """Make the task's namespace and files. Raises ExecutorError (the task is then rejected)."""

    async def start(self, launch: Launch) -> int:
        """Start the prepared task and return its process id. Raises ExecutorError (the task has then failed)."""

    async def wait(self, task_id: str) -> Exit:
        """Return when the started task has ended."""

    async def stop(self, task_id: str, signal: str, grace_s: float) -> None:
        """Send `signal`, and SIGKILL after `grace_s`; returns when nothing of the task runs any more."""

    async def remove(self, task_id: str) -> None:
        """Remove all that is left of an ended task: files, namespace, cgroup."""
