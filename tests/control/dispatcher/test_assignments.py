"""Objects into records, and that following events gives what building anew would."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from control.assignment import Endpoint, Key, Peer, Record, ServiceEntry, Settings, decode, key_of
from control.dispatcher.assignments import EVERYBODY, advance, assignments, build, difference, endpoint_state
from control.dispatcher.feed import Encoder, Feed
from control.lifecycle import TaskState
from control.model import (
    Meta,
    NamedPort,
    Node,
    NodeDescription,
    NodeSpec,
    NodeStatus,
    Object,
    PortSpec,
    ProcessSpec,
    TaskSpec,
    TaskStatus,
)
from control.rpc import control_pb2 as pb
from control.store.tables import Event, Snapshot, event

S = TaskState


def records(node: str, *objects: Object) -> dict[Key, Record]:
    return assignments(build(Snapshot.of(objects, 1)), node)


# --- the records --------------------------------------------------------------------------------------------------


def test_settings_and_peers_go_to_everybody(make: Any) -> None:
    found = records("node1", make.cluster(vxlan_port=4790), make.node(1), make.node(2, state="down"))
    assert found == {
        ("settings", ""): Settings(
            cluster_id="cluster",
            cluster_name="default",
            vxlan_port=4790,
            heartbeat_period_s=5.0,
            address_pools=("10.128.0.0/9",),
        ),
        ("peer", "node1"): Peer(node_id="node1", number=1, name="h1", data_address="192.0.2.1", state="ready"),
        ("peer", "node2"): Peer(node_id="node2", number=2, name="h2", data_address="192.0.2.2", state="down"),
        ("node", "node1"): Node(
            id="node1",
            number=1,
            description=NodeDescription(hostname="h1"),
            status=NodeStatus(data_address="192.0.2.1"),
        ),
    }


@pytest.mark.parametrize(
    ("state", "desired", "node_state", "expected"),
    [
        (S.ASSIGNED, S.RUNNING, "ready", "starting"),
        (S.READY, S.READY, "ready", "starting"),
        (S.STARTING, S.RUNNING, "ready", "starting"),
        (S.RUNNING, S.RUNNING, "ready", "ready"),
        (S.RUNNING, S.RUNNING, "unknown", "ready"),
        (S.RUNNING, S.COMPLETE, "ready", "ready"),
        (S.RUNNING, S.READY, "ready", "starting"),
        (S.RUNNING, S.SHUTDOWN, "ready", "draining"),
        (S.RUNNING, S.REMOVE, "ready", "draining"),
        (S.STARTING, S.SHUTDOWN, "ready", "draining"),
        (S.RUNNING, S.RUNNING, "down", "lost"),
        (S.RUNNING, S.SHUTDOWN, "down", "lost"),
        (S.COMPLETE, S.RUNNING, "ready", None),
        (S.FAILED, S.SHUTDOWN, "down", None),
        (S.ORPHANED, S.RUNNING, "ready", None),
    ],
)
def test_the_state_of_an_endpoint(
    make: Any, state: TaskState, desired: TaskState, node_state: str, expected: str | None
) -> None:
    task = make.task("api", 1, 1, "web", state=state, desired=desired)
    assert endpoint_state(task, make.node(1, state=node_state)) == expected


def test_a_node_hears_of_itself_what_constraints_ask_for_and_no_secret(make: Any) -> None:
    node = msgspec.structs.replace(
        make.node(1), spec=NodeSpec(labels={"edge": "true"}), secret_digest="d", control_address="192.0.2.1:7377"
    )
    told = records("node1", make.cluster(), node)["node", "node1"]
    assert isinstance(told, Node)
    assert (told.spec.labels, told.secret_digest, told.control_address) == ({"edge": "true"}, "", "")
    assert told.status.state == "unknown", (
        "its state goes to everybody; here it would be news with each heartbeat missed"
    )


def test_a_task_on_a_node_that_does_not_exist_is_lost(make: Any) -> None:
    assert endpoint_state(make.task("api", 1, "gone", "web"), None) == "lost"


@pytest.mark.parametrize("state", [S.NEW, S.PENDING])
def test_a_task_that_is_not_placed_is_nobodys(make: Any, state: TaskState) -> None:
    found = records(
        "node1", make.cluster(), make.node(1), make.network("web"), make.task("api", 1, 1, "web", state=state)
    )
    assert {kind for kind, _ in found} == {"settings", "peer", "catalog", "node"}


def test_an_endpoint_says_where_and_who(make: Any) -> None:
    port = PortSpec(target=80, published=8080, mode="host")
    task = make.task("api", 3, 2, "web", ports=(port,))
    mine = make.task("api", 4, 1, "web")
    found = records("node1", make.cluster(), make.node(1), make.node(2), make.network("web"), task, mine)
    assert found["endpoint", "api3/web"] == Endpoint(
        task_id="api3",
        network_id="web",
        service_id="api",
        slot=3,
        node_id="node2",
        address="10.128.0.13",
        hostname="api.3",
        state="ready",
        host_ports=(port,),
    )
    assert ("task", "api3") not in found, "tasks of others are their business"
    assert ("task", "api4") in found


def test_hostnames(make: Any) -> None:
    named = make.task("api", 1, 1, "web")
    named = msgspec.structs.replace(named, spec=TaskSpec(process=ProcessSpec(command=("true",), hostname="mine")))
    everywhere = make.task("agent", 0, 1, "web")
    found = records("node1", make.cluster(), make.node(1), make.network("web"), named, everywhere)
    assert found["endpoint", "api1/web"].hostname == "mine"  # type: ignore[union-attr]
    assert found["endpoint", "agent0/web"].hostname == "agent.h1"  # type: ignore[union-attr]


def test_a_task_goes_to_its_node_without_what_the_node_reported(make: Any) -> None:
    status = TaskStatus(state=S.RUNNING, message="started", pid=12, at_ms=99)
    task = msgspec.structs.replace(make.task("api", 1, 1, "web"), status=status, meta=Meta(version=8))
    found = records("node1", make.cluster(), make.node(1), task)
    assert found["task", "api1"].status == TaskStatus(state=S.ASSIGNED)  # type: ignore[union-attr]
    ended = msgspec.structs.replace(task, status=TaskStatus(state=S.FAILED, error="no"))
    found = records("node1", make.cluster(), make.node(1), ended)
    assert found["task", "api1"].status == TaskStatus(state=S.FAILED), "so that it is not started again"  # type: ignore[union-attr]


def test_a_service_names_its_networks_and_where_its_ports_are_served(make: Any) -> None:
    port = PortSpec(target=80, published=8080)
    service = make.service("api", "web", "db", ports=(port,))
    found = records("node1", make.cluster(), make.node(1), make.network("web"), service, make.task("api", 1, 1, "web"))
    assert found["service", "api"] == ServiceEntry(
        service_id="api",
        name="api",
        endpoint_mode="vip",
        vips=service.vips,
        ports=(port,),
        ingress_network_id="web",
        aliases={"web": (), "db": ()},
    )


def test_a_network_with_a_published_port_is_on_every_node(make: Any) -> None:
    """SwarmKit has an ingress network for it; here the service's own is used."""
    objects = [
        make.cluster(),
        make.node(1),
        make.node(2),
        make.network("web"),
        make.network("db", vni=4098),
        make.service("api", "web", "db", ports=(PortSpec(target=80, published=8080),)),
        make.task("api", 1, 2, "web", "db"),
    ]
    found = records("node1", *objects)
    assert {("network", "web"), ("service", "api"), ("endpoint", "api1/web")} <= set(found)
    assert ("network", "db") not in found
    objects[5] = make.service("api", "web", "db", ports=(PortSpec(target=80, published=8080, mode="host"),))
    assert ("network", "web") not in records("node1", *objects), "host mode: only where a task runs"


