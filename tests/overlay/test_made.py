"""Which parts of a plan are looked at, given what was made of the one before."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network

from overlay.made import Made, News
from overlay.plan import OverlayNetwork, OverlayPlan, RemoteEndpoint

REMOTES = tuple(RemoteEndpoint(IPv4Address(f"10.1.0.{n}"), 2) for n in range(10, 20))
WEB = OverlayNetwork("web", 4096, IPv4Network("10.1.0.0/24"), IPv4Address("10.1.0.1"), False, (), REMOTES)
DB = replace(WEB, id="db", vni=4097)
PLAN = OverlayPlan(1, IPv4Address("10.66.0.11"), 4789, (), (WEB, DB))


def made(plan: OverlayPlan = PLAN) -> Made:
    one = Made()
    assert one.news(plan, whole=False) == News(True, plan.networks), "what was never made is made as a whole"
    one.done(plan.networks)
    return one


def test_the_same_plan_again_is_no_news_unless_as_a_whole() -> None:
    one = made()
    assert one.news(replace(PLAN, networks=(replace(WEB), DB)), whole=False).nothing
    assert one.news(PLAN, whole=True) == News(True, PLAN.networks)
    assert one.news(PLAN, whole=False).networks == PLAN.networks, "a whole look that was not completed"


def test_tasks_of_other_nodes_that_come_go_and_move_are_routes_and_nothing_else() -> None:
    new = RemoteEndpoint(IPv4Address("10.1.0.99"), 3)
    moved = RemoteEndpoint(REMOTES[3].address, 3)
    web = replace(WEB, remote=(*REMOTES[1:3], moved, *REMOTES[4:], new))
    one = made()
    news = one.news(replace(PLAN, networks=(web, DB)), whole=False)
    assert (news.networks, news.nothing) == ((), True)
    (rerouted,) = news.rerouted
    assert (rerouted.network, rerouted.came, rerouted.went) == (web, (moved, new), REMOTES[:1])
    one.done([web])
    assert one.news(replace(PLAN, networks=(web, DB)), whole=False).rerouted == ()


def test_what_could_not_be_made_is_looked_at_again_and_whole() -> None:
    one, plan = made(), replace(PLAN, networks=(replace(WEB, remote=()), DB))
    assert len(one.news(plan, whole=False).rerouted) == 1
    assert one.news(plan, whole=False).networks == plan.networks[:1]


def test_a_network_of_which_more_has_changed_is_looked_at_and_no_other() -> None:
    web = replace(WEB, internal=True, remote=())
    assert made().news(replace(PLAN, networks=(web, DB)), whole=False) == News(False, (web,))


def test_a_network_that_came_is_made_and_for_one_that_went_all_is_looked_at() -> None:
    more = replace(WEB, id="more", vni=4098)
    assert made().news(replace(PLAN, networks=(*PLAN.networks, more)), whole=False) == News(False, (more,))
    assert made().news(replace(PLAN, networks=(WEB,)), whole=False) == News(True, (WEB,))


def test_what_all_networks_depend_on_concerns_all() -> None:
    plan = replace(PLAN, vxlan_port=4790)
    assert made().news(plan, whole=False) == News(True, plan.networks)
