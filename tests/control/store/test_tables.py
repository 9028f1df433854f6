"""Snapshots: queries, and indexes that stay equal to a recomputation from scratch."""

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from control.lifecycle import TaskState
from control.model import (
    KINDS,
    Cluster,
    Network,
    NetworkAttachment,
    NetworkSpec,
    Node,
    NodeDescription,
    PortSpec,
    ProcessSpec,
    RestingAddress,
    Service,
    ServiceSpec,
    Task,
    TaskAddress,
    TaskSpec,
    TaskStatus,
    VirtualAddress,
)
from control.store.tables import Snapshot, event, index_keys


def task(id_, service="s1", slot=1, node="", networks=(), addresses=(), state=TaskState.NEW):
    return Task(
        id=id_,
        service_id=service,
        service_name=service,
        slot=slot,
        node_id=node,
        spec=TaskSpec(
            process=ProcessSpec(command=("true",)), networks=tuple(NetworkAttachment(network_id=n) for n in networks)
        ),
        status=TaskStatus(state=state),
        addresses=tuple(TaskAddress(network_id=n, address=a) for n, a in addresses),
    )


def service(id_, name, networks=(), vips=(), ports=()):
    spec = TaskSpec(networks=tuple(NetworkAttachment(network_id=n) for n in networks))
    return Service(
        id=id_,
        spec=ServiceSpec(name=name, task=spec),
        vips=tuple(VirtualAddress(network_id=n, address=a) for n, a in vips),
        ports=tuple(ports),
    )


def network(id_, name, gateway="", vni=0):
    return Network(id=id_, spec=NetworkSpec(name=name), gateway=gateway, vni=vni)


def node(id_, number, hostname=""):
    return Node(id=id_, number=number, description=NodeDescription(hostname=hostname))


def ids(objects):
    return [o.id for o in objects]


def test_an_empty_snapshot():
    empty = Snapshot()
    assert empty.version == 0
    assert empty.get(Node, "n") is None
    assert list(empty.all(Task)) == []
    assert len(empty.all(Task)) == 0
    with pytest.raises(LookupError):
        empty.cluster()


def test_names_are_found_without_regard_to_case():
    view = Snapshot.of([network("w1", "Web"), service("s1", "API"), node("b", 2, "host"), node("a", 1, "Host")])
    assert view.by_name(Network, "web").id == "w1"
    assert view.by_name(Service, "api").id == "s1"
    assert view.by_name(Node, "HOST").id == "a"
    assert view.by_name(Network, "we") is None
    assert view.by_name(Network, "api") is None
    assert view.by_name(Task, "s1") is None


def test_prefixes():
    view = Snapshot.of([task("abc"), task("abd"), task("ab"), task("b")])
    assert ids(view.by_prefix(Task, "ab")) == ["ab", "abc", "abd"]
    assert ids(view.by_prefix(Task, "abd")) == ["abd"]
    assert ids(view.by_prefix(Task, "")) == ["ab", "abc", "abd", "b"]
    assert ids(view.by_prefix(Task, "c")) == []
    assert ids(view.by_prefix(Task, "\U0010ffff")) == []
    assert view.by_prefix(Network, "a") == []


def test_tasks_by_service_slot_node_and_network():
    view = Snapshot.of(
        [
            Cluster(id="c"),
            task("t3", slot=10, node="n1", networks=("w1",)),
            task("t1", slot=2, node="n1", addresses=(("w2", "10.0.0.9"),)),
            task("t2", slot=2, node="n2", networks=("w1",), addresses=(("w1", "10.0.0.2"),), state=TaskState.FAILED),
            task("t4", service="s11", slot=2),
        ]
    )
    assert ids(view.tasks_of_service("s1")) == ["t1", "t2", "t3"]  # by slot, as numbers
    assert ids(view.tasks_of_service("s")) == []
    assert ids(view.tasks_in_slot("s1", 2)) == ["t1", "t2"]
    assert ids(view.tasks_in_slot("s1", 1)) == []
    assert ids(view.tasks_on_node("n1")) == ["t1", "t3"]
    assert ids(view.tasks_on_node("")) == []
    assert ids(view.tasks_on_network("w1")) == ["t2", "t3"]
    assert ids(view.tasks_on_network("w2")) == ["t1"]
    assert view.cluster().id == "c"