def test_one_node_does_not_hear_of_the_networks_of_another(make: Any) -> None:
    found = records(
        "node1",
        make.cluster(),
        make.node(1),
        make.node(2),
        make.network("web"),
        make.service("api", "web"),
        make.task("api", 1, 2, "web"),
    )
    assert {kind for kind, _ in found} == {"settings", "peer", "catalog", "node"}


# --- containers of others -----------------------------------------------------------------------------------------


def test_a_container_on_a_network_is_known_to_all_nodes_on_it(make: Any) -> None:
    mine, other = make.attachment(1, 1, "web", "own"), make.attachment(2, 2, "web", "Own", weight=3)
    found = records("node1", make.cluster(), make.node(1), make.node(2), make.network("web"), mine, other)
    assert found["attachment", "c1"] == mine
    assert ("attachment", "c2") not in found
    endpoints = [e for e in found.values() if isinstance(e, Endpoint)]
    assert [(e.address, e.state, e.weight) for e in endpoints] == [
        ("10.128.1.1", "ready", 1),
        ("10.128.1.2", "ready", 3),
    ]
    entry = found["service", "attached/web/own"]
    assert isinstance(entry, ServiceEntry)
    assert {e.service_id for e in endpoints} == {entry.service_id}
    assert (entry.name, entry.endpoint_mode, entry.vips) == ("own", "dnsrr", ())


