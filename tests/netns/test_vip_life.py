"""The life of backends and ports on a real kernel, with connections open: drained, killed, gone, back, moved."""

from __future__ import annotations

import contextlib
import errno
import select
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from ipaddress import IPv4Address

import pytest

from mesh.vip.kernel import Kernel
from mesh.vip.namespace import visit
from tests.netns.vip_lab import PATIENCE_S, TCP_PORT, Lab, ask, ask_udp, connected, default_nets, talk, tcp, udp

pytestmark = pytest.mark.root

PORT = 8080


def vip(lab: Lab) -> IPv4Address:
    return lab.nets["web"].vip


def backends(lab: Lab) -> dict[IPv4Address, int]:
    return lab.nets["web"].backends


def other(name: str) -> str:
    return {"web1": "web2", "web2": "web1"}[name]


def is_cut(connection: socket.socket) -> bool:
    """Whether a client that goes on asking is told within a moment that its connection is over."""
    try:
        for _ in range(3):
            talk(connection)
    except ConnectionError:
        return True
    return False


def test_without_a_backend_connections_are_refused_at_once(lab: Lab) -> None:
    backends(lab).clear()
    lab.apply()
    for question in (ask, ask_udp):
        for number in (1, 3):
            with pytest.raises(ConnectionRefusedError):
                question(lab.netns(f"client{number}"), vip(lab))
        for host in lab.hosts:
            with pytest.raises(ConnectionRefusedError):
                question(lab.outside, host.address, PORT)
            with pytest.raises(ConnectionRefusedError):
                question(host.netns, "127.0.0.1", PORT)


def test_with_draining_backends_only_new_connections_are_refused_and_old_ones_live(lab: Lab) -> None:
    with connected(lab.netns("client3"), vip(lab)) as old:
        talk(old)
        lab.nets["web"].backends = dict.fromkeys(backends(lab), 0)
        lab.apply()
        assert talk(old)
        with pytest.raises(ConnectionRefusedError):
            ask(lab.netns("client3"), vip(lab))


def test_a_drained_backend_keeps_its_connections_and_flows_and_gets_no_new_ones(lab: Lab) -> None:
    with (
        connected(lab.netns("client3"), vip(lab)) as old,
        connected(lab.outside, lab.hosts[2].address, PORT) as outside,
        udp(lab.netns("client3")) as flow,
    ):
        flow.connect((str(vip(lab)), 53))
        before = [talk(one).task for one in (old, outside, flow)]
        for name in ("web1", "web2"):
            lab.nets["web"].backends = {lab.address(name): 0, lab.address(other(name)): 1}
            lab.apply()
            assert {ask(lab.netns("client3"), vip(lab)).task for _ in range(4)} == {other(name)}
            assert {ask_udp(lab.outside, lab.hosts[0].address, PORT).task for _ in range(4)} == {other(name)}
            assert [talk(one).task for one in (old, outside, flow)] == before


@contextlib.contextmanager
def mute(netns: str) -> Iterator[None]:
    """Whatever comes to this task is lost."""
    nft = ["nsenter", f"--net={netns}", "nft"]
    rules = "table inet mute { chain come { type filter hook prerouting priority -500; drop; }; }"
    subprocess.run([*nft, "-f", "-"], input=rules, text=True, check=True)
    try:
        yield
    finally:
        subprocess.run([*nft, "delete", "table", "inet", "mute"], check=True)


def test_a_client_that_was_not_answered_reaches_another_backend_once_that_node_is_suspected(lab: Lab) -> None:
    """It tries again from the same port: by what is tracked that would be the same backend, until it is given up."""
    if lab.hosts[2].number in lab.kernels and lab.kernels[lab.hosts[2].number].balancer.name == "ipvs":
        return  # it does not let one connection go: there the client waits until the backend is removed
    victim, healthy = lab.address("web1"), lab.address("web2")
    inside, outside = (lab.netns("client3"), vip(lab), TCP_PORT), (lab.outside, lab.hosts[2].address, PORT)
    for netns, address, port in (inside, outside):
        lab.nets = default_nets()
        lab.nets["web"].backends = {victim: 1}
        lab.apply()
        with connected(netns, address, port) as old, tcp(netns) as new:
            assert talk(old).task == "web1"
            with mute(lab.netns("web1")):
                new.setblocking(False)
                assert new.connect_ex((str(address), port)) == errno.EINPROGRESS
                time.sleep(0.1)  # so that it is on its way
                lab.nets["web"].backends, lab.nets["web"].silent = {victim: 0, healthy: 1}, frozenset({victim})
                lab.apply()
                assert select.select([], [new], [], 60.0)[1]
                new.settimeout(PATIENCE_S)
                assert talk(new).task == "web2"
            assert talk(old).task == "web1"  # what was answered once is not moved: it may come back


