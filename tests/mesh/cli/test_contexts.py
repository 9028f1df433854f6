"""`mesh user` and `mesh context`: files that only their owner may read, and which cluster a command goes to."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import msgspec
import pytest

from control.model import User
from mesh.cli.contexts import ClusterContext, Contexts, config_directory, encode_context, read_context, write_context
from mesh.cli.errors import ExitCode, Failure
from mesh.cli.main import run
from mesh.cli.session import Session
from tests.mesh.cli.fake import NOW_MS, Mesh


def a_context(name: str = "office", **fields: object) -> ClusterContext:
    made = ClusterContext(
        name=name,
        user="alice",
        role="viewer",
        managers=("127.0.0.1:1",),
        roots="ROOTS",
        certificate="CERT",
        key="THE KEY",
    )
    return msgspec.structs.replace(made, **fields)


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.delenv("MESH_CONTEXT", raising=False)
    return tmp_path / "config" / "mesh"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    write_context(tmp_path / "alice.json", a_context(), replace=False)
    return tmp_path / "alice.json"


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


# --- files ------------------------------------------------------------------------------------------------------------


def test_a_file_is_for_its_owner_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        write_context(tmp_path / "c.json", a_context(), replace=False)
    finally:
        os.umask(before)
    assert mode(tmp_path / "c.json") == 0o600
    assert read_context(tmp_path / "c.json") == a_context()
    with pytest.raises(Failure, match="exists already"):
        write_context(tmp_path / "c.json", a_context(), replace=False)
    assert [path.name for path in tmp_path.iterdir()] == ["c.json"], "nothing is left of the second attempt"


@pytest.mark.parametrize("others", [0o640, 0o604, 0o660])
def test_a_file_that_others_may_read_is_refused(file: Path, others: int) -> None:
    file.chmod(others)
    with pytest.raises(Failure, match=f"mode {others:04o}") as raised:
        read_context(file)
    assert raised.value.code is ExitCode.REFUSED


BAD = [b"", b"{}", b"[]", b"\xff", encode_context(a_context())[:-20], encode_context(a_context("../x")),
       encode_context(a_context("default")), encode_context(a_context(managers=())), b"{" * 300_000]  # fmt: skip


@pytest.mark.parametrize("data", BAD)
def test_files_that_are_no_contexts(file: Path, data: bytes) -> None:
    file.write_bytes(data)
    with pytest.raises(Failure, match="is no context"):
        read_context(file)


def test_where_contexts_are(tmp_path: Path) -> None:
    assert config_directory({"HOME": "/home/a"}) == Path("/home/a/.config/mesh")
    assert config_directory({"HOME": "/home/a", "XDG_CONFIG_HOME": "/x"}) == Path("/x/mesh")
    assert config_directory({"HOME": "/home/a", "XDG_CONFIG_HOME": "not/absolute"}) == Path("/home/a/.config/mesh")


# --- mesh context -----------------------------------------------------------------------------------------------------


def test_add_list_use_show_and_remove(mesh: Mesh, config: Path, file: Path) -> None:
    assert mesh.ok("context", "add", str(file)) == "office\n"
    assert mode(config / "contexts" / "office.json") == 0o600
    assert mode(config / "contexts") == 0o700
    assert mesh.ok("context", "ls", "--format", "{{.Name}} {{.User}}").splitlines() == ["default ", "office alice"]
    assert mesh("context", "add", str(file)).code == ExitCode.CONFLICT
    assert mesh.ok("context", "add", str(file), "--name", "home") == "home\n"
    mesh.ok("context", "use", "home")
    assert Contexts(config).current() == "home"
    assert "THE KEY" not in mesh.ok("context", "ls", "--format", "json")
    mesh.ok("context", "rm", "home")
    assert Contexts(config).current() == "default"
    assert mesh("context", "use", "home").code == ExitCode.NOT_FOUND
    assert mesh("context", "rm", "nowhere").code == ExitCode.NOT_FOUND
    assert json.loads(mesh.ok("context", "show"))[0]["name"] == "default"


@pytest.mark.parametrize(
    ("typed", "environment", "used", "place"),
    [
        ((), {}, "", "socket"),
        ((), {}, "office", "office"),
        ((), {"MESH_CONTEXT": "home"}, "office", "home"),
        ((), {"MESH_SOCKET": "/s"}, "office", "socket"),
        (("--context", "home"), {"MESH_SOCKET": "/s"}, "office", "home"),
        (("--context", "home", "--socket", "/s"), {}, "office", "home"),
        (("--socket", "/s"), {"MESH_CONTEXT": "home"}, "office", "socket"),
        (("--context", "default"), {"MESH_CONTEXT": "home"}, "office", "socket"),
        ((), {"MESH_CONTEXT": "default"}, "office", "socket"),
    ],
)
def test_what_is_typed_goes_before_the_environment_and_that_before_use(
    config: Path,
    monkeypatch: pytest.MonkeyPatch,
    typed: tuple[str, ...],
    environment: dict[str, str],
    used: str,
    place: str,
) -> None:
    monkeypatch.delenv("MESH_SOCKET", raising=False)
    kept = Contexts(config)
    for name in ("office", "home"):
        kept.put(a_context(name), replace=False)
    if used:
        kept.use(used)
    for key, value in environment.items():
        monkeypatch.setenv(key, value)
    session = Session()
    run([*typed, "context", "ls"], session)
    assert (session.context or "socket") == place


def test_a_cluster_that_does_not_answer_is_named(mesh: Mesh, config: Path, capfd: pytest.CaptureFixture[str]) -> None:
    Contexts(config).put(a_context(), replace=False)
    assert run(["--context", "office", "service", "ls"], Session()) == ExitCode.UNAVAILABLE
    assert 'no manager of context "office" answers: 127.0.0.1:1: Connection refused' in capfd.readouterr().err
    assert run(["--context", "elsewhere", "service", "ls"], Session()) == ExitCode.NOT_FOUND


# --- mesh user --------------------------------------------------------------------------------------------------------


def test_a_user_gets_a_file(mesh: Mesh, config: Path, tmp_path: Path) -> None:
    made = tmp_path / "bob.json"
    assert mesh.ok("user", "add", "bob", "--role", "operator", "--expires", "48h", "-o", str(made)) == f"{made}\n"
    (request,) = mesh.daemon.requests("AddUser")
    assert (request.name, request.role, request.life_s) == ("bob", "operator", 48 * 3600)
    found = read_context(made)
    assert (found.user, found.role, found.managers) == ("bob", "operator", ("10.0.0.1:7377",))
    assert "BEGIN PRIVATE KEY" in found.key
    assert b"PRIVATE" not in request.SerializeToString(), "the key goes nowhere"
    again = mesh("user", "add", "bob", "--role", "operator", "-o", str(made))
    assert again.code == ExitCode.CONFLICT
    assert len(mesh.daemon.requests("AddUser")) == 1, "nothing was asked"
    assert mesh("user", "add", "eve", "--role", "manager").code == ExitCode.USAGE


def test_a_context_through_a_pipe(mesh: Mesh, config: Path) -> None:
    out = mesh.ok("user", "add", "bob", "--role", "admin", "-o", "-", "--manager", "gate:1", "--context-name", "x")
    found = json.loads(out)
    assert (found["name"], found["managers"]) == ("x", ["gate:1"])


def test_a_file_that_cannot_be_written_leaves_no_user(mesh: Mesh, config: Path, tmp_path: Path) -> None:
    assert mesh("user", "add", "bob", "--role", "admin", "-o", str(tmp_path / "no" / "x")).code == ExitCode.FAILED
    assert [(r.kind, r.reference) for r in mesh.daemon.requests("Remove")] == [("user", "bob")]


def test_users_are_listed_and_removed(mesh: Mesh, config: Path) -> None:
    mesh.daemon.add(User(id="bob", role="admin", expires_ms=NOW_MS + 3 * 86_400_000))
    assert mesh.ok("user", "ls", "--format", "{{.Name}} {{.Role}} {{.Expires}}") == "bob admin in 3 days\n"
    assert mesh.ok("user", "rm", "bob") == "bob\n"