def test_a_service_of_its_name_on_its_network_takes_it_in(make: Any) -> None:
    here, elsewhere = make.attachment(1, 1, "web", "api"), make.attachment(2, 1, "db", "api")
    found = records(
        "node1", make.cluster(), make.node(1), make.network("web"), make.network("db", vni=4098),
        make.service("api", "web"), here, elsewhere,
    )  # fmt: skip
    services = {e.task_id: e.service_id for e in found.values() if isinstance(e, Endpoint)}
    assert services == {"c1": "api", "c2": "attached/db/api"}
    assert ("service", "attached/web/api") not in found


@pytest.mark.parametrize(
    ("fields", "node_state", "state"),
    [({}, "down", "lost"), ({"ready": False}, "ready", "starting"), ({"weight": 0}, "ready", "draining")],
)
def test_the_state_of_a_container(make: Any, fields: dict[str, Any], node_state: str, state: str) -> None:
    box = make.attachment(1, 1, "web", "api", **fields)
    found = records("node1", make.cluster(), make.node(1, state=node_state), make.network("web"), box)
    assert [e.state for e in found.values() if isinstance(e, Endpoint)] == [state]


# --- differences --------------------------------------------------------------------------------------------------


def test_difference_leads_from_one_to_the_other(make: Any) -> None:
    old = records("node1", make.cluster(), make.node(1), make.node(2))
    new = records("node1", make.cluster(), make.node(1, state="down"), make.node(3))
    step = difference(old, new)
    assert set(step.changed) == {("peer", "node1"), ("peer", "node3")}
    assert step.removed == {("peer", "node2")}
    assert not difference(old, dict(old))


def test_layers_that_nothing_touched_are_the_same_objects(make: Any) -> None:
    snapshot = Snapshot.of(
        [
            make.cluster(),
            make.node(1),
            make.network("web"),
            make.network("db", vni=4098),
            make.task("api", 1, 1, "web"),
        ],
        1,
    )
    before = build(snapshot)
    step = event(None, make.task("sql", 1, 1, "db"))
    after = advance(before, snapshot.apply(2, [step]), [step], 2)
    assert after.layer("network/web") is before.layer("network/web")
    assert after.layer(EVERYBODY) is before.layer(EVERYBODY)
    assert after.layer("network/db") is not before.layer("network/db")
    assert after.version == 2
    # A write that says nothing to anybody changes nothing.
    touched = event(make.node(1), msgspec.structs.replace(make.node(1), meta=Meta(version=3)))
    assert advance(after, snapshot.apply(3, [touched]), [touched], 3).layer(EVERYBODY) is before.layer(EVERYBODY)


states = st.sampled_from([S.NEW, S.ASSIGNED, S.RUNNING, S.FAILED])
networks = st.sets(st.sampled_from(["web", "db", "ops"]), max_size=2).map(sorted)
ids = st.integers(1, 3)
port = st.sampled_from([(), (PortSpec(target=80, published=80),), (PortSpec(target=80, published=80, mode="host"),)])
DELETED = ("api1", "api2", "node1", "node2", "s1", "s2", "web", "c1", "c2")
changes = st.lists(
    st.one_of(
        st.tuples(st.just("task"), ids, ids, networks, states),
        st.tuples(st.just("service"), ids, networks, port),
        st.tuples(
            st.just("attachment"),
            ids,
            ids,
            st.sampled_from(["web", "db"]),
            st.sampled_from(["s1", "own"]),
            st.booleans(),
        ),
        st.tuples(st.just("lease"), ids, st.sampled_from(["", "10.128.1.0/28"])),
        st.tuples(st.just("node"), ids, st.sampled_from(["ready", "down"]), st.sampled_from(["h1", "other"])),
        st.tuples(st.just("network"), st.sampled_from(["web", "db", "ops"]), st.integers(4096, 4099)),
        st.tuples(st.just("period"), st.floats(1, 9)),
        st.tuples(
            st.just("delete"), st.sampled_from(["api1", "api2", "node1", "node2", "s1", "s2", "web", "c1", "c2"])
        ),
        st.just(("commit",)),
    ),
    max_size=30,
)


