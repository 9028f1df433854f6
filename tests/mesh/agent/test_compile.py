"""The heart of a node, table by table: what it knows -> what its kernel and name server should hold."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from types import MappingProxyType

import pytest
from msgspec.structs import replace

from control.assignment import Endpoint, EndpointState, Peer, Record, ServiceEntry, Settings, key_of
from control.lifecycle import TaskState
from control.model import (
    BalancePolicy,
    NamedPort,
    NamePolicy,
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
from dns.plan import Listener
from mesh.agent.compile import NodePlan, compile  # noqa: A004 - the architecture's name for it
from mesh.agent.view import Assignments, Liveness, LocalTask, Rumours, Told, View
from mesh.vip.plan import Backend, RouterPlan, VirtualService
from overlay import names
from overlay.plan import LocalEndpoint, OverlayNetwork, PublicKey, RemoteEndpoint

A = IPv4Address
UPLINK = names.uplink(4096)
SETTINGS = Settings(cluster_id="c", cluster_name="lab", vxlan_port=4789, heartbeat_period_s=1.0)
PEERS = [Peer(node_id=f"n{i}", number=i, name=f"h{i}", data_address=f"10.66.0.1{i}", state="ready") for i in (1, 2, 3)]
WEB = Network(id="web-id", spec=NetworkSpec(name="web"), vni=4096, subnet="10.1.0.0/24", gateway="10.1.0.1")
DB = Network(id="db-id", spec=NetworkSpec(name="db", internal=True), vni=4097, subnet="10.2.0.0/24", gateway="10.2.0.1")
API = ServiceEntry(
    service_id="s-api",
    name="api",
    endpoint_mode="vip",
    vips=(VirtualAddress(network_id="web-id", address="10.1.0.200"),),
    ports=(PortSpec(target=80, published=8080),),
    ingress_network_id="web-id",
    aliases={"web-id": ("backend",)},
)


def endpoint(
    slot: int, node: str, state: EndpointState = "ready", network: str = "web-id", **fields: object
) -> Endpoint:
    prefix = "10.1.0." if network == "web-id" else "10.2.0."
    return Endpoint(
        task_id=f"t{slot}",
        network_id=network,
        service_id="s-api",
        slot=slot,
        node_id=node,
        address=f"{prefix}{10 + slot}",
        hostname=f"api.{slot}",
        state=state,
        **fields,  # type: ignore[arg-type]
    )


def own_task(slot: int, *networks: str) -> Task:
    addresses = tuple(TaskAddress(network_id=n, address="10.9.9.9") for n in networks)
    spec = TaskSpec(process=ProcessSpec(command=("serve",)))
    return Task(
        id=f"t{slot}", service_id="s-api", service_name="api", slot=slot, node_id="n1", spec=spec, addresses=addresses
    )


def running(slot: int, *, draining: bool = False, state: TaskState = TaskState.RUNNING) -> dict[str, LocalTask]:
    return {f"t{slot}": LocalTask(state, f"/run/netns/mesh-t-t{slot}", draining)}


def compiled(*records: Record, tasks: dict[str, LocalTask] | None = None) -> NodePlan:
    held = {key_of(r): r for r in (SETTINGS, *PEERS, WEB, API, *records)}
    view = View("n1", "10.66.0.11", "/run/netns", Assignments(1, MappingProxyType(held)), tasks or {})
    return compile(view)


def web(plan: NodePlan) -> OverlayNetwork:
    return next(n for n in plan.overlay.networks if n.id == "web-id")


def router(plan: NodePlan) -> RouterPlan:
    return next(r for r in plan.vip.routers if r.subnet == IPv4Network("10.1.0.0/24"))


def backends(plan: NodePlan) -> tuple[Backend, ...]:
    return next(s.backends for s in router(plan).services if s.port is None)


def test_an_empty_view_gives_an_empty_plan() -> None:
    plan = compile(View("n1", "10.66.0.11", "/run/netns", Assignments(), {}))
    assert plan.overlay.networks == ()
    assert (plan.vip.routers, plan.vip.published, plan.dns.listeners) == ((), (), ())


def test_tasks_here_get_interfaces_and_tasks_elsewhere_routes() -> None:
    plan = compiled(endpoint(1, "n1"), endpoint(2, "n2"), own_task(1, "web-id"), tasks=running(1))
    assert web(plan).local == (LocalEndpoint("t1", A("10.1.0.11"), "/run/netns/mesh-t-t1", "eth0", default_route=True),)
    assert web(plan).remote == (RemoteEndpoint(A("10.1.0.12"), 2),)
    assert [p.number for p in plan.overlay.peers] == [2, 3]


def test_peers_bring_the_keys_they_have_told_but_not_what_is_no_key() -> None:
    good = TunnelKey(slot=1, key="A" * 43 + "=")
    told = (TunnelKey(slot=2, key=good.key), TunnelKey(slot=0, key="nonsense"), good)
    plan = compiled(*(replace(p, tunnel_keys=told) for p in PEERS), replace(SETTINGS, wireguard_port=9000))
    assert [p.keys for p in plan.overlay.peers] == [(PublicKey(1, good.key),)] * 2
    assert plan.overlay.wireguard_port == 9000


def test_an_encrypted_network_is_planned_as_such() -> None:
    assert not web(compiled()).encrypted
    assert web(compiled(replace(WEB, spec=replace(WEB.spec, encrypted=True)))).encrypted


def test_a_task_here_has_no_interface_before_it_is_prepared_and_none_after_it_ended() -> None:
    records = (endpoint(1, "n1"), own_task(1, "web-id"))
    assert web(compiled(*records)).local == ()
    assert web(compiled(*records, tasks=running(1, state=TaskState.FAILED))).local == ()
    assert len(web(compiled(*records, tasks=running(1, state=TaskState.PREPARING))).local) == 1


def test_a_task_on_two_networks_has_its_default_route_on_the_first() -> None:
    plan = compiled(
        DB, endpoint(1, "n1"), endpoint(1, "n1", network="db-id"), own_task(1, "db-id", "web-id"), tasks=running(1)
    )
    interfaces = {n.id: [(e.interface, e.default_route) for e in n.local] for n in plan.overlay.networks}
    assert interfaces == {"db-id": [("eth0", True)], "web-id": [("eth1", False)]}
    assert plan.dns.multihomed == {
        ("db-id", A("10.2.0.11")): ("db-id", "web-id"),
        ("web-id", A("10.1.0.11")): ("db-id", "web-id"),
    }


def test_a_container_of_others_on_two_networks_sees_the_names_of_both() -> None:
    """It is an attachment on each, in one namespace."""
    tasks = {f"t{slot}": LocalTask(TaskState.RUNNING, "/run/docker/netns/one") for slot in (1, 2)}
    alone = {"t3": LocalTask(TaskState.RUNNING, "/run/docker/netns/other")}
    records = (DB, endpoint(1, "n1"), endpoint(2, "n1", network="db-id"), endpoint(3, "n1"))
    assert compiled(*records, tasks={**tasks, **alone}).dns.multihomed == {
        ("db-id", A("10.2.0.12")): ("db-id", "web-id"),
        ("web-id", A("10.1.0.11")): ("db-id", "web-id"),
    }


@pytest.mark.parametrize(
    ("state", "weight"), [("ready", 1), ("draining", 0), ("starting", None), ("lost", None)], ids=str
)
def test_a_remote_task_is_balanced_by_what_the_managers_say(state: EndpointState, weight: int | None) -> None:
    found = backends(compiled(endpoint(2, "n2", state)))
    assert found == (() if weight is None else (Backend(A("10.1.0.12"), weight),))
    assert len(web(compiled(endpoint(2, "n2", state))).remote) == 1, "its route stays whatever its state"


@pytest.mark.parametrize(
    ("told", "local", "weight"),
    [
        ("starting", running(1), 1),  # we know before the managers do
        ("ready", running(1, state=TaskState.FAILED), None),
        ("ready", running(1, draining=True), 0),
        ("draining", running(1), 0),
        ("ready", {}, None),  # of an earlier life of this node
    ],
)
def test_of_its_own_tasks_a_node_knows_best(
    told: EndpointState, local: dict[str, LocalTask], weight: int | None
) -> None:
    found = backends(compiled(endpoint(1, "n1", told), own_task(1, "web-id"), tasks=local))
    assert found == (() if weight is None else (Backend(A("10.1.0.11"), weight),))


def test_a_service_has_its_vip_and_its_published_port_in_the_router_and_the_port_on_the_host() -> None:
    plan = compiled(endpoint(2, "n2"))
    one = (Backend(A("10.1.0.12"), 1),)
    assert router(plan).services == (
        VirtualService(A("10.1.0.200"), None, None, None, one),
        VirtualService(UPLINK.router_address, "tcp", 8080, 80, one),
    )
    (port,) = plan.vip.published
    assert (port.protocol, port.port, port.router_address) == ("tcp", 8080, UPLINK.router_address)
    assert [(p.node_number, p.router_mac) for p in router(plan).return_paths] == [
        (2, names.router_mac(2)),
        (3, names.router_mac(3)),
    ]


def test_a_host_mode_port_is_open_only_where_its_task_runs() -> None:
    ports = (PortSpec(target=53, published=5353, protocol="udp", mode="host"),)
    here = compiled(endpoint(1, "n1", host_ports=ports), own_task(1, "web-id"), tasks=running(1))
    assert VirtualService(UPLINK.router_address, "udp", 5353, 53, (Backend(A("10.1.0.11")),)) in router(here).services
    assert ("udp", 5353) in {(p.protocol, p.port) for p in here.vip.published}
    elsewhere = compiled(endpoint(2, "n2", host_ports=ports))
    assert {(p.protocol, p.port) for p in elsewhere.vip.published} == {("tcp", 8080)}


def test_an_internal_network_is_neither_routed_out_nor_masqueraded() -> None:
    plan = compiled(DB)
    assert [n.internal for n in plan.overlay.networks] == [True, False]
    assert [r.masquerade for r in plan.vip.routers] == [False, True]


def test_names_of_a_service_and_its_tasks_are_told_with_their_readiness() -> None:
    plan = compiled(
        endpoint(1, "n1"), endpoint(2, "n2"), endpoint(3, "n3", "lost"), own_task(1, "web-id"), tasks=running(1)
    )
    (network,) = plan.dns.networks
    (service,) = network.services
    assert (network.name, service.name, service.aliases, service.vips) == (
        "web", "api", ("backend",), (A("10.1.0.200"),),
    )  # fmt: skip
    assert [(t.slot, t.hostname, t.ready, t.local) for t in service.tasks] == [
        (1, "api.1", True, True),
        (2, "api.2", True, False),
        (3, "api.3", False, False),
    ]
    assert plan.dns.nodes == {"h1": A("10.66.0.11"), "h2": A("10.66.0.12"), "h3": A("10.66.0.13")}
    (listener,) = plan.dns.listeners
    assert (listener.netns, listener.address, listener.port) == ("/run/netns/mesh-web-id", A("10.1.0.1"), 53)


def test_a_network_without_a_subnet_yet_is_left_out() -> None:
    assert compiled(Network(id="new", spec=NetworkSpec(name="new"))).overlay.networks == (web(compiled()),)


def test_the_plan_does_not_depend_on_the_order_in_which_records_arrived() -> None:
    records: list[Record] = [endpoint(1, "n1"), endpoint(2, "n2"), DB, own_task(1, "web-id")]
    assert compiled(*records, tasks=running(1)) == compiled(*reversed(records), tasks=running(1))


def test_an_endpoint_of_a_node_that_is_not_known_is_not_routed() -> None:
    assert web(compiled(endpoint(4, "n4"))).remote == ()


# --- both families, policies, where ports are published -------------------------------------------------------------

WEB6 = replace(WEB, spec=replace(WEB.spec, ipv6=True), subnet6="fd00:1::/64", gateway6="fd00:1::a01:1")
FD = IPv6Network("fd00:1::/64").network_address


def test_a_network_of_both_families_has_everything_twice() -> None:
    plan = compiled(WEB6, endpoint(1, "n1"), endpoint(2, "n2"), own_task(1, "web-id"), tasks=running(1))
    network, way = web(plan), router(plan)
    assert (network.subnet6, network.gateway6) == (way.subnet6, way.gateway6)
    assert network.local[0].address6 == FD + int(A("10.1.0.11"))
    assert [r.address for r in network.remote] == [A("10.1.0.12"), FD + int(A("10.1.0.12"))]
    assert way.local_tasks == (A("10.1.0.11"), FD + int(A("10.1.0.11")))
    assert way.task_devices == (names.veth_device(A("10.1.0.11")),)  # one for both
    assert way.uplink_address6 == UPLINK.router_address6
    assert [p.router_address6 for p in way.return_paths] == [names.router_address6(2), names.router_address6(3)]
    by_address = {s.address: [b.address for b in s.backends] for s in way.services if s.port is None}
    assert by_address == {
        A("10.1.0.200"): [A("10.1.0.11"), A("10.1.0.12")],
        FD + int(A("10.1.0.200")): [FD + int(A("10.1.0.11")), FD + int(A("10.1.0.12"))],
    }
    published = {s.address: s.target_port for s in way.services if s.port == 8080}
    assert published == {UPLINK.router_address: 80, UPLINK.router_address6: 80}
    assert plan.vip.published[0].router_address6 == UPLINK.router_address6
    (api,) = plan.dns.networks[0].services
    assert api.vips == (A("10.1.0.200"), FD + int(A("10.1.0.200")))
    assert plan.dns.networks[0].subnets == (IPv4Network("10.1.0.0/24"), IPv6Network("fd00:1::/64"))


def test_a_network_of_one_family_has_nothing_of_the_other() -> None:
    plan = compiled(endpoint(2, "n2"))
    assert (web(plan).subnet6, router(plan).subnet6, router(plan).uplink_address6) == (None, None, None)
    assert {s.address.version for s in router(plan).services} == {4}
    assert plan.vip.published[0].router_address6 is None


def test_how_a_service_is_balanced_and_named_is_what_its_spec_says() -> None:
    policy = BalancePolicy(scheduler="mh", affinity_s=60.0, idle_s=120.0)
    api = replace(
        API,
        balance=policy,
        names=NamePolicy(ttl_s=1, local_first=True),
        named_ports=(NamedPort(name="http", port=80),),
    )
    plan = compiled(api, endpoint(2, "n2"))
    assert {(s.scheduler, s.affinity_s, s.idle_s) for s in router(plan).services} == {("mh", 60.0, 120.0)}
    (named,) = plan.dns.networks[0].services
    assert (named.ttl_s, named.local_first, named.ports) == (1, True, (("http", "tcp", 80),))


ME = Node(id="n1", number=1, spec=NodeSpec(labels={"edge": "yes"}))


@pytest.mark.parametrize(
    ("constraints", "me", "open_here"),
    [
        ((), ME, True),
        (("node.labels.edge==yes",), ME, True),
        (("node.labels.edge!=yes",), ME, False),
        (("node.labels.edge==yes",), None, False),
    ],
)
def test_a_port_is_published_on_the_nodes_that_its_constraints_choose(
    constraints: tuple[str, ...], me: Node | None, open_here: bool
) -> None:
    port = PortSpec(target=80, published=8080, constraints=constraints, address="192.0.2.1")
    plan = compiled(replace(API, ports=(port,)), *([me] if me is not None else []))
    assert [p.addresses for p in plan.vip.published] == ([(A("192.0.2.1"),)] if open_here else [])
    assert any(s.port == 8080 for s in router(plan).services) is open_here
    assert router(plan).meshed  # its connections come by other nodes as well


def test_a_network_over_which_no_port_is_published_is_not_of_the_mesh() -> None:
    assert not router(compiled(replace(API, ports=()), endpoint(2, "n2"))).meshed
    assert not router(compiled(replace(API, ports=(PortSpec(target=80, published=8080, mode="host"),)))).meshed
    port = PortSpec(target=53, published=5353, protocol="udp", mode="host")
    here = (endpoint(1, "n1", host_ports=(port,)), own_task(1, "web-id"))
    assert router(compiled(replace(API, ports=()), *here, tasks=running(1))).meshed
    routers = {r.subnet: r.meshed for r in compiled(DB).vip.routers}
    assert routers == {IPv4Network(WEB.subnet): True, IPv4Network(DB.subnet): False}


def test_the_host_asks_where_its_configuration_says() -> None:
    held = {key_of(r): r for r in (SETTINGS, *PEERS)}
    view = View("n1", "10.66.0.11", "/run/netns", Assignments(1, MappingProxyType(held)), {}, ("127.0.0.153", 53))
    assert compile(view).dns.listeners == (Listener(None, A("127.0.0.153"), 53, None),)


def test_nodes_whose_underlay_is_ipv6() -> None:
    peers = [replace(p, data_address=f"fd00:66::1{p.number}") for p in PEERS]
    held = {key_of(r): r for r in (SETTINGS, *peers, WEB, API, endpoint(2, "n2"))}
    plan = compile(View("n1", "fd00:66::11", "/run/netns", Assignments(1, MappingProxyType(held)), {}))
    assert plan.overlay.underlay == IPv6Address("fd00:66::11")
    assert [p.underlay for p in plan.overlay.peers] == [IPv6Address("fd00:66::12"), IPv6Address("fd00:66::13")]
    assert plan.dns.nodes["h2"] == IPv6Address("fd00:66::12")


# --- gossip ---------------------------------------------------------------------------------------------------------

TOLD = {"ready": Told("ready"), "draining": Told("draining"), "hidden": Told("hidden")}


def weight(rumours: Rumours, state: EndpointState = "ready") -> int | None:
    """What the task on n2 weighs in the balancer of n1; None: it is not there."""
    held = {key_of(r): r for r in (SETTINGS, *PEERS, WEB, API, endpoint(2, "n2", state), endpoint(3, "n3"))}
    view = View("n1", "10.66.0.11", "/run/netns", Assignments(1, MappingProxyType(held)), {}, rumours=rumours)
    plan = compile(view)
    (named,) = plan.dns.networks[0].services
    found = {b.address: b.weight for b in backends(plan)}.get(A("10.1.0.12"))
    assert next(t.ready for t in named.tasks if t.id == "t2") == (found == 1), "DNS names what is balanced to"
    assert [r.address for r in web(plan).remote] == [A("10.1.0.12"), A("10.1.0.13")], "routed whatever is said"
    return found


@pytest.mark.parametrize(("liveness", "expected"), [("alive", 1), ("suspect", 0), ("dead", None)])
def test_a_node_that_gossip_suspects_or_misses_gets_no_traffic(liveness: Liveness, expected: int | None) -> None:
    assert weight(Rumours(nodes={"n2": liveness})) == expected


def test_only_who_is_suspected_loses_clients_that_it_never_answered() -> None:
    held = {key_of(r): r for r in (SETTINGS, *PEERS, WEB, API, endpoint(2, "n2"), endpoint(3, "n3", "draining"))}
    assignments = Assignments(1, MappingProxyType(held))
    for rumours, silent in ((Rumours(), set()), (Rumours(nodes={"n2": "suspect"}), {A("10.1.0.12")})):
        plan = compile(View("n1", "10.66.0.11", "/run/netns", assignments, {}, rumours=rumours))
        assert {backend.address for backend in backends(plan) if backend.silent} == silent


@pytest.mark.parametrize(
    ("stored", "told", "expected"),
    [
        ("ready", "ready", 1),
        ("ready", "draining", 0),
        ("ready", "hidden", None),
        ("ready", None, 1),
        ("starting", "ready", 1),  # gossip was first
        ("starting", None, None),
        ("draining", "ready", 0),  # what is to stop is not taken back by its node
        ("draining", "hidden", None),
        ("lost", "ready", 1),  # the managers miss it, its peers do not
    ],
)
def test_what_a_node_says_of_its_own_tasks_corrects_the_managers(
    stored: EndpointState, told: str | None, expected: int | None
) -> None:
    tasks = {"t2": TOLD[told]} if told is not None else {}
    assert weight(Rumours(nodes={"n2": "alive"}, tasks={"n2": tasks}), stored) == expected


def test_a_node_that_has_said_nothing_is_as_the_managers_say() -> None:
    assert weight(Rumours(nodes={"n2": "alive"}, tasks={})) == 1
    assert weight(Rumours(tasks={"n3": {"t2": Told("hidden")}})) == 1, "of others' tasks nobody is believed"


def test_members_that_are_no_nodes_are_found_by_name_and_cannot_take_a_nodes() -> None:
    held = {key_of(r): r for r in (SETTINGS, *PEERS)}
    rumours = Rumours(strangers={"printer": "192.0.2.9", "h2": "192.0.2.66"})
    view = View("n1", "10.66.0.11", "/run/netns", Assignments(1, MappingProxyType(held)), {}, rumours=rumours)
    nodes = compile(view).dns.nodes
    assert (nodes["printer"], nodes["h2"]) == (A("192.0.2.9"), A("10.66.0.12"))
