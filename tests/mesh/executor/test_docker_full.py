"""A disk that is full when a container is made: the engine's, and the one with meshd's own files."""

from __future__ import annotations

import contextlib
import errno
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from control.model import Mount
from mesh.executor.docker.engine import Engine
from mesh.executor.docker.executor import DockerExecutor
from mesh.executor.protocol import ExecutorError, Exit
from tests.mesh.executor.engines import RealEngine, container, real_engine

pytestmark = [pytest.mark.root, pytest.mark.timeout(120)]
NO_SPACE = os.strerror(errno.ENOSPC).lower()


@contextlib.contextmanager
def small_disk(place: Path, size: str) -> Iterator[Path]:
    """A file system of its own at `place`."""
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size},mode=755", "none", str(place)], check=True)
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


def fill(place: Path) -> Path:
    """A file that takes what is left."""
    ballast = place / "ballast"
    with ballast.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))
    return ballast


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    if os.geteuid() != 0:
        pytest.skip("needs root")
    with small_disk(tmp_path / "disk", "64m") as place:
        yield place


@pytest.fixture
def engine(disk: Path) -> Iterator[RealEngine]:
    with real_engine(disk / "engine") as made:
        yield made


async def serve_once(executor: DockerExecutor) -> None:
    what = container("true")
    await executor.prepare(what)
    await executor.start(what)
    assert await executor.wait("t1") == Exit(0)
    await executor.remove("t1")


async def test_a_full_disk_of_the_engine_is_said_and_nothing_is_left(
    disk: Path, engine: RealEngine, tmp_path: Path
) -> None:
    executor = DockerExecutor(tmp_path / "state", Engine(engine.socket), netns_dir=str(tmp_path / "netns"))
    await serve_once(executor)
    ballast = fill(disk)
    with pytest.raises(ExecutorError) as refused:
        await executor.prepare(container("true"))
    assert str(refused.value).startswith("task api.1: the Docker Engine cannot ")
    assert NO_SPACE in str(refused.value).lower()
    ballast.unlink()
    await executor.remove("t1")
    assert await executor.engine.owned(str(tmp_path / "state")) == []
    await serve_once(executor)


async def test_a_full_disk_of_ours_is_said_and_nothing_is_left(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root")
    with small_disk(tmp_path / "state", "256k") as state, real_engine(tmp_path / "engine") as engine:
        executor = DockerExecutor(state, Engine(engine.socket), netns_dir=str(tmp_path / "netns"))
        ballast = fill(state)
        with pytest.raises(ExecutorError, match=rf"^task api\.1: cannot be prepared: .*{os.strerror(errno.ENOSPC)}"):
            await executor.prepare(container("true"))
        await executor.remove("t1")
        ballast.unlink()
        await serve_once(executor)


async def test_a_container_that_fills_its_own_disk_ends_with_its_own_error(engine: RealEngine, tmp_path: Path) -> None:
    executor = DockerExecutor(tmp_path / "state", Engine(engine.socket), netns_dir=str(tmp_path / "netns"))
    small = Mount(kind="tmpfs", target="/data", size_bytes=1 << 20)
    what = container("sh", "-c", "cat /dev/zero > /data/x", mounts=(small,))
    await executor.prepare(what)
    await executor.start(what)
    assert await executor.wait("t1") == Exit(1)
    await executor.remove("t1")
