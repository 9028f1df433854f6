"""`mesh quorum status`, what changes of managers warn of, and `mesh backup`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from control.model import NodeSpec
from control.rpc import control_pb2 as pb
from mesh.cli.quorum import differing, even, tolerance
from tests.mesh.cli.fake import Mesh, make_node


def row(number: int, status: str, **said: Any) -> pb.QuorumRow:
    made = pb.QuorumRow(
        node_id=f"node{number}", name=f"h{number}", address=f"10.0.0.{number}:7377", voter=True, status=status
    )
    if status == "unreachable":
        made.error = "connection refused"
    else:
        made.said.CopyFrom(pb.LookReply(node_id=f"node{number}", term=4, version=70, size_bytes=2048, **said))
    return made


def test_all_is_well(mesh: Mesh) -> None:
    rows = [row(1, "leader"), row(2, "reachable"), row(3, "reachable")]
    mesh.daemon.quorum = pb.QuorumReply(managers=rows, leader="node1")
    out = mesh.ok("quorum", "status")
    assert out.splitlines()[1].split() == ["h1", "10.0.0.1:7377", "Leader", "yes", "4", "70", "2KiB"]
    assert out.splitlines()[-1] == "3 managers tolerate the loss of one"


def test_without_quorum_it_answers_and_says_what_to_do(mesh: Mesh) -> None:
    rows = [row(1, "unreachable"), row(2, "reachable"), row(3, "unreachable")]
    mesh.daemon.quorum = pb.QuorumReply(managers=rows)
    done = mesh("quorum", "status")
    assert done.code == 7
    assert "no leader: 1 of 3 managers answer, 2 are needed to agree on anything" in done.out
    assert "meshd recover" in done.out
    assert "connection refused" in done.out


def test_one_that_is_away_and_one_with_a_full_disk(mesh: Mesh) -> None:
    rows = [row(1, "leader"), row(2, "reachable", message="the disk is full"), row(3, "unreachable")]
    mesh.daemon.quorum = pb.QuorumReply(managers=rows, leader="node1")
    done = mesh("quorum", "status")
    assert done.code == 7
    assert 'manager "h3" does not answer' in done.out
    assert 'manager "h2": the disk is full' in done.out


def test_states_that_differ_are_told() -> None:
    same = [row(1, "leader", digest="a"), row(2, "reachable", digest="a")]
    other = [row(1, "leader", digest="a"), row(2, "reachable", digest="b")]
    assert not differing(pb.QuorumReply(managers=same))
    assert differing(pb.QuorumReply(managers=other))


@pytest.mark.parametrize(("managers", "lost"), [(2, "none"), (3, "one"), (4, "one"), (5, "2"), (7, "3")])
def test_what_so_many_bear(managers: int, lost: str) -> None:
    assert tolerance(managers) == f"{managers} managers tolerate the loss of {lost}"
    assert bool(even(managers)) == (managers % 2 == 0)


def test_an_even_number_of_managers_is_warned_of(mesh: Mesh) -> None:
    mesh.daemon.add(*(make_node(number, spec=NodeSpec(role="manager")) for number in (1, 2)))
    done = mesh("node", "promote", "h2")
    assert done.code == 0
    assert "2 managers tolerate the loss of none, as 1 would" in done.err


def test_a_backup_is_a_file_for_its_owner(mesh: Mesh, tmp_path: Path) -> None:
    file = tmp_path / "b"
    assert mesh.ok("backup", str(file)) == f"{file}: 9B\n"
    assert (file.read_bytes(), file.stat().st_mode & 0o777) == (b"all of it", 0o600)
    assert mesh("backup", str(file)).code == 4
    mesh.ok("backup", "--force", str(file))
    assert [path.name for path in tmp_path.glob("b*")] == ["b"]
