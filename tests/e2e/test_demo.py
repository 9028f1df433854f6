"""The demo is the main job: it shows what it should, and leaves the machine as it was, also when interrupted."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mesh.lab.lab import ROOT
from tests.alone import REPOSITORY, alone

pytestmark = [pytest.mark.root, pytest.mark.e2e, pytest.mark.timeout(240)]

MESH = str(Path(sys.executable).with_name("mesh"))


def test_the_demo_shows_the_main_job_and_leaves_nothing() -> None:
    name = f"demo{os.getpid()}"
    done = subprocess.run(
        alone(MESH, "lab", "--name", name, "demo"),
        capture_output=True, text=True, timeout=200, check=False, cwd=REPOSITORY,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr
    for step in ("lab", "cluster", "services", "inside", "outside", "no task here", "failure"):
        assert f"\n{step} " in done.stdout
    assert "the machine is as before" in done.stdout
    assert not (ROOT / name).exists()


@pytest.mark.parametrize("when", ["=== cluster", "=== inside", "=== failure"])
def test_an_interrupted_demo_leaves_nothing(when: str) -> None:
    name = f"demo{os.getpid()}"
    command = alone(sys.executable, "-m", "tests.e2e.interrupted", when, MESH, "lab", "--name", name, "demo")
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False, cwd=REPOSITORY)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {"exit": 130, "left": []}
    assert not (ROOT / name).exists()
