"""events, completion, dns serve."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import grpc
import pytest
from dnslib import DNSRecord
from msgspec.structs import replace

from control.lifecycle import TaskState
from control.model import Meta, Object, TaskStatus
from control.rpc import control_pb2 as pb
from mesh.cli.main import run
from tests.mesh.cli.fake import NOW_MS, Mesh, make_network, make_node, make_service, make_task, wire
from tests.ports import free_port

API = make_service("api")
TASK = make_task(API, 1, make_node(1), TaskState.STARTING)


def event(action: pb.Event.Action.ValueType, obj: Object | None = None) -> pb.Event:
    return pb.Event(action=action, object=wire(obj) if obj is not None else None)


@pytest.fixture
def eventful(mesh: Mesh) -> Mesh:
    at = Meta(version=9, created_ms=NOW_MS, updated_ms=NOW_MS)
    running = replace(TASK, status=TaskStatus(state=TaskState.RUNNING), meta=at)
    failed = replace(TASK, status=TaskStatus(state=TaskState.FAILED, error="exit\ncode 3", exit_code=3), meta=at)
    mesh.daemon.watched = [
        event(pb.Event.PRESENT, TASK),
        event(pb.Event.LIVE),
        event(pb.Event.UPDATED, replace(TASK, meta=at)),
        event(pb.Event.UPDATED, running),
        event(pb.Event.UPDATED, replace(running, desired_state=TaskState.SHUTDOWN)),
        event(pb.Event.UPDATED, failed),
        event(pb.Event.REMOVED, failed),
        event(pb.Event.CREATED, make_network("web", 1)),
    ]
    return mesh


def test_events(eventful: Mesh) -> None:
    when, task = (
        "2026-09-21T14:13:20.000Z",
        f"task {{}} {TASK.id} (name=api.1, node=node1xxxxxxxxxxxxxxxxxxxx, desired=",
    )
    assert eventful.ok("events", "--kind", "task").splitlines() == [
        f"{when} {task.format('update')}running)",
        f"{when} {task.format('running')}running)",
        f"{when} {task.format('update')}shutdown)",
        f"{when} {task.format('failed')}running, exit_code=3, error=exit\\ncode 3)",
        f"{when} {task.format('remove')}running, exit_code=3, error=exit\\ncode 3)",
    ]


def test_events_of_all_kinds_and_formats(eventful: Mesh) -> None:
    lines = eventful.ok("events", "--format", "{{.Type}} {{.Action}} {{.Name}}").splitlines()
    assert sorted(lines) == [
        "network create web",
        "task failed api.1",
        "task remove api.1",
        "task running api.1",
        "task update api.1",
        "task update api.1",
    ]
    (line,) = eventful.ok("events", "--kind", "network", "--format", "jsonl").splitlines()
    assert json.loads(line)["Attributes"] == {"subnet": "10.128.16.0/20"}


def test_events_end_when_the_manager_goes(eventful: Mesh) -> None:
    eventful.daemon.refuse["Watch"] = (grpc.StatusCode.UNAVAILABLE, "no manager answers")
    result = eventful("events")
    assert (result.code, result.err) == (5, "error: no manager answers\n")
    assert eventful("events", "--format", "xml").code == 2


# --- completion -----------------------------------------------------------------------------------------------------


def complete(capture: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *words: str) -> list[str]:
    """What bash is told for a line of which the last word is being typed."""
    monkeypatch.setenv("_MESH_COMPLETE", "bash_complete")
    monkeypatch.setenv("COMP_WORDS", " ".join(words))
    monkeypatch.setenv("COMP_CWORD", str(len(words) - 1))
    capture.readouterr()
    with pytest.raises(SystemExit):
        run([])
    return [line.split(",", 1)[1] for line in capture.readouterr().out.splitlines() if line]


def test_names_are_completed_from_the_cluster(
    mesh: Mesh, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    mesh.daemon.add(API, make_service("agent"), make_service("web"), make_node(1), make_network("web", 1), TASK)
    mesh.daemon.add(replace(TASK, id="gone", slot=2, status=TaskStatus(state=TaskState.FAILED)))

    def line(*words: str) -> list[str]:
        return complete(capfd, monkeypatch, "mesh", "--socket", mesh.socket, *words)

    assert line("service", "ps", "a") == ["agent", "api"]
    assert line("network", "rm", "") == ["web"]
    assert line("node", "update", "--availability", "") == ["active", "pause", "drain"]
    assert line("node", "rm", "h") == ["h1"]
    assert line("task", "exec", "") == ["api.1"]
    assert line("service", "create", "--network", "w") == ["web"]
    assert line("service", "s") == ["scale"]
    assert line("se") == ["service"]
    mesh.daemon.refuse["List"] = (grpc.StatusCode.UNAVAILABLE, "no manager answers")
    assert line("service", "ps", "a") == []


def test_completion_without_a_daemon_is_silent(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert complete(capfd, monkeypatch, "mesh", "--socket", str(tmp_path / "none"), "service", "rm", "") == []
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    ("shell", "word"),
    [("bash", "complete -o nosort -F"), ("zsh", "#compdef mesh"), ("fish", "complete --no-files --command mesh")],
)
def test_completion_scripts(shell: str, word: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(["completion", shell]) == 0
    script = capfd.readouterr().out
    assert word in script
    assert "_MESH_COMPLETE" in script
    if shell == "bash":
        subprocess.run(["bash", "-n"], input=script, text=True, check=True, timeout=20)


# --- dns ------------------------------------------------------------------------------------------------------------


def ask(port: int, name: str) -> list[str]:
    question = DNSRecord.question(name)
    for _ in range(100):
        try:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
                client.settimeout(0.2)
                client.connect(("127.0.0.1", port))
                client.send(question.pack())
                return [str(record.rdata) for record in DNSRecord.parse(client.recv(512)).rr]
        except OSError:
            time.sleep(0.05)
    raise AssertionError("no answer")


def test_dns_serve(tmp_path: Path) -> None:
    records, port = tmp_path / "zone", free_port()
    records.write_text("api.web.mesh A 10.0.1.2\n")
    command = [sys.executable, "-m", "mesh.cli.main", "dns", "serve", "--records", str(records)]
    with subprocess.Popen([*command, "--listen", f"127.0.0.1:{port}"], stderr=subprocess.PIPE, text=True) as process:
        try:
            assert ask(port, "api.web.mesh") == ["10.0.1.2"]
        finally:
            process.send_signal(signal.SIGTERM)
            _, err = process.communicate(timeout=20)
    assert (process.returncode, err) == (0, f"serving {records} on 127.0.0.1 port {port}\n")


SERVE: list[tuple[str, list[str], int, str]] = [
    ("x\n", [], 1, "error: {records}: line 1: is not NAME TYPE VALUE"),
    ("", ["--upstream", "nowhere"], 1, "error: "),
    ("", ["--listen", "5353"], 2, "error: Invalid value for '--listen': \"5353\" must be ADDRESS:PORT"),
    ("", ["--records", "/nowhere"], 1, "error: cannot serve /nowhere on 127.0.0.1 port 5353: No such file"),
]


@pytest.mark.parametrize(("content", "flags", "code", "start"), SERVE)
def test_dns_serve_mistakes(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], content: str, flags: list[str], code: int, start: str
) -> None:
    records = tmp_path / "zone"
    records.write_text(content)
    arguments: list[Any] = ["dns", "serve", "--records", str(records), *flags]
    assert run(arguments) == code
    err = capfd.readouterr().err.splitlines()
    assert any(line.startswith(start.format(records=records)) for line in err), err
