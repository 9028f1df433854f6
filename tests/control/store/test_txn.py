"""The rules of a commit."""

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from control.lifecycle import DESIRED_STATES, TaskState, Writer, may_delete, may_desire, may_observe
from control.model import (
    Cluster,
    Meta,
    Network,
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
from control.store.errors import (
    AddressConflict,
    ForbiddenTransition,
    NameConflict,
    NumberConflict,
    PortConflict,
    StoreError,
    VersionConflict,
)
from control.store.tables import Snapshot, claims, event
from control.store.txn import Delete, Put, prepare

S = TaskState
ORCH = Writer.ORCHESTRATOR
replace = msgspec.structs.replace
NEW = Meta()
WRITTEN = Meta(version=3, created_ms=10, updated_ms=20)


def network(id_="w1", name="web", gateway="", vni=0, meta=NEW):
    return Network(id=id_, meta=meta, spec=NetworkSpec(name=name), gateway=gateway, vni=vni)


def service(id_="s1", name="api", vips=(), wants=(), has=(), meta=NEW):
    return Service(
        id=id_,
        meta=meta,
        spec=ServiceSpec(name=name, task=TaskSpec(), ports=tuple(wants)),
        vips=tuple(VirtualAddress(network_id=n, address=a) for n, a in vips),
        ports=tuple(has),
    )


def task(id_="t1", state=S.NEW, desired=S.RUNNING, node="", address="", slot=1, service_id="s1", meta=NEW):
    return Task(
        id=id_,
        meta=meta,
        service_id=service_id,
        service_name="api",
        slot=slot,
        node_id=node,
        spec=TaskSpec(process=ProcessSpec(command=("true",))),
        status=TaskStatus(state=state),
        desired_state=desired,
        addresses=(TaskAddress(network_id="w1", address=address),) if address else (),
    )


def check(*arguments):
    """What the events of a commit are, if it may be made."""
    return prepare(*arguments).events


def refused(error, text, snapshot, *changes, writer=ORCH):
    with pytest.raises(error) as caught:
        check(snapshot, changes, writer, 99)
    assert str(caught.value) == text
    assert isinstance(caught.value, StoreError)


# --- versions and stamps ------------------------------------------------------------------------------------------


def test_creation_is_stamped():
    (change,) = check(Snapshot.of([], version=7), [Put(network())], ORCH, 99)
    assert change == event(None, network(meta=Meta(version=8, created_ms=99, updated_ms=99)))


def test_update_keeps_the_time_of_creation():
    snapshot = Snapshot.of([network(meta=WRITTEN)], version=7)
    changed = replace(network(meta=WRITTEN), vni=5)
    (change,) = check(snapshot, [Put(changed)], ORCH, 99)
    assert change.before == network(meta=WRITTEN)
    assert change.after == replace(changed, meta=Meta(version=8, created_ms=10, updated_ms=99))


def test_deletion_has_what_it_removes():
    snapshot = Snapshot.of([network(meta=WRITTEN)], version=7)
    gone = (event(network(meta=WRITTEN), None),)
    assert check(snapshot, [Delete(Network, "w1")], ORCH, 99) == gone
    assert check(snapshot, [Delete(Network, "w1", 3)], ORCH, 99) == gone
    assert prepare(snapshot, [Delete(Network, "w1")], ORCH, 99).after.get(Network, "w1") is None


def test_versions_must_match():
    snapshot = Snapshot.of([network(meta=WRITTEN)], version=7)
    refused(VersionConflict, 'network "web" already exists', snapshot, Put(network()))
    refused(VersionConflict, 'network "new" no longer exists', snapshot, Put(network("w2", "new", meta=WRITTEN)))
    text = 'network "web" has changed meanwhile (read at version 2, now 3)'
    refused(VersionConflict, text, snapshot, Put(network(meta=Meta(version=2))))
    refused(VersionConflict, text, snapshot, Delete(Network, "w1", 2))
    refused(VersionConflict, "resting address x no longer exists", snapshot, Delete(RestingAddress, "x"))
    twice = "network w1 is changed twice in one commit"
    refused(VersionConflict, twice, snapshot, Put(network(meta=WRITTEN)), Delete(Network, "w1"))


def test_all_or_nothing():
    snapshot = Snapshot.of([network(meta=WRITTEN)], version=7)
    with pytest.raises(NameConflict):
        check(snapshot, [Put(service()), Put(network("w2", "web"))], ORCH, 99)
    assert snapshot.get(Service, "s1") is None


# --- names and numbers --------------------------------------------------------------------------------------------


def test_names_are_unique_per_kind():
    snapshot = Snapshot.of([network(meta=WRITTEN), service(meta=WRITTEN)])
    refused(NameConflict, 'network "Web" already exists', snapshot, Put(network("w2", "Web")))
    refused(NameConflict, 'service "api" already exists', snapshot, Put(service("s2", "api")))
    refused(NameConflict, 'network "b" already exists', Snapshot(), Put(network("w1", "b")), Put(network("w2", "b")))
    assert check(snapshot, [Put(service("s2", "web")), Put(network("w2", "api"))], ORCH, 1)


def test_a_name_is_free_once_its_holder_is_gone_or_renamed():
    snapshot = Snapshot.of([network(meta=WRITTEN)])
    assert check(snapshot, [Put(network("w2", "web")), Delete(Network, "w1")], ORCH, 1)
    assert check(snapshot, [Put(network("w2", "web")), Put(network("w1", "old", meta=WRITTEN))], ORCH, 1)
    refused(
        NameConflict,
        'network "b" already exists',
        Snapshot.of([network(meta=WRITTEN), network("w2", "b", meta=WRITTEN)]),
        Put(network("w1", "b", meta=WRITTEN)),
    )


def test_numbers_are_unique():
    one = Node(id="a", number=1, description=NodeDescription(hostname="h1"), meta=WRITTEN)
    two = Node(id="b", number=1, description=NodeDescription(hostname="h2"))
    text = 'node "h2" cannot have number 1: already used by node "h1"'
    refused(NumberConflict, text, Snapshot.of([one]), Put(two))
    text = 'network "b" cannot have VXLAN id 7: already used by network "web"'
    refused(NumberConflict, text, Snapshot.of([network(vni=7, meta=WRITTEN)]), Put(network("w2", "b", vni=7)))
    assert check(Snapshot.of([network(meta=WRITTEN)]), [Put(network("w2", "b"))], ORCH, 1)  # none is not a number


def test_one_cluster_only():
    text = 'there is a cluster already: cluster "default"'
    refused(NameConflict, text, Snapshot.of([Cluster(id="c1", meta=WRITTEN)]), Put(Cluster(id="c2")))


# --- addresses and ports ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("holder", "text"),
    [
        (network(gateway="10.0.0.1", meta=WRITTEN), 'already used by network "web"'),
        (service(vips=[("w1", "10.0.0.1")], meta=WRITTEN), 'already used by service "api"'),
        (task("t0", address="10.0.0.1", meta=WRITTEN), 'already used by task "api.1" (t0)'),
        (task("t0", S.RUNNING, S.SHUTDOWN, "n", "10.0.0.1", meta=WRITTEN), 'already used by task "api.1" (t0)'),
        (
            RestingAddress(id="w1/10.0.0.1", network_id="w1", address="10.0.0.1", until_ms=5, meta=WRITTEN),
            "it is at rest",
        ),
    ],
)
def test_an_address_has_one_holder(holder, text):
    snapshot = Snapshot.of([holder])
    before = f'task "api.2" (t2) cannot have address 10.0.0.1: {text}'
    refused(AddressConflict, before, snapshot, Put(task("t2", slot=2, address="10.0.0.1")))
    assert check(snapshot, [Put(task("t2", slot=2, address="10.0.0.2"))], ORCH, 1)