def test_a_connection_to_a_removed_backend_is_reset_also_when_it_was_drained_before(lab: Lab) -> None:
    inside, outside = (lab.netns("client3"), vip(lab), TCP_PORT), (lab.outside, lab.hosts[2].address, PORT)
    for drain in (False, True):
        for where in (inside, outside):
            lab.nets = default_nets()
            lab.apply()
            with connected(*where) as one:
                victim = lab.address(talk(one).task)
                if drain:
                    backends(lab)[victim] = 0
                    lab.apply()
                    assert talk(one)
                lab.nets["web"].backends = {a: 1 for a in default_nets()["web"].backends if a != victim}
                lab.apply()
                assert is_cut(one)


def test_other_connections_do_not_notice_that_a_backend_goes(lab: Lab) -> None:
    connections = [connected(lab.netns("client3"), vip(lab)) for _ in range(8)]
    opened = [one.__enter__() for one in connections]
    try:
        tasks = [talk(one).task for one in opened]
        del backends(lab)[lab.address("web1")]
        lab.apply()
        for one, task in zip(opened, tasks, strict=True):
            assert is_cut(one) == (task == "web1")
    finally:
        for held in connections:
            held.__exit__(None, None, None)


def test_a_connection_to_the_last_backend_is_reset_when_it_goes(lab: Lab) -> None:
    with (
        connected(lab.netns("client1"), vip(lab)) as inside,
        connected(lab.outside, lab.hosts[2].address, PORT) as outside,
    ):
        assert talk(inside)
        assert talk(outside)
        backends(lab).clear()
        lab.apply()
        assert is_cut(inside)
        assert is_cut(outside)


def test_a_flow_of_datagrams_moves_from_a_removed_backend_to_another(lab: Lab) -> None:
    with udp(lab.netns("client3")) as inside, udp(lab.outside) as outside, udp(lab.hosts[0].netns) as local:
        inside.connect((str(vip(lab)), 53))
        outside.connect((str(lab.hosts[2].address), PORT))
        local.connect(("127.0.0.1", PORT))
        for flow in (inside, outside, local):
            task = talk(flow).task
            lab.nets["web"].backends = {lab.address(other(task)): 1}
            lab.apply()
            assert talk(flow).task == other(task)
            lab.nets = default_nets()
            lab.apply()
            assert talk(flow).task == other(task)  # a backend that comes takes nothing away


def test_a_flow_that_began_before_there_was_a_backend_finds_it(lab: Lab) -> None:
    backends(lab).clear()
    lab.apply()
    with udp(lab.netns("client3")) as inside, udp(lab.outside) as outside:
        inside.connect((str(vip(lab)), 53))
        outside.connect((str(lab.hosts[2].address), PORT))
        for flow in (inside, outside):
            with pytest.raises(ConnectionRefusedError):
                talk(flow)
        lab.nets = default_nets()
        lab.apply()
        for flow in (inside, outside):
            assert talk(flow)


def test_a_flow_that_began_before_its_port_was_published_finds_the_service(lab: Lab) -> None:
    del lab.nets["web"].ports["udp", PORT]
    lab.apply()
    with udp(lab.outside) as flow:
        flow.connect((str(lab.hosts[0].address), PORT))
        with pytest.raises(ConnectionRefusedError):
            talk(flow)
        lab.nets = default_nets()
        lab.apply()
        assert talk(flow)


def test_a_port_that_is_no_longer_published_is_refused_also_on_open_connections(lab: Lab) -> None:
    host = lab.hosts[2]
    with connected(lab.outside, host.address, PORT) as connection, udp(lab.outside) as flow:
        flow.connect((str(host.address), PORT))
        assert talk(connection)
        assert talk(flow)
        lab.nets["web"].ports.clear()
        lab.apply()
        assert is_cut(connection)
        with pytest.raises(ConnectionRefusedError):
            talk(flow)
        with pytest.raises(ConnectionRefusedError):
            ask(lab.outside, host.address, PORT)


