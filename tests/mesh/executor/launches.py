"""Tasks to launch, and a way to wait for what they do, for the tests of executors."""

from __future__ import annotations

import time
from collections.abc import Callable
from ipaddress import IPv4Address
from pathlib import Path

from control.model import ProcessSpec, ResourceRequirements, Resources, TaskSpec
from mesh.executor.protocol import Launch


def launch(*command: str, name: str = "t1", limits: Resources | None = None, **fields: object) -> Launch:
    """A task of the service "api"; `fields` are those of a ProcessSpec."""
    spec = TaskSpec(
        process=ProcessSpec(command=command, **fields),  # type: ignore[arg-type]
        resources=ResourceRequirements(limits=limits or Resources()),
    )
    return Launch(name, "api", 1, "api.1", spec, (IPv4Address("10.1.0.1"),), ("web.mesh",))


def until(condition: Callable[[], object], timeout_s: float = 10.0) -> None:
    """Return when the condition holds. Blocks: what it waits for is done by other processes."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it does not come"
        time.sleep(0.01)


def has_run(runs: Path) -> bool:
    """Whether a task has written its line: the shell makes the file a moment earlier."""
    return runs.exists() and runs.read_text().endswith("\n")