def test_addresses_and_ports():
    view = Snapshot.of(
        [
            network("w1", "web", gateway="10.0.0.1"),
            service(
                "s1", "api", networks=("w1",), vips=(("w1", "10.0.0.2"),), ports=[PortSpec(target=80, published=8080)]
            ),
            service("s2", "host", ports=[PortSpec(target=80, published=9090, mode="host"), PortSpec(target=1)]),
            task("t1", addresses=(("w1", "10.0.0.3"),), state=TaskState.RUNNING),
            task("t2", addresses=(("w1", "10.0.0.4"),), state=TaskState.FAILED),
            RestingAddress(id="w1/10.0.0.5", network_id="w1", address="10.0.0.5", until_ms=1),
            task("t3", addresses=(("w10", "10.0.0.6"),)),
        ]
    )
    assert view.addresses_taken("w1") == {"10.0.0.1", "10.0.0.2", "10.0.0.3", "10.0.0.5"}
    assert view.address_holder("w1", "10.0.0.1").id == "w1"
    assert view.address_holder("w1", "10.0.0.3").id == "t1"
    assert view.address_holder("w1", "10.0.0.4") is None  # an ended task holds nothing
    assert view.address_holder("w1", "10.0.0.5").id == "w1/10.0.0.5"
    assert view.port_owner("tcp", 8080).id == "s1"
    assert view.port_owner("udp", 8080) is None
    assert view.port_owner("tcp", 9090) is None  # host mode: two nodes may both have it
    assert ids(view.services_on_network("w1")) == ["s1"]


def test_a_held_snapshot_does_not_change():
    before = Snapshot.of([task(f"t{i:04d}", slot=i) for i in range(1000)], version=5)
    kept = list(before.all(Task))
    changed = msgspec.structs.replace(before.get(Task, "t0500"), node_id="n1")
    after = before.apply(6, [event(before.get(Task, "t0500"), changed), event(before.get(Task, "t0001"), None)])
    assert list(before.all(Task)) == kept
    assert before.version == 5
    assert ids(before.tasks_on_node("n1")) == []
    assert after.version == 6
    assert ids(after.tasks_on_node("n1")) == ["t0500"]
    assert after.get(Task, "t0001") is None
    assert len(after.all(Task)) == 999


# --- property: the index is the union of the objects' keys --------------------------------------------------------

some_id = st.sampled_from(["a", "ab", "b", "ba"])
few = st.sampled_from(["x", "y"])
address = st.sampled_from(["10.0.0.1", "10.0.0.2"])
objects = st.one_of(
    st.builds(node, some_id, st.integers(1, 3), few),
    st.builds(network, some_id, few, address, st.integers(0, 2)),
    st.builds(
        service,
        some_id,
        few,
        st.lists(few, max_size=2),
        st.lists(st.tuples(few, address), max_size=2),
        st.lists(st.builds(PortSpec, target=st.just(80), published=st.integers(0, 2)), max_size=2),
    ),
    st.builds(
        task,
        some_id,
        few,
        st.integers(0, 2),
        st.sampled_from(["", "n1"]),
        st.lists(few, max_size=2),
        st.lists(st.tuples(few, address), max_size=2),
        st.sampled_from([TaskState.NEW, TaskState.RUNNING, TaskState.FAILED]),
    ),
)
steps = st.lists(st.lists(st.tuples(st.booleans(), objects), max_size=6), max_size=8)


@given(steps)
@settings(max_examples=100, deadline=None)
def test_indexes_equal_a_recomputation(steps):
    view = Snapshot()
    model = {}
    for version, step in enumerate(steps, start=1):
        events = []
        for key, (is_put, obj) in {(type(o), o.id): (p, o) for p, o in step}.items():
            before = model.get(key)
            if is_put:
                events.append(event(before, obj))
                model[key] = obj
            elif before is not None:
                events.append(event(before, None))
                del model[key]
        view = view.apply(version, events)
    assert {(type(o), o.id): o for o in view.objects()} == model
    assert set(view._index) == {key for obj in model.values() for key in index_keys(obj)}
    for cls in KINDS.values():
        assert ids(view.all(cls)) == sorted(i for c, i in model if c is cls)
    tasks = [o for o in model.values() if isinstance(o, Task)]
    for x in ("x", "y"):
        by_service = [t for t in tasks if t.service_id == x]
        assert ids(view.tasks_of_service(x)) == ids(sorted(by_service, key=lambda t: (t.slot, t.id)))
        on = [t for t in tasks if x in {n.network_id for n in t.spec.networks} | {a.network_id for a in t.addresses}]
        assert ids(view.tasks_on_network(x)) == sorted(ids(on))
    assert ids(view.tasks_on_node("n1")) == sorted(t.id for t in tasks if t.node_id)
    assert Snapshot.of(model.values())._index._size == view._index._size
