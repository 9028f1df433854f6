"""A daemon that runs one task from beginning to end, and is killed at one step of it: `crasher.py DIRECTORY STEP TASK`.

A step is anything that changes the machine, as Python's audit events tell. Prints the name of the last step, and
"whole" when STEP is more than there are.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path

from control.model import Resources
from mesh.executor import cgroup, netns, process, records  # noqa: F401 - imported before steps are counted
from mesh.executor.protocol import Launch
from tests.mesh.executor.launches import has_run, launch, until


def task(directory: Path, name: str) -> Launch:
    """A task that writes down that it runs, each time it does."""
    script = f"echo once >> {directory}/runs; exec sleep 1000"
    return launch("sh", "-c", script, name=name, limits=Resources(pids=50))


_CHANGES = ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "subprocess.Popen", "shutil.rmtree")


def kill_at(step: int) -> None:
    """Have this process killed just before its step number `step`."""
    seen = 0

    def audit(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal seen
        writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        mounts = event == "ctypes.dlsym" and arguments[1] in ("mount", "umount2", "unshare")
        if event in _CHANGES or writes or mounts:
            if seen == step:
                print(event, flush=True)
                signal.raise_signal(signal.SIGKILL)
            seen += 1

    sys.addaudithook(audit)


async def main() -> None:
    """Prepare, start, stop and remove."""
    directory = Path(sys.argv[1])
    what = task(directory, sys.argv[3])
    executor = process.ProcessExecutor(directory, netns_dir=str(directory / "netns"))
    kill_at(int(sys.argv[2]))
    await executor.prepare(what)
    await executor.start(what)
    until(lambda: has_run(directory / "runs"))
    await executor.stop(what.task_id, "SIGTERM", 5)
    await executor.wait(what.task_id)
    await executor.remove(what.task_id)
    print("whole")


if __name__ == "__main__":
    asyncio.run(main())
