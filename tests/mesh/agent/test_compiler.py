"""A Compiler that has seen one view after the other says what one that sees the last for the first time says."""

from __future__ import annotations

from dataclasses import replace
from types import MappingProxyType

from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace as changed

from control.assignment import Endpoint, Key, Peer, Record, ServiceEntry, Settings, key_of
from control.lifecycle import TaskState
from control.model import (
    Attachment,
    BalancePolicy,
    Network,
    NetworkSpec,
    Node,
    NodeSpec,
    PortSpec,
    ProcessSpec,
    Task,
    TaskAddress,
    TaskSpec,
    TunnelKey,
    VirtualAddress,
)
from mesh.agent.attached import Guest, with_attached
from mesh.agent.compile import Compiler, compile  # noqa: A004 - the architecture's name for it
from mesh.agent.view import STEPS_MAX, Assignments, LocalTask, Rumours, Told, View

NODES, NETWORKS, SERVICES, SLOTS = ("n1", "n2", "n3"), ("a", "b", "c"), ("s1", "s2", "s3"), (1, 2, 3, 4)
SETTINGS = Settings(cluster_id="c", cluster_name="lab", vxlan_port=4789, heartbeat_period_s=1.0)

nodes, networks, services = st.sampled_from(NODES), st.sampled_from(NETWORKS), st.sampled_from(SERVICES)
slots, flags = st.sampled_from(SLOTS), st.booleans()
ports = st.lists(
    st.builds(
        PortSpec,
        target=st.just(80),
        published=st.sampled_from((0, 8080, 8081)),
        mode=st.sampled_from(("ingress", "host")),
        constraints=st.sampled_from(((), ("node.labels.edge==yes",))),
    ),
    max_size=2,
).map(tuple)


@st.composite
def network(draw: st.DrawFn) -> Network:
    id_ = draw(networks)
    number = NETWORKS.index(id_) + 1
    has_addresses, ipv6 = draw(flags), draw(flags)
    return Network(
        id=id_,
        spec=NetworkSpec(name=f"net-{id_}", internal=draw(flags), encrypted=draw(flags)),
        vni=4095 + number,
        subnet=f"10.{number}.0.0/24" if has_addresses else "",
        gateway=f"10.{number}.0.1" if has_addresses else "",
        subnet6=f"fd00:{number}::/64" if ipv6 else "",
        gateway6=f"fd00:{number}::1" if ipv6 else "",
    )


@st.composite
def service(draw: st.DrawFn) -> ServiceEntry:
    id_, on = draw(services), draw(st.sets(networks))
    number = SERVICES.index(id_)
    return ServiceEntry(
        service_id=id_,
        name=draw(st.sampled_from((id_, "other"))),
        endpoint_mode="vip",
        vips=tuple(
            VirtualAddress(network_id=n, address=f"10.{NETWORKS.index(n) + 1}.0.{200 + number}") for n in sorted(on)
        ),
        ports=draw(ports),
        ingress_network_id=draw(st.sampled_from(("", *NETWORKS))),
        aliases=dict.fromkeys(draw(st.sets(networks)), ("alias",)),
        balance=draw(st.sampled_from((BalancePolicy(), BalancePolicy(scheduler="mh")))),
    )


@st.composite
def endpoint(draw: st.DrawFn) -> Endpoint:
    slot, on = draw(slots), draw(networks)
    return Endpoint(
        task_id=f"t{slot}",
        network_id=on,
        service_id=draw(services),
        slot=slot,
        node_id=draw(nodes),
        address=f"10.{NETWORKS.index(on) + 1}.0.{10 + slot}",
        hostname=f"h{slot}",
        state=draw(st.sampled_from(("starting", "ready", "draining", "lost"))),
        host_ports=draw(ports),
        weight=draw(st.sampled_from((1, 3))),
    )