def test_a_port_that_moves_to_another_network_takes_its_flows_along(lab: Lab) -> None:
    with udp(lab.outside) as flow:
        flow.connect((str(lab.hosts[2].address), PORT))
        assert talk(flow).task in {"web1", "web2"}
        target = lab.nets["web"].ports.pop(("udp", PORT))
        lab.nets["red"].ports["udp", PORT] = target
        lab.apply()
        assert talk(flow).task == "red1"


def test_a_backend_that_went_while_the_daemon_was_away_loses_its_connections(lab: Lab) -> None:
    with connected(lab.netns("client3"), vip(lab)) as connection, udp(lab.netns("client3")) as flow:
        flow.connect((str(vip(lab)), 53))
        for one in (connection, flow):
            task = talk(one).task
            lab.nets = default_nets()
            lab.apply()
            lab.kernels.clear()  # kill -9
            del backends(lab)[lab.address(task)]
            lab.apply()
            assert is_cut(connection) if one is connection else talk(flow).task == other(task)


class Caller(threading.Thread):
    """A client that opens connection after connection."""

    def __init__(self, netns: str, address: object, port: int) -> None:
        super().__init__()
        self._to = netns, address, port
        self.done = 0
        self.failures: list[str] = []
        self.stop = False

    def run(self) -> None:
        while not self.stop:
            try:
                ask(*self._to)
            except OSError as error:
                self.failures.append(str(error))
            self.done += 1

    def wait_for_two(self) -> None:
        """Return when a connection has ended that began after this call."""
        target, deadline = self.done + 2, time.monotonic() + 10
        while self.done < target:
            assert time.monotonic() < deadline
            time.sleep(0.005)


def test_no_connection_fails_while_backends_are_replaced(lab: Lab) -> None:
    """A rolling update: one backend drains, goes, comes again, then the other; clients connect all the time."""
    callers = [
        Caller(lab.netns("client1"), vip(lab), 80),
        Caller(lab.netns("client3"), vip(lab), 80),
        Caller(lab.outside, lab.hosts[2].address, PORT),
    ]
    for caller in callers:
        caller.start()
    try:
        for turn in range(4):
            address = lab.address(("web1", "web2")[turn % 2])
            backends(lab)[address] = 0
            lab.apply()
            for caller in callers:
                caller.wait_for_two()
            del backends(lab)[address]
            lab.apply()
            backends(lab)[address] = 1
            lab.apply()
    finally:
        for caller in callers:
            caller.stop = True
        for caller in callers:
            caller.join()
    assert [caller.failures for caller in callers] == [[], [], []]


def test_a_fresh_kernel_changes_nothing_and_open_connections_live(lab: Lab) -> None:
    with (
        connected(lab.netns("client3"), vip(lab)) as inside,
        connected(lab.outside, lab.hosts[2].address, PORT) as outside,
        udp(lab.outside) as flow,
    ):
        flow.connect((str(lab.hosts[2].address), PORT))
        before = [talk(one).task for one in (inside, outside, flow)]
        for host in lab.hosts:
            fresh = Kernel(host_netns=host.netns)
            for report in (fresh.apply(lab.plan(host)), fresh.prune(lab.plan(host)), fresh.apply(lab.plan(host))):
                assert (dict(report.changes), report.errors) == ({}, [])
        assert [talk(one).task for one in (inside, outside, flow)] == before


def test_of_one_backend_the_kernel_is_asked_for_its_connections_only(lab: Lab) -> None:
    web, router = lab.nets["web"], lab.router(lab.hosts[2])
    for _ in range(4):
        ask(lab.netns("client3"), web.vip)
    asked = int(lab.address("web1"))

    def answerers(some: list[int] | None) -> set[int]:
        return visit(router, lambda namespace: {one.answerer for one in namespace.connections(True, some)})

    assert answerers([asked]) == {asked}
    assert answerers([]) == set()
    assert answerers(None) >= {int(lab.address(name)) for name in ("web1", "web2")}
