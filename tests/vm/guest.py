"""The job in the virtual machine: lanes at the same time, the runs of pytest of a lane one after the other.

`python -m tests.vm.guest LANES`, which are JSON: [[[name, [pytest's arguments]], ...], ...]. An emulated processor
takes half a minute to import what the tests need, so that is done once, and each run is a fork. What a run says begins
with its name; its results go to a JUnit file of that name. The exit code is 0 when all runs' were.
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from functools import partial

import pytest

RESULTS = "/run/results"
_NEEDED = ("tests.netns.vip_lab", "overlay.kernel", "scapy.layers.inet", "scapy.layers.vxlan")


def forked(work: Callable[[], int]) -> int:
    """Begin work in a process of its own, which ends with the code it returns; its id."""
    if (child := os.fork()) == 0:
        code = 1
        try:
            code = work()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    return child


def ended(process: int) -> int:
    """Wait for its end; the code, or 1 when it was killed."""
    _, status = os.waitpid(process, 0)
    return os.WEXITSTATUS(status) if os.WIFEXITED(status) else 1


def run(name: str, arguments: list[str]) -> int:
    """One run of pytest; the balancer is the first word of its name. Returns pytest's exit code."""
    os.environ["MESH_BALANCER"] = name.partition("-")[0]
    with subprocess.Popen(["sed", "-u", f"s/^/{name:9} | /"], stdin=subprocess.PIPE) as shown:
        assert shown.stdin is not None
        for stream in (1, 2):
            os.dup2(shown.stdin.fileno(), stream)
        code = int(pytest.main([*arguments, f"--junitxml={RESULTS}/{name}.xml"]))
        sys.stdout.flush()
        nothing = os.open(os.devnull, os.O_WRONLY)
        for stream in (1, 2):
            os.dup2(nothing, stream)
    return code


def lane(runs: list[tuple[str, list[str]]]) -> int:
    """Runs, one after the other; 1 when one was not good."""
    codes = [ended(forked(partial(run, *one))) for one in runs]
    return int(any(codes))


def main() -> int:
    """Returns the exit code."""
    for needed in _NEEDED:
        importlib.import_module(needed)
    codes = list(map(ended, [forked(partial(lane, runs)) for runs in json.loads(sys.argv[1])]))
    return int(any(codes))


if __name__ == "__main__":
    sys.exit(main())
