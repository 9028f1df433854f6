"""The tables around the balancing, and the routes: what a plan asks for."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network

import pytest

from mesh.vip import ingress
from mesh.vip.ingress import HOST_NUMBER, HostRoute, LocalRoute, ReturnRoute, ReturnRule, SkipRule
from mesh.vip.plan import Backend, PublishedPort, ReturnPath, RouterPlan, VipPlan, VirtualService

UPLINK = IPv4Address("169.254.0.2")
VIP = IPv4Address("10.1.0.200")
PEER = ReturnPath(2, "02:6d:73:68:00:02", IPv4Address("169.254.128.2"))
ROUTER = RouterPlan(
    netns="/run/netns/mesh-web",
    subnet=IPv4Network("10.1.0.0/24"),
    gateway=IPv4Address("10.1.0.1"),
    vxlan_device="vx4096",
    uplink_device="up0",
    uplink_address=UPLINK,
    masquerade=True,
    local_tasks=(IPv4Address("10.1.0.11"),),
    return_paths=(PEER,),
    services=(
        VirtualService(VIP, None, None, None, (Backend(IPv4Address("10.1.0.11")),)),
        VirtualService(UPLINK, "tcp", 8080, 80, (Backend(IPv4Address("10.1.0.11")),)),
    ),
)


def chain(router: RouterPlan, name: str) -> str:
    (found,) = [c for c in ingress.router_table(router).chains if c.name == name]
    return "\n".join(found.rules)


def test_a_router_knows_its_services_local_tasks_and_peers() -> None:
    elements = ingress.router_table(ROUTER).elements
    assert elements == {
        "addresses": {(int(VIP),): (), (int(UPLINK),): ()},
        "v6addresses": {},
        "hairpin": {(int(IPv4Address("10.1.0.11")),) * 2: ()},
        "v6hairpin": {},
        "peers": {("02:6d:73:68:00:02",): (2,)},
        "zones": {("02:6d:73:68:00:02",): (2,)},
    }


def test_a_chain_comes_before_those_that_go_to_it() -> None:
    """The kernel takes a rule only when its target is there; chains are made first, but rules in order."""
    names = [c.name for c in ingress.router_table(ROUTER).chains]
    assert names[0] == "refused"


def test_only_networks_with_a_way_out_are_masqueraded_and_only_internal_ones_refused_there() -> None:
    internal = replace(ROUTER, masquerade=False)
    assert 'oifname "up0" snat ip to 169.254.0.2' in chain(ROUTER, "leave")
    assert "snat ip to 169.254.0.2" not in chain(internal, "leave")
    assert chain(ROUTER, "pass").splitlines()[-1] != 'oifname "up0" goto refused'
    assert chain(internal, "pass").splitlines()[-1] == 'oifname "up0" goto refused'


def test_vips_are_local_routes_but_the_uplink_needs_none() -> None:
    assert ingress.vips(ROUTER) == {int(VIP)}
    assert ingress.routing(ROUTER, 5, 6) == {
        LocalRoute(int(VIP)),
        ReturnRoute(2, PEER.router_address, 5),
        ReturnRule(2),
        SkipRule(),
    }


def test_an_internal_network_answers_published_connections_through_the_host() -> None:
    internal = replace(ROUTER, masquerade=False, return_paths=(), services=())
    assert ingress.routing(internal, 5, 6) == {
        ReturnRoute(HOST_NUMBER, IPv4Address("169.254.0.1"), 6),
        ReturnRule(HOST_NUMBER),
        SkipRule(),
    }


def test_without_return_paths_there_are_no_rules() -> None:
    alone = replace(ROUTER, return_paths=())
    assert ingress.routing(alone, 5, 6) == {LocalRoute(int(VIP))}


def test_a_network_without_ports_costs_its_packets_one_chain_and_refuses_the_world_at_the_first_of_them() -> None:
    inner = replace(ROUTER, masquerade=False, meshed=False)
    assert ingress.routing(inner, 5, 6) == {LocalRoute(int(VIP))}
    hooks = {(c.hook.type, c.hook.name) for c in ingress.router_table(inner).chains if c.hook is not None}
    assert hooks == {("nat", "prerouting"), ("filter", "input"), ("filter", "forward"), ("nat", "postrouting")}
    assert f'iifname "vx4096" ip saddr != {ROUTER.subnet} drop' in chain(inner, "enter")
    assert 'iifname "up0" ip daddr != 169.254.0.2 ip saddr != 169.254.0.1 goto refused' in chain(inner, "enter")


def test_where_there_is_a_flowtable_it_is_entered_before_all_else_but_by_what_goes_back_by_another_node() -> None:
    for router, unmarked in ((ROUTER, "ct mark 0 "), (replace(ROUTER, meshed=False), "")):
        table = ingress.router_table(router, fast=True)
        (rules,) = [one.rules for one in table.chains if one.name == "pass"]
        assert rules[0] == f"ct state established {unmarked}ct status assured flow add @known accept"
        assert "\n".join(rules[1:]) == chain(router, "pass")
        assert table.flowtables == {"known"}
        assert not ingress.router_table(router).flowtables


def test_of_two_networks_with_one_subnet_the_first_is_the_hosts() -> None:
    twin = replace(ROUTER, uplink_address=IPv4Address("169.254.0.6"))
    assert ingress.host_routes([ROUTER, twin]) == {HostRoute(ROUTER.subnet, ROUTER.uplink_address)}


def test_routes_come_before_the_rules_that_lead_to_them() -> None:
    order = [type(one) for one in ingress.in_order(ingress.routing(ROUTER, 5, 6))]
    assert set(order[:2]) == {LocalRoute, ReturnRoute}
    assert set(order[2:]) == {ReturnRule, SkipRule}


def test_an_empty_plan_has_no_table_in_the_host() -> None:
    assert ingress.host_table(VipPlan((), ())) is None


def test_the_host_hands_published_ports_to_routers() -> None:
    table = ingress.host_table(VipPlan((ROUTER,), (PublishedPort("udp", 53, UPLINK, "mesh4096"),)))
    assert table is not None
    assert table.elements["ports"] == {(17, 53): (int(UPLINK),)}
    assert table.elements["routers"] == {(int(UPLINK),): ()}


def test_a_port_wanted_twice_is_told_and_the_first_has_it() -> None:
    other = IPv4Address("169.254.0.6")
    ports = [PublishedPort("tcp", 80, a, "mesh") for a in (UPLINK, UPLINK, other)]
    found, errors = ingress.published(ports)
    assert found["ports"] == {(6, 80): (int(UPLINK),)}
    assert errors == ["cannot publish port 80/tcp for a second network of this node"]


def test_a_device_name_that_would_be_text_of_nft_is_our_own_bug() -> None:
    with pytest.raises(AssertionError):
        ingress.router_table(replace(ROUTER, uplink_device='up0" accept'))
