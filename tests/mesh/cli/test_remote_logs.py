"""mesh service logs."""

from __future__ import annotations

from control.rpc import control_pb2 as pb
from mesh.cli.show.logs import LINE_MAX_BYTES, Interleaver
from tests.mesh.cli.fake import Mesh, make_node, make_service, make_task


def piece(name: str, data: bytes = b"", error: str = "") -> pb.LogPiece:
    return pb.LogPiece(task_name=name, node="h1", data=data, error=error)


def test_lines_are_whole_and_named(mesh: Mesh) -> None:
    mesh.daemon.add(make_service("api"))
    mesh.daemon.log_pieces = [piece("api.1", b"one\ntw"), piece("api.10", b"three\n"), piece("api.1", b"o\nend")]
    assert mesh.ok("service", "logs", "-f", "-n", "7", "api") == (
        "api.1@h1 | one\napi.10@h1 | three\napi.1@h1  | two\napi.1@h1  | end\n"
    )
    (request,) = mesh.daemon.requests("Read")
    assert (request.service, request.follow, request.tail) == ("api", True, 7)


def test_raw_is_as_it_was_printed(mesh: Mesh) -> None:
    mesh.daemon.add(make_service("api"))
    mesh.daemon.log_pieces = [piece("api.1", b"one\ntw"), piece("api.1", b"o")]
    assert mesh.ok("service", "logs", "--raw", "api") == "one\ntwo"
    assert not mesh.daemon.requests("Read")[0].HasField("tail")


def test_one_task_may_be_named(mesh: Mesh) -> None:
    service, node = make_service("api"), make_node(1)
    mesh.daemon.add(node, make_task(service, 1, node))
    mesh.daemon.log_pieces = [piece("api.1", b"one\n")]
    assert mesh.ok("service", "logs", "api.1") == "api.1@h1 | one\n"
    assert mesh.daemon.requests("Read")[-1].task == "api.1"


def test_what_cannot_be_read_is_told_and_the_rest_is_shown(mesh: Mesh) -> None:
    mesh.daemon.add(make_service("api"))
    mesh.daemon.log_pieces = [
        piece("api.2", error='node "h2" is away: its logs cannot be read'),
        piece("api.1", b"1\n"),
    ]
    result = mesh("service", "logs", "api")
    assert (result.code, result.out) == (1, "api.1@h1 | 1\n")
    assert result.err == ('api.2: node "h2" is away: its logs cannot be read\nerror: not all of it could be read\n')


def test_no_such_service(mesh: Mesh) -> None:
    result = mesh("service", "logs", "nope")
    assert (result.code, result.err) == (3, 'error: no service "nope"\n')


def test_a_line_that_never_ends_is_not_kept() -> None:
    lines = Interleaver()
    shown = list(lines.add("a", b"x" * (LINE_MAX_BYTES + 1)))
    assert len(shown) == 1
    assert list(lines.flush()) == []
