"""The demo is the main job: it shows what it should, and leaves the machine as it was, also when interrupted."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from mesh.lab.lab import ROOT
from mesh.lab.machine import difference, snapshot

pytestmark = [pytest.mark.root, pytest.mark.e2e, pytest.mark.timeout(240)]

MESH = str(Path(sys.executable).with_name("mesh"))


def test_the_demo_shows_the_main_job_and_leaves_nothing() -> None:
    name = f"demo{os.getpid()}"
    done = subprocess.run(
        [MESH, "lab", "--name", name, "demo"], capture_output=True, text=True, timeout=200, check=False
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr
    for step in ("lab", "cluster", "services", "inside", "outside", "no task here", "failure"):
        assert f"\n{step} " in done.stdout
    assert "the machine is as before" in done.stdout
    assert not (ROOT / name).exists()


@pytest.mark.parametrize("when", ["=== cluster", "=== inside", "=== failure"])
def test_an_interrupted_demo_leaves_nothing(when: str) -> None:
    name = f"demo{os.getpid()}"
    before = snapshot(name)
    demo = subprocess.Popen([MESH, "lab", "--name", name, "demo"], stdout=subprocess.PIPE, text=True)
    assert demo.stdout is not None
    for line in demo.stdout:
        if line.startswith(when):
            break
    demo.send_signal(signal.SIGINT)
    demo.communicate(timeout=60)
    assert demo.returncode == 130
    assert difference(before, snapshot(name)) == []
    assert not (ROOT / name).exists()
