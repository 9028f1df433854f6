"""What exists once is given once: VXLAN ids, subnets, addresses, ports, and what is said when there is none left."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, IPv6Network

from msgspec.structs import replace

from control.lifecycle import TaskState
from control.model import ClusterSpec, Network, PortSpec, RestingAddress, Service
from tests.control.cluster import World, network, node, service


def world(**spec: object) -> World:
    made = World(spec=ClusterSpec(**spec))  # type: ignore[arg-type]
    made.put(node("n1"))
    return made


def allocated(made: World, name: str) -> Network:
    held = made.get(Network, name)
    assert isinstance(held, Network)
    return held


def service_of(made: World, name: str = "api") -> Service:
    held = made.get(Service, f"s-{name}")
    assert isinstance(held, Service)
    return held


def test_networks_get_ids_and_subnets_of_their_own() -> None:
    made = world()
    made.put(network("a"), network("b"), network("c", subnet="192.168.7.0/24"))
    made.decide()
    assert {allocated(made, n).vni for n in "abc"} == {4096, 4097, 4098}
    assert {allocated(made, n).subnet for n in "abc"} == {"10.128.0.0/20", "10.128.16.0/20", "192.168.7.0/24"}
    assert allocated(made, "c").gateway == "192.168.7.1"


def test_a_network_of_both_families_gets_an_ipv6_subnet_of_its_own() -> None:
    made = world()
    made.put(network("a", ipv6=True), network("b", ipv6=True, subnet6="fd00:20::/64"), network("c"))
    made.decide()
    own = IPv6Network(allocated(made, "a").subnet6)
    assert own.subnet_of(IPv6Network("fd00::/8"))
    assert IPv6Address(allocated(made, "a").gateway6) == own.network_address + int(
        IPv4Address(allocated(made, "a").gateway)
    )
    assert (allocated(made, "b").subnet6, allocated(made, "c").subnet6) == ("fd00:20::/64", "")


def test_subnets_from_the_pools_keep_clear_of_what_the_nodes_route() -> None:
    made = World()
    made.put(node("n1", routes=("10.128.0.0/20", "10.128.20.0/24")))
    made.put(network("a"))
    made.decide()
    assert allocated(made, "a").subnet == "10.128.32.0/20"


def test_pools_that_are_used_up_leave_tasks_waiting_with_the_reason() -> None:
    made = world(address_pools=("10.5.0.0/20",))
    made.put(network("a"), network("b"), service(replicas=1, networks=["b"]))
    made.decide()
    made.decide()
    assert made.tasks()[0].status.error == ('network "b" has no subnet: the address pools of the cluster are used up')


def test_every_service_has_one_virtual_address_per_network_and_keeps_it() -> None:
    made = world()
    made.put(network("a"), network("b"), service(replicas=2, networks=["a", "b"]))
    made.settle()
    before = service_of(made).vips
    assert [v.network_id for v in before] == ["a", "b"]
    made.change(service_of(made), spec_version=2)
    made.settle()
    assert service_of(made).vips == before


def test_dnsrr_has_no_virtual_address() -> None:
    made = world()
    made.put(network("a"), service(replicas=2, networks=["a"], endpoint_mode="dnsrr"))
    made.settle()
    assert service_of(made).vips == ()
    assert len(made.running()) == 2


def test_automatic_ports_differ_are_kept_and_fixed_ones_are_as_asked() -> None:
    made = world()
    ports = (PortSpec(target=80), PortSpec(target=81), PortSpec(target=82, published=8082))
    made.put(network("a"), service("x", networks=["a"], ports=ports), service("y", networks=["a"], ports=ports[:2]))
    made.settle()
    given_x = [p.published for p in service_of(made, "x").ports]
    given_y = [p.published for p in service_of(made, "y").ports]
    assert given_x[2] == 8082
    assert len({*given_x, *given_y}) == 5
    assert all(30000 <= p <= 32767 for p in (*given_x[:2], *given_y))
    made.change(service_of(made, "x"), spec_version=2)
    made.settle()
    assert [p.published for p in service_of(made, "x").ports] == given_x


def test_a_full_network_says_how_many_addresses_it_has() -> None:
    made = world()
    made.put(network("tiny", subnet="10.9.0.0/29"), service(replicas=6, networks=["tiny"]))
    made.settle()
    assert len(made.running()) == 4  # eight addresses: network, gateway, broadcast, VIP, and these
    waiting = [t for t in made.tasks() if t.status.state is TaskState.NEW]
    assert {t.status.error for t in waiting} == {'network "tiny" has no free addresses (5 of 5 in use)'}


def test_an_address_rests_after_its_task_has_ended() -> None:
    made = world(address_rest_s=60.0)
    made.put(network("tiny", subnet="10.9.0.0/29"), service(replicas=4, networks=["tiny"]))
    made.settle()
    gone = made.running()[0]
    address = gone.addresses[0].address
    made.failing = lambda t: t.id == gone.id
    made.agents()
    made.run(20)
    assert address not in {a.address for t in made.running() for a in t.addresses}
    assert len(made.running()) == 3
    assert [r.address for r in made.snapshot.all(RestingAddress)] == [address]
    made.run(70)
    assert len(made.running()) == 4
    assert list(made.snapshot.all(RestingAddress)) == []


def test_a_new_leader_gives_nothing_twice() -> None:
    made = world()
    made.put(network("a"), *(service(f"s{i}", replicas=3, networks=["a"]) for i in range(5)))
    made.settle()
    holders = [v.address for s in made.snapshot.all(Service) for v in s.vips]
    holders += [a.address for i in range(5) for t in made.running(f"s{i}") for a in t.addresses]
    assert len(holders) == len(set(holders)) == 5 + 15
    version = made.snapshot.version
    made.decide()
    assert made.snapshot.version == version


def test_removing_a_network_from_a_service_gives_its_virtual_address_back() -> None:
    made = world()
    made.put(network("a"), network("b"), service(replicas=1, networks=["a", "b"]))
    made.settle()
    held = service_of(made)
    task = replace(held.spec.task, networks=held.spec.task.networks[:1])
    made.change(held, spec=replace(held.spec, task=task), spec_version=2)
    made.settle()
    assert [v.network_id for v in service_of(made).vips] == ["a"]
    assert {len(t.addresses) for t in made.running()} == {1}