def test_an_address_goes_from_task_to_rest_to_task():
    live = task("t1", S.RUNNING, S.SHUTDOWN, "n", "10.0.0.1", meta=WRITTEN)
    ended = replace(live, status=TaskStatus(state=S.SHUTDOWN))
    rest = RestingAddress(id="w1/10.0.0.1", network_id="w1", address="10.0.0.1", until_ms=5)
    snapshot = Snapshot.of([live], version=3)
    refused(
        AddressConflict,
        'resting address 10.0.0.1 cannot have address 10.0.0.1: already used by task "api.1" (t1)',
        snapshot,
        Put(rest),
    )
    snapshot = prepare(snapshot, [Put(ended), Put(rest)], Writer.AGENT, 1).after
    again = task("t2", slot=2, address="10.0.0.1")
    refused(AddressConflict, 'task "api.2" (t2) cannot have address 10.0.0.1: it is at rest', snapshot, Put(again))
    snapshot = prepare(snapshot, [Delete(RestingAddress, rest.id), Put(again)], ORCH, 1).after
    assert snapshot.address_holder("w1", "10.0.0.1").id == "t2"


def test_the_same_address_on_another_network_is_another_address():
    snapshot = Snapshot.of([network(gateway="10.0.0.1", meta=WRITTEN)])
    assert check(snapshot, [Put(network("w2", "b", gateway="10.0.0.1"))], ORCH, 1)


