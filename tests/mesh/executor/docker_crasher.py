"""A daemon that runs one container to its end and is killed at one step: `docker_crasher.py DIRECTORY SOCKET STEP`.

A step is a request to the engine that changes something, or what makes a task prepared, started or removed, as
Python's audit events tell. It knocks at the gate of a container until that opens, as often as it takes: one step, so
that a number means the same step in each run. Prints the name of the last step, and "whole" when STEP is more than
there are.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path

from control.model import Mount
from mesh.executor import netns  # noqa: F401 - imported before steps are counted
from mesh.executor.docker.engine import Engine
from mesh.executor.docker.executor import DockerExecutor
from mesh.executor.protocol import Launch
from tests.mesh.executor.engines import container
from tests.mesh.executor.launches import has_run, until

_CHANGES = ("os.rename", "shutil.rmtree")


def task(directory: Path) -> Launch:
    """A task that writes down that it runs, each time it does; its image is asked for at a registry that is away."""
    out = Mount(kind="bind", source=str(directory), target="/out")
    return container("sh", "-c", "echo once >> /out/runs; exec sleep 1000", mounts=(out,), init=True, pull="always")


def kill_at(step: int) -> None:
    """Have this process killed just before its step number `step`."""
    seen, last = 0, ""

    def audit(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal seen, last
        flags = arguments[2] if event == "open" else 0
        knocks = isinstance(flags, int) and flags & os.O_WRONLY and flags & os.O_NONBLOCK
        mounts = event == "ctypes.dlsym" and arguments[1] in ("mount", "umount2")
        asks = event == "http.client.send" and isinstance(arguments[1], bytes) and not arguments[1].startswith(b"GET")
        if not (event in _CHANGES or asks or knocks or mounts):
            return
        name = "knock" if knocks else event
        if name == last == "knock":
            return
        if seen == step:
            print(name, flush=True)
            signal.raise_signal(signal.SIGKILL)
        seen, last = seen + 1, name

    sys.addaudithook(audit)


async def main() -> None:
    """Prepare, start, stop and remove."""
    directory = Path(sys.argv[1])
    what = task(directory)
    executor = DockerExecutor(directory, Engine(sys.argv[2]), netns_dir=str(directory / "netns"))
    kill_at(int(sys.argv[3]))
    await executor.prepare(what)
    await executor.start(what)
    until(lambda: has_run(directory / "runs"))
    await executor.stop(what.task_id, "SIGTERM", 5)
    await executor.wait(what.task_id)
    await executor.remove(what.task_id)
    print("whole")


if __name__ == "__main__":
    asyncio.run(main())
