"""Containers of others as rows, and found by filters."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from control.model import Attachment, Meta, Network, NetworkSpec, Node, NodeDescription, NodeSpec, PortSpec
from control.server.filters import predicate
from control.server.references import find, public_kind
from control.server.refusal import Refusal
from control.store.tables import Snapshot
from mesh.cli.show.attachments import COLUMNS, attachment_rows

BOX = Attachment(
    id="b" * 25, node_id="n1", network_id="w1", address="10.1.0.9", name="box", container="c" * 64, service="store",
    aliases=("db", "sql"), ports=(PortSpec(target=80, published=8080, mode="host"),),
)  # fmt: skip
OTHER = replace(BOX, id="a" * 25, name="alone", service="alone", node_id="n2", network_id="w2", ports=())


def test_rows_name_what_users_know() -> None:
    rows = attachment_rows([BOX, OTHER], {"n1": "h1"}, {"w1": "web"}, frozenset(), no_trunc=False)
    assert [[row[column] for column in COLUMNS][1:] for row in rows] == [
        ["alone", "n2", "w2", "10.1.0.9", "alone", "Ready"],
        ["box", "h1", "web", "10.1.0.9", "store", "Ready"],
    ]
    assert (rows[1]["Ports"], rows[1]["Aliases"]) == ("8080->80/tcp", "db, sql")


@pytest.mark.parametrize(
    ("changes", "down", "state"),
    [({}, "n1", "Lost"), ({"ready": False}, "", "Unhealthy"), ({"weight": 0}, "", "Draining"), ({}, "n2", "Ready")],
)
def test_states(changes: dict[str, object], down: str, state: str) -> None:
    (row,) = attachment_rows([replace(BOX, **changes)], {}, {}, frozenset({down}), no_trunc=True)
    assert row["State"] == state


def view() -> Snapshot:
    described = NodeDescription(hostname="h1")
    objects = (
        BOX, OTHER, Node(id="n1", spec=NodeSpec(), number=1, description=described),
        Network(id="w1", spec=NetworkSpec(name="web"), vni=1, subnet="10.1.0.0/24", gateway="10.1.0.1"),
    )  # fmt: skip
    return Snapshot.of([replace(o, meta=Meta(version=1)) for o in objects], 1)


@pytest.mark.parametrize(
    "filters", [{"network": ["web"]}, {"node": ["h1"]}, {"service": ["store"]}, {"name": ["bo"]}, {"id": ["bbb"]}]
)
def test_filters(filters: dict[str, list[str]]) -> None:
    snapshot = view()
    passes = predicate(snapshot, Attachment, filters)
    assert [a.name for a in snapshot.all(public_kind("attachment")) if passes(a)] == ["box"]


def test_references() -> None:
    assert find(view(), Attachment, "box").id == BOX.id
    assert find(view(), Attachment, "aaa").name == "alone"
    with pytest.raises(Refusal, match='no attachment "nobody"'):
        find(view(), Attachment, "nobody")
