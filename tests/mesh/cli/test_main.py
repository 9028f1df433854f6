"""The root command: help, quick start, exit codes, what is said when something fails."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import click
import grpc
import pytest

from control.rpc import control_pb2 as pb
from mesh.cli.lazy import LazyGroup
from mesh.cli.main import ENTRIES, cli, run
from tests.mesh.cli.fake import Mesh, make_service

LANDED = {name for name in ENTRIES if name != "lab"}  # the lab has tests of its own


def python(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=30).stdout


def test_help_imports_nothing_heavy() -> None:
    code = """
import sys
from mesh.cli.main import run
for arguments in (["--help"], ["service", "--help"], ["service", "create", "--help"], ["nope"]):
    run(arguments)
heavy = [m for m in ("grpc", "google.protobuf", "pyroute2", "asyncio", "control.rpc") if m in sys.modules]
print("HEAVY", heavy)
"""
    assert python(code).rstrip().endswith("HEAVY []")
    light = 'import sys; from mesh.cli.main import run; run(["--help"]); print("HEAVY", "control" in sys.modules)'
    assert python(light).rstrip().endswith("HEAVY False")


def commands(command: click.Command, path: tuple[str, ...] = ()) -> list[tuple[tuple[str, ...], click.Command]]:
    context = click.Context(command)
    if not isinstance(command, click.Group):
        return [(path, command)]
    names = [name for name in command.list_commands(context) if path or name in LANDED]
    return [
        entry
        for name in names
        if (inner := command.get_command(context, name)) is not None
        for entry in commands(inner, (*path, name))
    ]


LEAVES = commands(cli)


@pytest.mark.parametrize(("path", "command"), LEAVES, ids=[" ".join(path) for path, _ in LEAVES])
def test_every_command_has_help_with_examples(
    path: tuple[str, ...], command: click.Command, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run([*path, "--help"]) == 0
    out = capfd.readouterr().out
    assert "Examples:\n" in out
    assert f"  mesh {' '.join(path)}" in out.split("Examples:\n")[1]
    for parameter in command.params:
        if isinstance(parameter, click.Option) and not parameter.multiple and not parameter.hidden:
            assert parameter.help or isinstance(parameter.type, click.Choice), (path, parameter.name)


def test_the_root_help_lists_every_noun(capfd: pytest.CaptureFixture[str]) -> None:
    assert isinstance(cli, LazyGroup)
    assert run(["--help"]) == 0
    out = capfd.readouterr().out
    for name, entry in ENTRIES.items():
        assert f"  {name} " in out
        assert entry.help in out
    assert run(["--version"]) == 0
    assert capfd.readouterr().out == "mesh 0.1.0\n"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["servce"], '"mesh" has no command "servce"; did you mean "service"?\nsee "mesh --help"'),
        (["service", "lss"], '"mesh service" has no command "lss"; did you mean "ls"?\nsee "mesh service --help"'),
        (
            ["token", "xyz"],
            '"mesh token" has no command "xyz": there are rotate, show\nsee "mesh token --help"',
        ),
        (["service", "ps"], "Missing argument 'SERVICE...'\nsee \"mesh service ps --help\""),
        (
            ["service", "create", "--replicas", "many", "--name", "x", "--", "true"],
            "Invalid value for '--replicas': 'many' is not a valid integer range\nsee \"mesh service create --help\"",
        ),
        (
            ["service", "create", "--stop-grace-period", "10", "--name", "x", "--", "true"],
            (
                "Invalid value for '--stop-grace-period': \"10\" is not a duration: write 10s for seconds"
                '\nsee "mesh service create --help"'
            ),
        ),
        (
            ["service", "create", "-p", "http", "--name", "x", "--", "true"],
            (
                "Invalid value for '--publish' / '-p': \"http\" is not a port to publish: such as 8080:80, or "
                '8080:80/udp\nsee "mesh service create --help"'
            ),
        ),
        (["node", "update", "h1"], 'nothing to change: see the options\nsee "mesh node update --help"'),
    ],
)
def test_usage_errors(arguments: list[str], sentence: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(arguments) == 2
    captured = capfd.readouterr()
    assert (captured.out, captured.err) == ("", f"error: {sentence}\n")


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (grpc.StatusCode.NOT_FOUND, 3),
        (grpc.StatusCode.ALREADY_EXISTS, 4),
        (grpc.StatusCode.ABORTED, 4),
        (grpc.StatusCode.INVALID_ARGUMENT, 2),
        (grpc.StatusCode.FAILED_PRECONDITION, 1),
        (grpc.StatusCode.UNAVAILABLE, 5),
        (grpc.StatusCode.UNAUTHENTICATED, 6),
        (grpc.StatusCode.PERMISSION_DENIED, 6),
        (grpc.StatusCode.INTERNAL, 1),
    ],
)
def test_statuses_become_exit_codes(mesh: Mesh, status: grpc.StatusCode, code: int) -> None:
    mesh.daemon.refuse["CreateNetwork"] = (status, 'network "web" is not to be\nand one more')
    result = mesh("network", "create", "web")
    assert (result.code, result.out, result.err) == (code, "", 'error: network "web" is not to be\nand one more\n')


def test_a_method_of_another_version(mesh: Mesh) -> None:
    mesh.daemon.refuse["RotateToken"] = (grpc.StatusCode.UNIMPLEMENTED, "Method not found!")
    result = mesh("token", "rotate", "worker")
    assert (result.code, result.err) == (1, "error: this meshd cannot do that: Method not found!\n")


@pytest.mark.parametrize("listening", [False, True])
def test_no_daemon(tmp_path: Path, capfd: pytest.CaptureFixture[str], listening: bool) -> None:
    path = tmp_path / "none"
    if listening:  # a socket file that a dead daemon has left
        with socket.socket(socket.AF_UNIX) as old:
            old.bind(str(path))
    began = time.monotonic()
    assert run(["--socket", str(path), "node", "ls"]) == 5
    assert capfd.readouterr().err == f"error: cannot reach meshd at {path}: is it running?\n"
    assert time.monotonic() - began < 20


def test_the_socket_comes_from_the_environment(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MESH_SOCKET", str(tmp_path / "env"))
    assert run(["status"]) == 5
    assert f"at {tmp_path / 'env'}:" in capfd.readouterr().err
    assert run(["--socket", str(tmp_path / "flag"), "status"]) == 5
    assert f"at {tmp_path / 'flag'}:" in capfd.readouterr().err


def test_objects_that_cannot_be_read(mesh: Mesh, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.mesh.cli.fake.wire", lambda _: pb.Object(value=b"\xc1"))
    result = mesh("token", "show", "worker")
    assert result.code == 1
    assert result.err.startswith("error: meshd speaks another version than this mesh: ")


def test_some_of_several_fail(mesh: Mesh) -> None:
    mesh.daemon.add(make_service("a"), make_service("b"))
    result = mesh("service", "rm", "a", "nope", "b")
    assert (result.code, result.out, result.err) == (3, "a\nb\n", 'error: no service "nope"\n')
    mesh.daemon.refuse["Remove"] = (grpc.StatusCode.UNAVAILABLE, "no quorum")
    result = mesh("service", "rm", "a", "b")
    assert (result.code, result.out, result.err) == (5, "", "error: no quorum\n")


def test_ctrl_c_and_closed_pipes_are_quiet(mesh: Mesh) -> None:
    environment = {**os.environ, "MESH_SOCKET": mesh.socket}
    command = [sys.executable, "-m", "mesh.cli.main"]
    mesh.daemon.watches_stay = True
    with subprocess.Popen([*command, "events"], env=environment, stderr=subprocess.PIPE, text=True) as process:
        while len(mesh.daemon.requests("Watch")) < 4 and process.poll() is None:
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=20)
    assert (process.returncode, err.strip()) == (130, "")
    piped = f"{sys.executable} -m mesh.cli.main --help | true"
    ended = subprocess.run(
        ["/bin/sh", "-c", piped], env=environment, capture_output=True, text=True, timeout=20, check=False
    )
    assert "Traceback" not in ended.stderr
