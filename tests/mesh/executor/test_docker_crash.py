"""The daemon is killed at each step of a container's life; the next one brings the task to its end all the same."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from mesh.executor.docker.engine import Engine
from mesh.executor.docker.executor import DockerExecutor
from tests.mesh.executor.docker_crasher import task
from tests.mesh.executor.engines import RealEngine, real_engine
from tests.mesh.executor.launches import has_run, until

pytestmark = [pytest.mark.root, pytest.mark.timeout(180)]
STEPS_MAX = 60  # more would mean that the crasher does not count as it should


async def bring_to_its_end(directory: Path, engine: RealEngine) -> None:
    """What an agent does when it is started anew."""
    executor = DockerExecutor(directory, Engine(engine.socket), netns_dir=str(directory / "netns"))
    found = {t.task_id: t for t in await executor.adopt()}.get("t1")
    began = (directory / "runs").exists()
    if (found is None and not began) or (found is not None and found.exit is None):
        await executor.prepare(task(directory))
        await executor.start(task(directory))
        until(lambda: has_run(directory / "runs"))
    await executor.stop("t1", "SIGTERM", 5)
    if found is not None or not began:
        assert (await executor.wait("t1")).code == 143
    await executor.remove("t1")


def left_over(directory: Path, engine: RealEngine) -> list[str]:
    """What of a task is still on the machine."""
    files = [str(path) for path in (*directory.glob("containers/*"), *directory.glob("netns/*"))]
    mounts = [line for line in Path("/proc/self/mounts").read_text().splitlines() if str(directory) in line]
    with engine.client() as client:
        return files + mounts + [str(c["Names"]) for c in client.containers(all=True)]


async def test_a_container_runs_once_and_leaves_nothing_wherever_the_daemon_is_killed(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root")
    with real_engine(tmp_path / "engine") as engine:
        steps: list[str] = []
        while steps[-1:] != ["whole"]:
            assert len(steps) < STEPS_MAX
            directory = tmp_path / str(len(steps))
            directory.mkdir()
            done = subprocess.run(
                [sys.executable, "-m", "tests.mesh.executor.docker_crasher", str(directory), engine.socket,
                 str(len(steps))],
                capture_output=True, text=True, check=False, timeout=60, cwd=Path(__file__).parents[3],
            )  # fmt: skip
            assert done.returncode == (0 if done.stdout == "whole\n" else -9), done.stderr
            steps.append(done.stdout.strip())
            await bring_to_its_end(directory, engine)
            assert (directory / "runs").read_text() == "once\n", steps
            assert left_over(directory, engine) == [], steps
        assert {"http.client.send", "knock", "ctypes.dlsym", "os.rename", "shutil.rmtree"} <= set(steps)
