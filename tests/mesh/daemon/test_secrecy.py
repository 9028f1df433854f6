"""What a process that is killed leaves behind: no core of the daemon's, whatever the limit."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.root
UNLIMITED = ("sh", "-c", 'ulimit -c unlimited; exec "$@"', "sh")
FORBID = "import os; from mesh.daemon.secrecy import forbid_dumps; forbid_dumps(); os.abort()"
WAIT_S = 60.0


def dumped(process: subprocess.Popen[bytes]) -> bool:
    """Whether a process that was aborted has left a core."""
    _, status = os.waitpid(process.pid, 0)
    process.returncode = status
    assert os.WTERMSIG(status) == signal.SIGABRT
    return os.WCOREDUMP(status)


@pytest.mark.parametrize(("code", "expected"), [("import os; os.abort()", True), (FORBID, False)])
def test_a_process_that_forbids_it_leaves_no_core(tmp_path: Path, code: str, *, expected: bool) -> None:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
    process = subprocess.Popen([*UNLIMITED, sys.executable, "-c", code], cwd=tmp_path, env=environment)
    assert dumped(process) is expected


def test_the_daemon_leaves_no_core(tmp_path: Path) -> None:
    socket = tmp_path / "s"
    daemon = [sys.executable, "-m", "mesh.daemon.main", "--state-dir", str(tmp_path / "state"), "--socket", str(socket)]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
    process = subprocess.Popen([*UNLIMITED, *daemon, "--docker-plugin", ""], cwd=tmp_path, env=environment)
    deadline = time.monotonic() + WAIT_S
    while not socket.exists():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGABRT)
    assert not dumped(process)
    assert not list(tmp_path.glob("core*"))
