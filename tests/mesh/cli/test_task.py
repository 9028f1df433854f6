"""exec and logs of tasks of this node."""

from __future__ import annotations

from pathlib import Path

import grpc
import pytest
from msgspec.structs import replace

from control.lifecycle import TaskState
from control.model import ProcessSpec, TaskSpec, TaskStatus
from control.rpc import control_pb2 as pb
from mesh.executor.logs import copy_log
from mesh.executor.usage import Usage
from tests.mesh.cli.fake import Mesh, make_node, make_service, make_task

H1, H2 = make_node(1), make_node(2)
API = make_service("api")
TASK = replace(
    make_task(API, 1, H1), spec=TaskSpec(process=ProcessSpec(command=("run",), env={"LEVEL": "info", "PATH": "/x"}))
)


@pytest.fixture
def here(mesh: Mesh, monkeypatch: pytest.MonkeyPatch) -> Mesh:
    """A task of this node, and one of another."""
    monkeypatch.setattr("shutil.which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setenv("TERM", "xterm")
    mesh.daemon.add(H1, H2, API, TASK, make_task(API, 2, H2))
    mesh.daemon.processes = {"api.1": (TASK.id, 4711), TASK.id: (TASK.id, 4711)}
    return mesh


def test_exec_enters_the_namespaces_with_the_tasks_environment(here: Mesh) -> None:
    assert here.ok("task", "exec", "api.1", "--", "ls", "-l", "--", "x") == ""
    assert here.executed == [
        (
            "/usr/bin/nsenter",
            [
                "nsenter", "--target=4711", "--net", "--mount", "--pid", "--uts", "--ipc", "--wdns=/", "--",
                "ls", "-l", "--", "x",
            ],
            {"PATH": "/x", "HOME": "/", "TERM": "xterm", "LEVEL": "info"},
        )
    ]  # fmt: skip


def test_exec_with_environment_and_directory(here: Mesh) -> None:
    here.ok("task", "exec", "-e", "LEVEL=debug", "-w", "/srv", "api.1", "sh", "-c", "env")
    ((_, words, environment),) = here.executed
    assert words[-5:] == ["--wdns=/srv", "--", "sh", "-c", "env"]
    assert environment["LEVEL"] == "debug"


def test_exec_works_without_a_manager(here: Mesh) -> None:
    here.daemon.refuse["Get"] = (grpc.StatusCode.UNAVAILABLE, "no manager answers")
    here.ok("task", "exec", "api.1", "true")
    assert here.executed[0][2]["PATH"].startswith("/usr/local/sbin:")


def test_exec_elsewhere_names_the_node(here: Mesh) -> None:
    pending = TaskStatus(state=TaskState.PENDING, error="no suitable node")
    here.daemon.add(make_task(API, 3, None, status=pending), make_task(API, 4, H1, TaskState.FAILED))
    for name, code, sentence in (
        ("api.2", 1, 'task "api.2" is on node "h2": run this there'),
        ("api.3", 1, 'task "api.3" is pending and on no node yet: no suitable node'),
        ("api.4", 1, 'task "api.4" is failed: nothing of it runs on this node'),
        ("api.9", 3, 'no task "api.9"'),
    ):
        result = here("task", "exec", name, "true")
        assert (result.code, result.err) == (code, f"error: {sentence}\n")
    here.daemon.refuse["Get"] = (grpc.StatusCode.UNAVAILABLE, "no manager answers")
    result = here("task", "exec", "api.2", "true")
    assert (result.code, result.err) == (3, 'error: no task "api.2" runs on this node\n')
    assert here.executed == []


def test_exec_needs_a_command_and_nsenter(here: Mesh, monkeypatch: pytest.MonkeyPatch) -> None:
    assert here("task", "exec", "api.1", "--").code == 2
    assert here("task", "exec", "api.1").code == 2
    monkeypatch.setattr("shutil.which", lambda _: None)
    result = here("task", "exec", "api.1", "true")
    assert (result.code, result.err) == (1, "error: nsenter is not installed: apt-get install util-linux\n")


# --- logs -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def log_dir(tmp_path: Path) -> Path:
    directory = tmp_path / "state" / "tasks" / TASK.id
    directory.mkdir(parents=True)
    (directory / "log.1").write_text("one\ntwo\n")
    (directory / "log").write_text("three\nfour\n")
    return directory


def test_logs(here: Mesh, log_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = str(log_dir.parents[1])
    assert here.ok("task", "logs", "--state-dir", state, "api.1") == "one\ntwo\nthree\nfour\n"
    assert here.ok("task", "logs", "-n", "3", "--state-dir", state, "api.1") == "two\nthree\nfour\n"
    assert here.ok("task", "logs", "--tail", "0", "--state-dir", state, "api.1") == ""
    monkeypatch.setenv("MESHD_STATE_DIR", state)
    assert here.ok("task", "logs", "api.1").startswith("one\n")
    (log_dir / "log.1").unlink()
    (log_dir / "log").unlink()
    assert here.ok("task", "logs", "api.1") == ""


def test_logs_of_a_task_that_has_ended(here: Mesh, log_dir: Path) -> None:
    here.daemon.processes = {}
    assert here.ok("task", "logs", "-n", "1", "--state-dir", str(log_dir.parents[1]), "api.1") == "four\n"


def test_logs_elsewhere(here: Mesh, log_dir: Path) -> None:
    state = str(log_dir.parents[1])
    here.daemon.log_pieces = [pb.LogPiece(task_name="api.2", node="h2", data=b"far away\n")]
    assert here.ok("task", "logs", "-n", "5", "--state-dir", state, "api.2") == "far away\n"
    (request,) = here.daemon.requests("Read")
    assert (request.task, request.service, request.follow, request.tail) == ("api.2", "", False, 5)
    result = here("task", "logs", "--state-dir", state, "nope.1")
    assert (result.code, result.err) == (3, 'error: no task "nope.1"\n')


def test_following_ends_with_the_task_and_survives_rotation(log_dir: Path, tmp_path: Path) -> None:
    steps = [
        lambda: (log_dir / "log").open("a").write("five\n"),
        lambda: (log_dir / "log").rename(log_dir / "log.1"),
        lambda: (log_dir / "log").write_text("six\n"),
        lambda: ((log_dir / "log").open("a").write("seven\n"), (log_dir / "exit.json").write_text("{}")),
    ]

    def sleep(_: float) -> None:
        steps.pop(0)()

    out = tmp_path / "out"
    with out.open("wb") as file:
        copy_log(log_dir, file, tail=1, follow=True, sleep=sleep)
    assert out.read_text() == "four\nfive\nsix\nseven\n"
    assert steps == []


def test_following_waits_for_a_log_that_is_not_there_yet(tmp_path: Path) -> None:
    (tmp_path / "task").mkdir()

    def sleep(_: float) -> None:
        (tmp_path / "task" / "log").write_text("first\n")
        (tmp_path / "task" / "exit.json").write_text("{}")

    out = tmp_path / "out"
    with out.open("wb") as file:
        copy_log(tmp_path / "task", file, tail=None, follow=True, sleep=sleep)
    assert out.read_text() == "first\n"


def test_stats_of_one_task_and_of_all_here(here: Mesh, monkeypatch: pytest.MonkeyPatch) -> None:
    counted = iter([Usage(1.0, 1 << 20, 0, 2), Usage(1.5, 3 << 20, 1 << 30, 3)] * 2)
    monkeypatch.setattr("mesh.cli.stats.read_usage", lambda pid: next(counted) if pid == 4711 else None)
    monkeypatch.setattr("mesh.cli.stats.INTERVAL_S", 1.0)
    monkeypatch.setattr("time.sleep", lambda _: None)
    shown = here.ok("task", "stats", "api.1").split("\n")
    assert shown[1].split() == ["api.1", "50.0%", "3MiB", "1GiB", "3"]
    assert here.ok("task", "stats", "--format", "{{.Name}} {{.Cpu}}", "api.1") == "api.1 50.0%\n"


def test_exec_with_a_terminal_needs_one(here: Mesh) -> None:
    refused = here("task", "exec", "-it", "api.1", "sh")
    assert (refused.code, here.executed) == (1, [])
    assert "no terminal" in refused.err
