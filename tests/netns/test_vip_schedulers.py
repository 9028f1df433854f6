"""How connections are spread, and who is sent back to whom, on a real kernel."""

from __future__ import annotations

import time

import pytest

from mesh.vip.kernel import Kernel
from mesh.vip.namespace import visit
from tests.netns.vip_lab import PATIENCE_S, Lab, ask, ask_udp, connected, talk, tcp
from tests.netns.world import inside

pytestmark = pytest.mark.root

PORT = 8080


def other(name: str) -> str:
    return {"web1": "web2", "web2": "web1"}[name]


def test_in_turn_takes_no_notice_of_weights(lab: Lab) -> None:
    web = lab.nets["web"]
    web.backends[lab.address("web1")] = 5
    lab.apply()
    seen = [ask(lab.netns("client3"), web.vip).task for _ in range(8)]
    assert seen.count("web1") == 4


@pytest.mark.parametrize("scheduler", ["sh", "mh"])
def test_a_client_that_is_hashed_meets_one_backend_from_every_entry(lab: Lab, scheduler: str) -> None:
    web = lab.nets["web"]
    web.scheduler = scheduler  # type: ignore[assignment]
    lab.apply()
    for number in (1, 2, 3):
        assert len({ask(lab.netns(f"client{number}"), web.vip).task for _ in range(4)}) == 1
    assert len({ask(lab.outside, host.address, PORT).task for host in lab.hosts for _ in range(2)}) == 1


@pytest.mark.parametrize("scheduler", ["sh", "mh"])
def test_hashed_clients_meet_one_backend_in_whatever_order_these_came_and_keep_their_connections(
    lab: Lab, scheduler: str
) -> None:
    web = lab.nets["web"]
    all_of_them = web.backends
    web.scheduler, web.backends = scheduler, {lab.address("web2"): 1}  # type: ignore[assignment]
    lab.apply()
    with connected(lab.netns("client3"), web.vip) as old:
        assert talk(old).task == "web2"
        first, second, _ = lab.hosts
        web.backends = {lab.address("web1"): 1}
        lab.kernels[second.number].apply(lab.plan(second))
        web.backends = all_of_them
        lab.apply()
        assert talk(old).task == "web2"
        assert len({ask(lab.outside, host.address, PORT).task for host in lab.hosts}) == 1
        assert not lab.kernels[first.number].apply(lab.plan(first)).changes
        assert not Kernel(host_netns=first.netns).apply(lab.plan(first)).changes


def test_the_fewest_connections_are_counted_or_it_is_told_that_they_are_not(lab: Lab) -> None:
    """IPVS counts closed connections, too, for the two minutes that it keeps them: as much as 1/256 of an open one."""
    host, web = lab.hosts[2], lab.nets["web"]
    web.scheduler = "lc"
    kernel = lab.kernels[host.number]
    report = kernel.apply(lab.plan(host))
    with connected(lab.netns("client3"), web.vip) as one, connected(lab.netns("client3"), web.vip) as two:
        assert {talk(one).task, talk(two).task} == {"web1", "web2"}
    if kernel.balancer.name == "nftables":
        assert report.errors[0].startswith('cannot balance 10.1.0.200 by "lc" with nftables, which does not count')
        assert kernel.apply(lab.plan(host)).errors == report.errors
        assert not kernel.apply(lab.plan(host)).changes
    else:
        assert report.errors == []


def test_a_client_with_affinity_comes_back_to_its_backend_on_every_kind_of_port(lab: Lab) -> None:
    web = lab.nets["web"]
    web.affinity_s = 600.0
    lab.apply()
    for question, netns, address, port in (
        (ask, lab.netns("client3"), web.vip, 80),
        (ask_udp, lab.netns("client1"), web.vip, 53),
        (ask, lab.outside, lab.hosts[2].address, PORT),
        (ask_udp, lab.outside, lab.hosts[0].address, PORT),
    ):
        assert len({question(netns, address, port).task for _ in range(6)}) == 1