class Replay:
    """A store that changes, and a node that follows it by differences."""

    def __init__(self, make: Any) -> None:
        self.make = make
        self.snapshot = Snapshot.of([make.cluster()], 1)
        self.tables = build(self.snapshot)
        self.pending: list[Event] = []
        self.encoder, self.feed = Encoder(), Feed("node1")
        self.held: dict[Key, Record] = {}
        self._take(self.feed.complete(self.tables, self.encoder))

    def follow(self, count: int) -> None:
        """Tell the tables of the next `count` changes, and the node of what follows from them."""
        if count <= 0:
            return
        events, self.pending = self.pending[:count], self.pending[count:]
        self.tables = advance(self.tables, self.snapshot, events, self.snapshot.version - len(self.pending))
        message = self.feed.next(self.tables, self.encoder)
        self.encoder.end_round(self.tables)
        if message is not None:
            self._take(message)

    def _take(self, message: pb.Assignments) -> None:
        for key in message.removed:
            del self.held[key.kind, key.key]  # type: ignore[arg-type]
        for wire in message.records:
            record = decode(wire.kind, wire.value)  # type: ignore[arg-type]
            self.held[key_of(record)] = record

    def put(self, after: Object) -> None:
        self._apply(event(self.snapshot.get(type(after), after.id), after))

    def delete(self, id_: str) -> None:
        for obj in self.snapshot.objects():
            if obj.id == id_:
                self._apply(event(obj, None))
                return

    def _apply(self, step: Event) -> None:
        self.snapshot = self.snapshot.apply(self.snapshot.version + 1, [step])
        self.pending.append(step)

    def object_of(self, change: Any) -> Object:
        make = self.make
        match change:
            case ("task", slot, node, nets, state):
                return make.task("api", slot, node, *nets, state=state)  # type: ignore[no-any-return]
            case ("service", number, nets, ports):
                return make.service(f"s{number}", *nets, ports=ports)  # type: ignore[no-any-return]
            case ("attachment", number, node, network, name, ready):
                port = NamedPort(name="http", port=80 + number)
                return make.attachment(number, node, network, name, ready=ready, named_ports=(port,))  # type: ignore[no-any-return]
            case ("lease", number, block):
                return make.lease(number, 1, "web", block)  # type: ignore[no-any-return]
            case ("node", number, state, name):
                node = make.node(number, state=state)
                description = msgspec.structs.replace(node.description, hostname=name)
                return msgspec.structs.replace(node, description=description)  # type: ignore[no-any-return]
            case ("network", name, vni):
                return make.network(name, vni=vni)  # type: ignore[no-any-return]
            case ("period", seconds):
                return make.cluster(period_s=seconds)  # type: ignore[no-any-return]
        raise AssertionError(change)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(changes, st.integers(0, 3))
def test_following_events_gives_what_building_anew_gives(make: Any, script: list[Any], lag: int) -> None:
    """Also when the snapshot is ahead of the events by some changes (`lag`)."""
    replay = Replay(make)
    for change in script:
        match change:
            case ("commit",):
                replay.follow(len(replay.pending) - lag)
            case ("delete", id_):
                replay.delete(id_)
            case _:
                replay.put(replay.object_of(change))
    replay.follow(len(replay.pending) // 2)
    replay.follow(len(replay.pending))
    anew = build(replay.snapshot)
    assert replay.tables.layers == anew.layers
    assert replay.tables.ingress == anew.ingress
    assert replay.held == assignments(anew, "node1")