def test_published_ports():
    web = PortSpec(target=80, published=8080)
    snapshot = Snapshot.of([service(wants=[web], meta=WRITTEN)])
    text = 'cannot publish port 8080 of service "web": already used by service "api"'
    refused(PortConflict, text, snapshot, Put(service("s2", "web", wants=[web])))
    refused(PortConflict, text, snapshot, Put(service("s2", "web", has=[replace(web, target=81)])))
    udp = replace(web, protocol="udp")
    refused(
        PortConflict,
        'cannot publish port 8080/udp of service "web": already used by service "api"',
        Snapshot.of([service(has=[udp], meta=WRITTEN)]),
        Put(service("s2", "web", wants=[udp])),
    )
    assert check(
        snapshot, [Put(service("s2", "web", wants=[udp, replace(web, mode="host"), PortSpec(target=1)]))], ORCH, 1
    )


def test_a_port_is_held_until_the_allocator_has_taken_it_away():
    web = PortSpec(target=80, published=8080)
    dropped = Snapshot.of([service(wants=[], has=[web], meta=WRITTEN)])
    with pytest.raises(PortConflict):
        check(dropped, [Put(service("s2", "web", wants=[web]))], ORCH, 1)
    gone = Snapshot.of([service(meta=WRITTEN)])
    assert check(gone, [Put(service("s2", "web", wants=[web]))], ORCH, 1)


# --- tasks --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("writer", Writer)
def test_every_observed_transition_follows_the_table(writer):
    for before in S:
        old = task(state=before, node="n1", meta=WRITTEN)
        for after in S:
            change = Put(replace(old, status=TaskStatus(state=after)))
            if may_observe(writer, before, after):
                assert check(Snapshot.of([old]), [change], writer, 1)
            else:
                with pytest.raises(ForbiddenTransition):
                    check(Snapshot.of([old]), [change], writer, 1)


@pytest.mark.parametrize("writer", Writer)
def test_every_desired_transition_follows_the_table(writer):
    for before in DESIRED_STATES:
        old = task(state=S.RUNNING, desired=before, node="n1", meta=WRITTEN)
        for after in S:
            change = Put(replace(old, desired_state=after))
            if may_desire(writer, before, after):
                assert check(Snapshot.of([old]), [change], writer, 1)
            else:
                with pytest.raises(ForbiddenTransition):
                    check(Snapshot.of([old]), [change], writer, 1)


def test_every_deletion_follows_the_table():
    for observed in S:
        for desired in DESIRED_STATES:
            snapshot = Snapshot.of([task(state=observed, desired=desired, node="n1", meta=WRITTEN)])
            if may_delete(observed, desired):
                assert check(snapshot, [Delete(Task, "t1")], ORCH, 1)
            else:
                with pytest.raises(ForbiddenTransition):
                    check(snapshot, [Delete(Task, "t1")], ORCH, 1)


