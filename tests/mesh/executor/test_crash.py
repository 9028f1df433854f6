"""The daemon is killed at every single step of a task's life; the next one brings the task to its end all the same."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from mesh.executor.process import ProcessExecutor
from tests.mesh.executor.crasher import task
from tests.mesh.executor.launches import has_run, until

pytestmark = pytest.mark.root
STEPS_MAX = 60  # more would mean that the crasher does not count as it should


async def bring_to_its_end(directory: Path, name: str) -> None:
    """What an agent does when it is started anew."""
    executor = ProcessExecutor(directory, netns_dir=str(directory / "netns"))
    what = task(directory, name)
    found = {t.task_id: t for t in await executor.adopt()}.get(name)
    began = (directory / "runs").exists()
    if (found is None and not began) or (found is not None and found.exit is None):
        await executor.prepare(what)
        await executor.start(what)
        until(lambda: has_run(directory / "runs"))
    await executor.stop(name, "SIGTERM", 5)
    if found is not None or not began:
        assert (await executor.wait(name)).code == 143
    await executor.remove(name)


def left_over(directory: Path, name: str) -> list[str]:
    """What of a task is still on the machine."""
    files = [str(path) for path in directory.glob("tasks/*")] + [str(path) for path in directory.glob("netns/*")]
    groups = [str(path) for path in Path("/sys/fs/cgroup").glob(f"**/meshd/{name}")]
    mounts = [line for line in Path("/proc/self/mounts").read_text().splitlines() if str(directory) in line]
    processes = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                command = (entry / "cmdline").read_bytes().decode(errors="replace")
            except OSError:
                continue
            processes += [f"{entry.name} {command}"] if str(directory) in command else []
    return files + groups + mounts + processes


async def test_a_task_runs_once_and_leaves_nothing_wherever_the_daemon_is_killed(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root")
    name = f"crash-{os.getpid()}"
    steps: list[str] = []
    while steps[-1:] != ["whole"]:
        assert len(steps) < STEPS_MAX
        directory = tmp_path / str(len(steps))
        directory.mkdir()
        done = subprocess.run(
            [sys.executable, "-m", "tests.mesh.executor.crasher", str(directory), str(len(steps)), name],
            capture_output=True, text=True, check=False, timeout=30, cwd=Path(__file__).parents[3],
        )  # fmt: skip
        assert done.returncode == (0 if done.stdout == "whole\n" else -9), done.stderr
        steps.append(done.stdout.strip())
        await bring_to_its_end(directory, name)
        assert (directory / "runs").read_text() == "once\n", steps
        assert left_over(directory, name) == [], steps
    assert {"os.mkdir", "open", "ctypes.dlsym", "os.rename", "subprocess.Popen", "os.remove"} <= set(steps)