@st.composite
def task(draw: st.DrawFn) -> Task:
    slot, on = draw(slots), draw(st.permutations(NETWORKS))
    addresses = tuple(TaskAddress(network_id=n, address="10.9.9.9") for n in on[:2])
    spec = TaskSpec(process=ProcessSpec(command=("serve",)))
    return Task(
        id=f"t{slot}", service_id="s1", service_name="s1", slot=slot, node_id="n1", spec=spec, addresses=addresses
    )


@st.composite
def peer(draw: st.DrawFn) -> Peer:
    node_id = draw(nodes)
    number = NODES.index(node_id) + 1
    return Peer(
        node_id=node_id,
        number=number,
        name=draw(st.sampled_from((node_id, f"{node_id}-new"))),
        data_address=draw(st.sampled_from(("", f"10.66.0.1{number}", f"10.66.0.2{number}"))),
        state=draw(st.sampled_from(("ready", "down"))),
        tunnel_keys=draw(st.sampled_from(((), (TunnelKey(slot=1, key="A" * 43 + "="),)))),
    )


own_node = st.sampled_from(("yes", "no")).map(lambda v: Node(id="n1", number=1, spec=NodeSpec(labels={"edge": v})))
cluster = st.sampled_from((4789, 4790)).map(lambda port: changed(SETTINGS, vxlan_port=port))
# What changes often is drawn often.
record = st.one_of(*[endpoint()] * 5, *[service()] * 2, network(), task(), peer(), own_node, cluster)
news = st.lists(record, min_size=1, max_size=4)
told = st.builds(Told, st.sampled_from(("ready", "draining", "hidden")))
own_tasks = st.dictionaries(
    slots.map(lambda slot: f"t{slot}"),
    st.builds(LocalTask, st.sampled_from((TaskState.RUNNING, TaskState.FAILED)), st.sampled_from((None, "/ns")), flags),
)
rumours = st.builds(
    Rumours,
    st.dictionaries(nodes, st.sampled_from(("alive", "suspect", "dead"))),
    st.dictionaries(nodes, st.dictionaries(slots.map(lambda slot: f"t{slot}"), told)),
    st.dictionaries(st.sampled_from(("printer", "n2")), st.just("192.0.2.1")),
)
guests = st.lists(
    st.builds(
        lambda name, on, ready, ports: Guest(
            Attachment(
                id=f"g{name}", node_id="n1", network_id=on, service="guest", name=f"c{name}", address="10.1.0.99",
                ready=ready, ports=ports,
            ),
            "/guest",
            "eth0",
        ),
        slots,
        networks,
        flags,
        ports,
    ),
    max_size=2,
)  # fmt: skip
EVERYTHING: list[Record] = [
    SETTINGS,
    *(Peer(node_id=n, number=i, name=n, data_address=f"10.66.0.1{i}", state="ready") for i, n in enumerate(NODES, 1)),
    *(
        Network(id=n, spec=NetworkSpec(name=n), vni=4095 + i, subnet=f"10.{i}.0.0/24", gateway=f"10.{i}.0.1")
        for i, n in enumerate(NETWORKS, 1)
    ),
]
BEGIN = Assignments().updated(0, 1, EVERYTHING, ())


@st.composite
def steps(draw: st.DrawFn) -> list[View]:
    """The views of a node's life, one after the other."""
    view, base, attached = View("n1", "10.66.0.11", "/run/netns", BEGIN, {}), BEGIN, []
    views = [view]
    for _ in range(draw(st.integers(1, 12))):
        match draw(st.sampled_from(("news", "news", "news", "gone", "whole", "again", "tasks", "rumours", "guests"))):
            case "news":
                base = base.updated(base.sequence, base.sequence + 1, draw(news), ())
            case "gone":
                gone = draw(st.lists(st.sampled_from(sorted(base.records)), max_size=3)) if base.records else []
                base = base.updated(base.sequence, base.sequence + 1, [], gone)
            case "whole":
                base = base.updated(0, base.sequence + 1, [SETTINGS, *draw(news), *EVERYTHING[1:]], ())
            case "again":  # in a new session it is told what it knows, in other objects
                base = base.restarted().updated(0, 1, [changed(one) for one in base.records.values()], ())
            case "tasks":
                view = replace(view, tasks=draw(own_tasks))
            case "rumours":
                view = replace(view, rumours=draw(rumours))
            case "guests":
                attached = draw(guests)
        view = replace(view, assignments=base)
        if draw(flags):  # else it is passed over: several messages are one change
            views.append(with_attached(view, attached))
    return views


