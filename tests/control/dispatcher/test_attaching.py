"""What a node says of containers of others: believed in what is its own, and in nothing else."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from control.assignment import AttachmentReport
from control.dispatcher.attaching import ATTACHMENTS_MAX, LEASES_MAX, attachment_changes, read_report
from control.lifecycle import Writer
from control.model import Attachment, Lease, NamedPort, PortSpec
from control.store.tables import Snapshot
from control.store.txn import prepare


@pytest.fixture
def snapshot(make: Any) -> Snapshot:
    return Snapshot.of(
        [make.cluster(), make.node(1), make.node(2), make.network("web"), make.lease(0, 1, "web", "10.128.1.0/28")], 1
    )


def said(snapshot: Snapshot, *attachments: Attachment, node: str = "node1", **wishes: int) -> Snapshot:
    """The store after a report."""
    report = read_report(msgspec.msgpack.encode(AttachmentReport(attachments=attachments, wishes=wishes)))
    assert report is not None
    return prepare(snapshot, attachment_changes(node, report, snapshot), Writer.DISPATCHER, 0).after


def ids(snapshot: Snapshot) -> set[str]:
    return {a.id for a in snapshot.all(Attachment)}


def test_the_store_says_what_the_node_says_last(make: Any, snapshot: Snapshot) -> None:
    one, two = make.attachment(1, 1, "web", "api"), make.attachment(2, 1, "web", "api")
    snapshot = said(snapshot, one, two)
    assert ids(snapshot) == {"c1", "c2"}
    snapshot = said(snapshot, msgspec.structs.replace(two, ready=False))
    assert [(a.id, a.ready) for a in snapshot.all(Attachment)] == [("c2", False)]
    again = AttachmentReport(attachments=(make.attachment(2, 1, "web", "api", ready=False),))
    assert attachment_changes("node1", again, snapshot) == []


@pytest.mark.parametrize(
    "wrong",
    [
        {"node_id": "node2"},
        {"address": "10.128.2.1"},
        {"network_id": "db"},
        {"id": "UPPER"},
        {"name": "a b"},
        {"service": "A_b"},
        {"aliases": ("x..y",)},
        {"weight": -1},
        {"weight": 1000},
        {"named_ports": (NamedPort(name="http", port=0),)},
        {"ports": (PortSpec(target=80, published=0, mode="host"),)},
        {"ports": (PortSpec(target=80, published=80),)},
    ],
)
def test_what_is_not_its_own_or_makes_no_sense_is_dropped(make: Any, snapshot: Snapshot, wrong: dict[str, Any]) -> None:
    right = make.attachment(1, 1, "web", "api")
    other = msgspec.structs.replace(make.attachment(2, 1, "web", "api"), **wrong)
    assert ids(said(snapshot, right, other)) == {"c1"}


def test_an_attachment_of_another_node_is_not_touched(make: Any, snapshot: Snapshot) -> None:
    snapshot = said(snapshot, make.attachment(1, 1, "web", "api"))
    stolen = make.attachment(1, 2, "web", "api")
    lease = make.lease(0, 2, "web", "10.128.1.0/28")
    both = Snapshot.of([*(o for o in snapshot.objects() if not isinstance(o, Lease)), lease], 3)
    assert [a.node_id for a in said(both, stolen, node="node2").all(Attachment)] == ["node1"]


def test_wishes_become_empty_leases_of_networks_that_exist(snapshot: Snapshot) -> None:
    after = said(snapshot, web=2, nowhere=1)
    assert {(lease.id, lease.block) for lease in after.all(Lease)} == {
        ("web/node1/0", "10.128.1.0/28"),
        ("web/node1/1", ""),
    }
    assert len(said(snapshot, web=10**9).all(Lease)) == LEASES_MAX
    assert list(said(snapshot, node="gone", web=2).all(Lease)) == list(snapshot.all(Lease))


def test_reports_that_cannot_be_read_are_none(make: Any) -> None:
    assert read_report(b"\xc1") is None
    many = (make.attachment(1, 1, "web", "api"),) * (ATTACHMENTS_MAX + 1)
    assert read_report(msgspec.msgpack.encode(AttachmentReport(attachments=many))) is None


def test_a_session_passes_reports_on_and_counts_bad_ones(world_of: Any, make: Any) -> None:
    world = world_of(make.cluster(), make.node(1))
    world.hello(1, 1)
    good = msgspec.msgpack.encode(AttachmentReport(attachments=(make.attachment(1, 1, "web", "api"),)))
    world.say(1, attachments=good)
    world.say(1, attachments=b"\xc1")
    assert world.count("undecodable") == 1
    assert [list(write.attached) for write in world.writes if write.attached] == [["node1"]]
