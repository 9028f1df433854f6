"""`mesh unlock`, `mesh unlock-key`, and `--autolock`."""

import io

import grpc
import pytest

from tests.mesh.cli.fake import Mesh


@pytest.fixture
def typed(monkeypatch):
    """What is on standard input, which is no terminal."""

    def type_(text: str) -> None:
        monkeypatch.setattr("sys.stdin", io.StringIO(text))

    return type_


def test_the_key_comes_by_standard_input_and_is_not_repeated(mesh: Mesh, typed) -> None:
    typed(" MSHKEY-1-key\n")
    out = mesh.ok("unlock")
    assert [r.key for r in mesh.daemon.requests("Unlock")] == ["MSHKEY-1-key"]
    assert "MSHKEY" not in out
    assert mesh("unlock", "MSHKEY-1-key").code == 2, "not by the command line"


def test_what_is_too_long_is_not_read(mesh: Mesh, typed) -> None:
    typed("x" * 10_000)
    mesh.ok("unlock")
    assert len(mesh.daemon.requests("Unlock")[0].key) == 256


def test_a_wrong_key(mesh: Mesh, typed) -> None:
    typed("MSHKEY-1-wrong")
    mesh.daemon.refuse["Unlock"] = (grpc.StatusCode.FAILED_PRECONDITION, "that is not the unlock key of this manager")
    result = mesh("unlock")
    assert (result.code, result.err) == (1, "error: that is not the unlock key of this manager\n")


def test_the_key_is_shown_and_changed(mesh: Mesh) -> None:
    assert mesh.ok("unlock-key", "-q") == "MSHKEY-1-key\n"
    assert "    MSHKEY-1-key\n" in mesh.ok("unlock-key")
    assert mesh.daemon.requests("RotateUnlockKey") == []
    assert mesh.ok("unlock-key", "--rotate", "-q") == "MSHKEY-1-other\n"
    mesh.daemon.unlock_key = ""
    result = mesh("unlock-key")
    assert result.code == 6
    assert "mesh cluster update --autolock" in result.err


def test_autolock_tells_the_key_once(mesh: Mesh) -> None:
    assert "MSHKEY-1-key" in mesh.ok("cluster", "update", "--autolock")
    assert mesh.ok("cluster", "update", "--autolock") == "default\n"
    assert mesh.ok("cluster", "update", "--autolock=false") == "default\n"
    assert [spec.autolock for spec in mesh.daemon.specs("UpdateCluster")] == [True, False]
    assert mesh("cluster", "update", "--autolock=perhaps").code == 2