def test_what_a_task_never_changes():
    placed = task(state=S.ASSIGNED, node="n1", meta=WRITTEN)
    snapshot = Snapshot.of([placed])
    text = 'task "api.1" (t1) cannot move to another node: tasks are replaced'
    refused(ForbiddenTransition, text, snapshot, Put(replace(placed, node_id="n2")))
    refused(
        ForbiddenTransition,
        text,
        snapshot,
        Put(replace(task(state=S.REJECTED, meta=WRITTEN), node_id="")),
        writer=Writer.ENFORCER,
    )
    text = 'task "api.1" (t1) cannot move to another service or slot: tasks are replaced'
    refused(ForbiddenTransition, text, snapshot, Put(replace(placed, slot=2)))
    refused(ForbiddenTransition, text, snapshot, Put(replace(placed, service_id="s2")))


def test_a_task_needs_a_node_to_be_assigned():
    snapshot = Snapshot.of([task(state=S.PENDING, meta=WRITTEN)])
    text = 'task "api.1" (t1) cannot be assigned without a node'
    refused(ForbiddenTransition, text, snapshot, Put(task(state=S.ASSIGNED, meta=WRITTEN)), writer=Writer.SCHEDULER)
    assert check(snapshot, [Put(task(state=S.ASSIGNED, node="n1", meta=WRITTEN))], Writer.SCHEDULER, 1)


def test_how_a_task_begins():
    assert check(Snapshot(), [Put(task())], ORCH, 1)
    assert check(Snapshot(), [Put(task(desired=S.READY, node="n1"))], ORCH, 1)  # global services choose the node
    refused(
        ForbiddenTransition, 'the agent may not create task "api.1" (t1)', Snapshot(), Put(task()), writer=Writer.AGENT
    )
    text = 'task "api.1" (t1) cannot be created as running'
    refused(ForbiddenTransition, text, Snapshot(), Put(task(state=S.RUNNING, node="n1")))
    text = 'task "api.1" (t1) cannot be created to be shutdown'
    refused(ForbiddenTransition, text, Snapshot(), Put(task(desired=S.SHUTDOWN)))


def test_messages_of_forbidden_transitions():
    snapshot = Snapshot.of([task(state=S.RUNNING, desired=S.SHUTDOWN, node="n", meta=WRITTEN)])
    back = task(state=S.PENDING, desired=S.SHUTDOWN, node="n", meta=WRITTEN)
    text = 'the allocator may not take task "api.1" (t1) from running to pending'
    refused(ForbiddenTransition, text, snapshot, Put(back), writer=Writer.ALLOCATOR)
    text = 'the orchestrator may not want task "api.1" (t1) running when it is wanted shutdown'
    refused(ForbiddenTransition, text, snapshot, Put(task(state=S.RUNNING, node="n", meta=WRITTEN)))
    text = 'task "api.1" (t1) cannot be removed by the orchestrator while it is running and wanted shutdown'
    refused(ForbiddenTransition, text, snapshot, Delete(Task, "t1"))


# --- property: no claim ever has two holders ----------------------------------------------------------------------

some = st.sampled_from(["a", "b", "c"])
addresses = st.sampled_from(["", "10.0.0.1", "10.0.0.2"])
objects = st.one_of(
    st.builds(lambda i, n, g: network(i, n, gateway=g), st.sampled_from(["w1", "w2"]), some, addresses),
    st.builds(
        lambda i, n, a, p: service(i, n, vips=[("w1", a)] if a else [], wants=[PortSpec(target=1, published=p)]),
        some,
        some,
        addresses,
        st.integers(0, 2),
    ),
    st.builds(lambda i, a: task(i, address=a), some, addresses),
)


@given(st.lists(st.lists(st.tuples(st.booleans(), objects), min_size=1, max_size=4), max_size=15))
@settings(max_examples=100, deadline=None)
def test_whatever_is_tried_no_claim_has_two_holders(tries):
    view = Snapshot()
    for changes in tries:
        wanted = []
        for is_put, obj in changes:
            stored = view.get(type(obj), obj.id)
            if is_put:
                wanted.append(Put(replace(obj, meta=stored.meta) if stored is not None else obj))
            else:
                wanted.append(Delete(type(obj), obj.id))
        try:
            prepared = prepare(view, wanted, ORCH, 1)
        except StoreError:
            continue
        view = prepared.after
        assert all(view.get(type(e.object), e.object.id) == e.after for e in prepared.events)
        held = [claim for obj in view.objects() for claim in claims(obj)]
        assert len(held) == len(set(held))