@settings(max_examples=100, deadline=None)
@given(steps())
def test_a_compiler_that_has_seen_others_says_what_a_new_one_says(views: list[View]) -> None:
    compiler = Compiler()
    for view in views:
        assert compiler.compile(view) == compile(view)


def test_what_does_not_change_is_the_same_object() -> None:
    service = [ServiceEntry(service_id=s, name=s, endpoint_mode="vip", vips=(VirtualAddress(network_id="a", address=f"10.1.0.20{s[1]}"),), ports=(), aliases={"a": ()}) for s in SERVICES]  # noqa: E501  # fmt: skip
    tasks = [Endpoint(task_id=f"t{i}", network_id="a", service_id=f"s{i}", slot=1, node_id="n2", address=f"10.1.0.1{i}", hostname=f"h{i}", state="ready") for i in (1, 2, 3)]  # noqa: E501  # fmt: skip
    base, compiler = BEGIN.updated(1, 2, [*service, *tasks], ()), Compiler()
    before = compiler.compile(View("n1", "10.66.0.11", "/run/netns", base, {}))
    news = base.updated(2, 3, [changed(tasks[1], state="draining")], ())
    after = compiler.compile(View("n1", "10.66.0.11", "/run/netns", news, {}))
    assert [old is new for old, new in zip(before.vip.routers[0].services, after.vip.routers[0].services, strict=True)] == [True, False, True]  # noqa: E501  # fmt: skip
    assert before.vip.routers[1] is after.vip.routers[1]
    assert before.overlay.networks[0].remote is after.overlay.networks[0].remote
    assert [old is new for old, new in zip(before.dns.networks, after.dns.networks, strict=True)] == [False, True, True]


def keys(*records: Record) -> set[Key]:
    return {key_of(one) for one in records}


def test_what_changed_between_two_assignments_is_known_over_their_common_past() -> None:
    one, two = EVERYTHING[1], changed(SETTINGS, vxlan_port=1)
    later = BEGIN.updated(1, 2, [two], ()).updated(2, 3, [], [key_of(one)])
    assert set(later.changed_since(BEGIN)) == keys(one, two)
    assert set(BEGIN.changed_since(later)) == keys(one, two)
    extra = Network(id="x", spec=NetworkSpec(name="x"))
    assert set(later.changed_since(BEGIN.beside({key_of(extra): extra}))) == keys(one, two, extra)
    assert set(later.restarted().changed_since(later)) == set()


def test_without_a_common_past_everything_may_have_changed() -> None:
    other = Assignments().updated(0, 1, EVERYTHING[:1], ())
    assert set(other.changed_since(BEGIN)) == set(BEGIN.records)
    later = BEGIN
    for number in range(1, STEPS_MAX + 2):
        later = later.updated(number, number + 1, EVERYTHING[:1], ())
    assert set(later.changed_since(BEGIN)) == set(BEGIN.records)


def test_records_of_a_kind_are_found_anew_only_when_one_of_them_changes() -> None:
    records = MappingProxyType({key_of(one): one for one in EVERYTHING})
    base = Assignments(1, records)
    assert base.of("peer", Peer) == EVERYTHING[1:4]
    gone = base.updated(1, 2, [], [key_of(EVERYTHING[1])])
    assert gone.of("peer", Peer) == EVERYTHING[2:4]
    assert gone.updated(2, 3, [SETTINGS], ()).of("peer", Peer) == EVERYTHING[2:4]
