"""A process executor in a directory of the test's own, which leaves nothing behind."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from mesh.executor.process import ProcessExecutor


@pytest.fixture
async def executor(tmp_path: Path) -> AsyncIterator[ProcessExecutor]:
    """Tasks with limits need ids of their own on the whole machine: their groups are named after them."""
    if os.geteuid() != 0:
        pytest.skip("needs root")
    made = ProcessExecutor(tmp_path, netns_dir=str(tmp_path / "netns"))
    yield made
    for task in await made.adopt():
        await made.remove(task.task_id)
