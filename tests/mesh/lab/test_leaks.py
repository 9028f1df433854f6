"""The machine is as before: after a whole life of a lab, and after `up` was killed at any step of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mesh.lab.lab import Lab
from mesh.lab.machine import difference, is_of_a_lab
from tests.alone import REPOSITORY, alone
from tests.mesh.lab.test_lab import processes

pytestmark = [pytest.mark.root, pytest.mark.skipif(os.geteuid() != 0, reason="needs root")]

STEPS_MAX = 40

LIFE = """
import json, os, subprocess, sys
from pathlib import Path
from mesh.lab.lab import Daemon, Lab
from mesh.lab.machine import snapshot
name, root = sys.argv[1], Path(sys.argv[2])
subprocess.run(["nft", "add", "table", "inet", "somebody"], check=True)
before = snapshot(name, root)
lab = Lab(name, root)
lab.up(3, Daemon(("sleep", "infinity")))
during = snapshot(name, root)
script = "ip netns add x; nft add table inet mesh; ip link add d type dummy; setsid sleep 1000 >/dev/null 2>&1 &"
assert lab.exec("h1", ["sh", "-c", script]).returncode == 0
lab.exec("h2", ["sh", "-c", "mkdir -p /run/m && mount -t tmpfs none /run/m"])
lab.kill("h2")
lab.start("h2")
lab.kill("h3")
lab.down()
other = Lab("other-" + name, root)  # lives on while we look
other.up(1, Daemon(("sh", "-c", "sleep 1000; exit", "bin/meshd")))
after = snapshot(name, root)
print(json.dumps([{k: sorted(v) for k, v in s.items()} for s in (before, during, after)]))
other.down()
"""


def test_after_its_life_the_machine_is_as_before(tmp_path: Path) -> None:
    done = subprocess.run(
        alone(sys.executable, "-c", LIFE, f"leaks-{os.getpid()}", str(tmp_path / "labs")),
        capture_output=True, text=True, check=False, timeout=60, cwd=REPOSITORY,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    before, during, after = ({k: frozenset(v) for k, v in s.items()} for s in json.loads(done.stdout))
    assert difference(before, after) == []
    # While it is up, only processes and groups show: nothing of it is in the machine's own namespaces.
    changed = {line.partition(":")[0] for line in difference(before, during)}
    assert changed == {"processes", "control groups", "directories"}
    assert all(map(is_of_a_lab, difference(before, during)))
    assert len(during["processes"] - before["processes"]) == 5  # the first ones of switch, client and hosts
    assert not (tmp_path / "labs").exists()


def test_down_finds_all_there_is_wherever_up_was_killed(tmp_path: Path) -> None:
    steps = 0
    for step in range(STEPS_MAX):
        for delay_s in (0, 0.02):
            name, root = f"killed-{os.getpid()}-{step}", tmp_path / "labs"
            command = [sys.executable, "-m", "tests.mesh.lab.killed", name, str(root), str(step), str(delay_s)]
            with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=REPOSITORY) as up:
                assert up.stdout is not None
                if up.stdout.readline() == "up\n":
                    up.kill()
                    steps = step if delay_s == 0 else steps
            Lab(name, root).down()
            assert not root.exists()
            deadline = time.monotonic() + 5
            while processes(f"{root}/{name}"):
                assert time.monotonic() < deadline, processes(f"{root}/{name}")
                time.sleep(0.01)
            assert not list(Path("/sys/fs/cgroup").glob(f"*/mesh-lab.{name}.*"))
        if steps:
            break
    assert 8 < steps < STEPS_MAX


def test_what_others_do_meanwhile_is_not_taken_for_a_labs() -> None:
    before = {"links": frozenset({"lo"}), "processes": frozenset[str]()}
    after = {"links": frozenset({"lo", "veth7"}), "processes": frozenset({"7 bin/meshd"})}
    assert [(line, is_of_a_lab(line)) for line in difference(before, after)] == [
        ("links: + veth7", False),
        ("processes: + 7 bin/meshd", True),
    ]