def test_affinity_lives_through_changes_and_restarts_and_moves_at_once_when_its_backend_goes(lab: Lab) -> None:
    web, client = lab.nets["web"], lab.netns("client3")
    web.affinity_s = 600.0
    lab.apply()
    home = ask(client, web.vip).task
    web.backends[lab.address("client1")] = 1  # it serves nothing: who were sent there would notice
    lab.apply()
    assert {ask(client, web.vip).task for _ in range(4)} == {home}
    del web.backends[lab.address("client1")]
    lab.apply()
    for host in lab.hosts:
        lab.kernels[host.number] = Kernel(host_netns=host.netns)
    lab.apply()
    assert {ask(client, web.vip).task for _ in range(4)} == {home}
    with connected(client, web.vip) as old:
        talk(old)
        web.backends[lab.address(home)] = 0
        lab.apply()
        assert {ask(client, web.vip).task for _ in range(4)} == {other(home)}
        assert talk(old).task == home
    web.backends[lab.address(home)] = 1
    lab.apply()
    assert {ask(client, web.vip).task for _ in range(4)} == {other(home)}
    del web.backends[lab.address(other(home))]
    lab.apply()
    assert {ask(client, web.vip).task for _ in range(2)} == {home}


def test_no_change_replaces_the_table_whatever_the_scheduler(lab: Lab) -> None:
    """It would work, and cost the memory of all clients."""
    web, host = lab.nets["web"], lab.hosts[2]
    for scheduler, affinity_s in (("rr", 0.0), ("wrr", 60.0), ("sh", 0.0), ("mh", 60.0), ("rr", 60.0)):
        web.scheduler, web.affinity_s = scheduler, affinity_s  # type: ignore[assignment]
        for weights in ((1, 1, 1), (0, 1, 1), (1, 2, 3)):
            web.backends = dict(zip(map(lab.address, ("web1", "web2", "client1")), weights, strict=True))
            report = lab.kernels[host.number].apply(lab.plan(host))
            assert report.errors == []
            assert "vip table" not in report.changes, (scheduler, affinity_s, weights)


def test_affinity_ends_with_its_time(lab: Lab) -> None:
    web, client = lab.nets["web"], lab.netns("client3")
    web.affinity_s = 1.0
    lab.apply()
    ask(client, web.vip)
    router = lab.router(lab.hosts[2])
    if lab.kernels[3].balancer.name == "nftables":
        assert "timeout 1s" in inside(router, "nft", "list", "map", "inet", "mesh", "any_clients")


def test_a_client_that_reaches_a_backend_by_two_addresses_is_answered_at_once(lab: Lab) -> None:
    """The trap of PAWS: time stamps differ by destination, and a used port in TIME_WAIT then drops the SYN."""
    web, client = lab.nets["web"], lab.netns("client3")
    web.backends = {lab.address("web1"): 1}
    lab.apply()
    for to in (web.vip, lab.address("web1"), web.vip, lab.address("web1")):
        with tcp(client) as one:
            one.settimeout(0.9)  # before a SYN is sent once more
            one.connect((str(to), 80))
            talk(one)


def test_idle_connections_are_known_longer_than_a_keepalive_takes(lab: Lab) -> None:
    if lab.kernels[1].balancer.name != "nftables":
        return

    def idle(_: object) -> int:
        with open("/proc/sys/net/netfilter/nf_conntrack_tcp_timeout_established") as file:
            return int(file.read())

    for host in lab.hosts:
        assert visit(lab.router(host), idle) > 7200 + 9 * 75
        inside(lab.router(host), "sysctl", "-qw", "net.netfilter.nf_conntrack_tcp_timeout_established=60")
    lab.apply()
    assert visit(lab.router(lab.hosts[0]), idle) == 8100


def test_a_client_is_forgotten_when_its_affinity_ends(lab: Lab) -> None:
    """With IPVS it is not before its last connection has been forgotten, too."""
    web, client, router = lab.nets["web"], lab.netns("client3"), lab.router(lab.hosts[2])
    web.affinity_s = 1.0
    lab.apply()
    home = ask(client, web.vip).task
    end = time.monotonic() + PATIENCE_S
    while "10.1.0.103" in inside(router, "nft", "list", "map", "inet", "mesh", "any_clients"):
        assert time.monotonic() < end, "the client is still remembered"
        time.sleep(0.1)
    assert ask(client, web.vip).task == other(home)
