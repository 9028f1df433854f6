"""Tasks that move between hosts, and what a crash leaves half done, on a real kernel."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator
from ipaddress import IPv4Address

import pytest

from mesh.vip.kernel import Kernel
from mesh.vip.namespace import Namespace
from mesh.vip.nft import Library
from mesh.vip.plan import VipPlan
from tests.netns.vip_lab import Lab, ask, connected, talk
from tests.netns.world import OUTSIDE

pytestmark = pytest.mark.root

PORT = 8080


class Crash(BaseException):
    """The process dies here."""


@contextlib.contextmanager
def dying(lives: int) -> Iterator[None]:
    """A number of transactions, by nft or of elements by ourselves, are made; instead of the next the process dies."""
    left = itertools.count(lives, -1)

    def counted(call: Callable[..., None]) -> Callable[..., None]:
        def made(*arguments: object) -> None:
            if next(left) <= 0:
                raise Crash
            call(*arguments)

        return made

    with pytest.MonkeyPatch.context() as patch:
        for owner, name in ((Library, "run"), (Namespace, "edit")):
            patch.setattr(owner, name, counted(getattr(owner, name)))
        yield


@pytest.mark.parametrize("lives", [0, 1, 3, 4])
def test_what_a_crash_leaves_half_made_is_completed_by_the_next_process(lab: Lab, lives: int) -> None:
    """A host has four routers and itself: of five transactions some were made."""
    host = lab.hosts[0]
    assert lab.kernels[host.number].prune(VipPlan((), ())).errors == []
    with pytest.raises(Crash), dying(lives):
        Kernel(host_netns=host.netns).apply(lab.plan(host))
    lab.kernels[host.number] = Kernel(host_netns=host.netns)
    lab.apply()
    assert {ask(lab.netns("client1"), lab.nets["web"].vip).task for _ in range(2)} == {"web1", "web2"}
    assert ask(lab.outside, host.address, PORT).client == OUTSIDE
    assert ask(lab.netns("blueclient"), lab.nets["blue"].vip).task == "blue1"
    assert not Kernel(host_netns=host.netns).apply(lab.plan(host)).changes


@pytest.mark.parametrize("lives", [0, 1], ids=["at once", "before the last step"])
def test_a_change_that_a_crash_cut_short_cuts_no_connection_and_is_made_by_the_next_process(
    lab: Lab, lives: int
) -> None:
    host, web = lab.hosts[0], lab.nets["web"]
    with connected(lab.netns("client1"), web.vip) as one, connected(lab.netns("client1"), web.vip) as two:
        by_task = {talk(each).task: each for each in (one, two)}
        del web.backends[lab.address("web2")]
        del web.ports["tcp", PORT]
        # One transaction is all that IPVS needs.
        with contextlib.suppress(Crash) if lives else pytest.raises(Crash), dying(lives):
            Kernel(host_netns=host.netns).apply(lab.plan(host))
        assert talk(by_task["web1"]).task == "web1"
        lab.kernels[host.number] = Kernel(host_netns=host.netns)
        lab.apply()
        assert talk(by_task["web1"]).task == "web1"
        with pytest.raises(ConnectionResetError):
            talk(by_task["web2"])
    assert {ask(lab.netns("client1"), web.vip).task for _ in range(2)} == {"web1"}
    with pytest.raises(ConnectionRefusedError):
        ask(lab.outside, host.address, PORT)


def leave(lab: Lab, name: str) -> None:
    """The task's namespace loses its network, and the overlay forgets it."""
    for host in lab.hosts:
        host.tasks["web"] = [one for one in host.tasks["web"] if one.id != name]
    lab.world.apply()


@pytest.mark.parametrize(
    ("task", "address"), [("web1", "10.1.0.13"), ("web2", "10.1.0.12")], ids=["another address", "the same address"]
)
def test_a_task_that_moves_to_another_host_keeps_its_name_but_not_its_connections(
    lab: Lab, task: str, address: str
) -> None:
    """Its name is the VIP; connections are those of a process, which has ended."""
    web, client, entry = lab.nets["web"], lab.netns("client2"), lab.hosts[0].address
    web.backends = {lab.address(task): 1}
    lab.apply()
    with connected(client, web.vip) as inner, connected(lab.outside, entry, PORT) as outer:
        assert {talk(inner).task, talk(outer).task} == {task}
        web.backends = {}
        lab.apply()
        leave(lab, task)
        lab.task(lab.hosts[2], "web", address, f"{task}moved", serve=True)
        lab.world.apply()
        web.backends = {IPv4Address(address): 1}
        lab.apply()
        for connection in (inner, outer):
            with pytest.raises(ConnectionResetError):
                talk(connection)
    for netns, to, port in ((client, web.vip, 80), (lab.outside, entry, PORT)):
        assert ask(netns, to, port).task == f"{task}moved"
    leave(lab, f"{task}moved")
    home, back = lab.hosts[0 if task == "web1" else 1], lab.task_names[task]
    home.tasks["web"].append(back)
    lab.world.apply()
