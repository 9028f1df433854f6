"""`mesh lab`: what it prints, its exit codes, and that it can be driven by hand."""

from __future__ import annotations

import os
import pty
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mesh.cli.errors import ExitCode
from mesh.cli.main import run
from mesh.lab.lab import Daemon, Lab

Mesh = Callable[..., tuple[int, str, str]]


@pytest.fixture
def mesh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Mesh:
    """Runs `mesh lab --name <of the test>`; labs are in a directory of the test's own, daemons sleep."""
    monkeypatch.setattr(Lab.__init__, "__defaults__", ("lab", tmp_path))
    monkeypatch.setattr(Lab.up, "__defaults__", (Daemon(("sleep", "infinity")), lambda _: None))

    def call(*arguments: str) -> tuple[int, str, str]:
        code = run(["lab", "--name", f"cli-{os.getpid()}", *arguments])
        out, err = capfd.readouterr()
        return code, out, err

    return call


@pytest.fixture
def up(mesh: Mesh) -> Iterator[Mesh]:
    if os.geteuid() != 0:
        pytest.skip("needs root")
    yield mesh
    assert mesh("down")[0] == ExitCode.OK


@pytest.mark.root
def test_a_life_by_hand(up: Mesh) -> None:
    code, out, err = up("up", "--hosts", "2")
    assert (code, err) == (0, "")
    header, *rows = [line.split() for line in out.splitlines()]
    assert header == ["HOST", "ADDRESS", "STATE", "MESHD", "PID"]
    assert [row[:-1] for row in rows] == [
        ["h1", "10.66.0.11", "up", "running"],
        ["h2", "10.66.0.12", "up", "running"],
        ["client", "198.51.100.2", "up"],
    ]
    assert all(Path(f"/proc/{row[-1]}").exists() for row in rows)
    assert up("kill", "h2") == (0, "", "")
    assert up("kill-daemon", "h1") == (0, "", "")
    assert [line.split()[1:] for line in up("status")[1].splitlines()[1:3]] == [
        ["10.66.0.11", "up", "stopped", rows[0][-1]],
        ["10.66.0.12", "off", "stopped"],
    ]
    for words in (("start", "h2"), ("start-daemon", "h1"), ("restart-daemon", "h2")):
        assert up(*words) == (0, "", "")
    assert [line.split()[3] for line in up("status")[1].splitlines()[1:3]] == ["running", "running"]
    code, _, err = up("up")
    assert code == ExitCode.CONFLICT
    assert "is up already" in err
    assert up("kill", "h3")[0] == ExitCode.NOT_FOUND


@pytest.mark.root
def test_exec_becomes_the_command_with_its_terminal_and_exit_code(up: Mesh, tmp_path: Path) -> None:
    up("up", "--hosts", "1")
    script = (
        "import sys; from pathlib import Path; from mesh.cli.main import main; from mesh.lab.lab import Lab\n"
        f"Lab.__init__.__defaults__ = ('lab', Path({str(tmp_path)!r})); main()"
    )
    program = [sys.executable, "-c", script]
    lab = [*program, "lab", "--name", f"cli-{os.getpid()}", "exec"]
    for words in (["h1", "--", "sh", "-c", "hostname; exit 9"], ["h1", "sh", "-c", "hostname; exit 9"]):
        done = subprocess.run([*lab, *words], capture_output=True, text=True, check=False)
        assert (done.returncode, done.stdout) == (9, "h1\n"), done.stderr
    done = subprocess.run([*lab, "client", "hostname", "--help"], capture_output=True, text=True, check=False)
    assert "hostname" in done.stdout + done.stderr
    assert "Run a command inside a host" not in done.stdout  # the option is the command's, not ours
    ours, theirs = pty.openpty()
    with subprocess.Popen([*lab, "h1", "--", "tty"], stdin=theirs, stdout=theirs, stderr=theirs) as child:
        os.close(theirs)
        assert child.wait(20) == 0
        assert select.select([ours], [], [], 5)[0]
        assert os.read(ours, 100).startswith(b"/dev/pts/")
    os.close(ours)


@pytest.mark.root
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_interrupted_up_leaves_nothing(up: Mesh, tmp_path: Path, number: signal.Signals) -> None:
    script = (
        "import sys; from pathlib import Path; from mesh.cli.main import main; from mesh.lab.lab import Daemon, Lab\n"
        f"Lab.__init__.__defaults__ = ('lab', Path({str(tmp_path)!r}))\n"
        "Lab.up.__defaults__ = (Daemon(('sleep', 'infinity'), '/run/never'), lambda _: None); main()"
    )
    name = f"cli-{os.getpid()}"
    with subprocess.Popen([sys.executable, "-c", script, "lab", "--name", name, "up"], start_new_session=True) as child:
        deadline = time.monotonic() + 20
        while not (tmp_path / name / "h3" / "daemon.json").exists():
            assert time.monotonic() < deadline
            time.sleep(0.01)
        os.killpg(child.pid, number)
        assert child.wait(20) == ExitCode.INTERRUPTED
    assert not (tmp_path / name).exists()


def test_mistakes_are_sentences_with_exit_codes(mesh: Mesh, monkeypatch: pytest.MonkeyPatch) -> None:
    assert mesh("up", "--hosts", "21")[0] == ExitCode.USAGE
    assert mesh("exec", "h1")[0] == ExitCode.USAGE
    assert mesh("exec", "h1", "--")[0] == ExitCode.USAGE
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    for words in (["status"], ["exec", "h1", "--", "true"], ["kill", "h1"]):
        code, out, err = mesh(*words)
        assert (code, out) == (ExitCode.NOT_FOUND, "")
        assert f'there is no lab "cli-{os.getpid()}"' in err
    assert mesh("down") == (0, "", "")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    for words in (["up"], ["status"], ["exec", "h1", "--", "true"], ["kill", "h1"], ["down"]):
        code, out, err = mesh(*words)
        assert (code, out) == (ExitCode.REFUSED, "")
        assert "a lab needs root" in err
