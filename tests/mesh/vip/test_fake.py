"""The twin says what the kernel says (tests/netns/test_vip_reconcile.py has the same cases on the kernel)."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network

from mesh.vip.fake import FakeKernel
from mesh.vip.plan import Backend, ObservedService, PublishedPort, RouterPlan, VipPlan, VirtualService

VIP, TASK, UPLINK = (IPv4Address(a) for a in ("10.1.0.200", "10.1.0.11", "169.254.0.2"))
ROUTER = RouterPlan(
    netns="/run/netns/mesh-web",
    subnet=IPv4Network("10.1.0.0/24"),
    gateway=IPv4Address("10.1.0.1"),
    vxlan_device="vx4096",
    uplink_device="up0",
    uplink_address=UPLINK,
    masquerade=True,
    local_tasks=(),
    return_paths=(),
    services=(VirtualService(VIP, None, None, None, (Backend(TASK, 2), Backend(VIP, 0))),),
)
PLAN = VipPlan((ROUTER,), (PublishedPort("tcp", 80, UPLINK, "mesh4096"),))


def test_the_second_apply_changes_nothing_until_somebody_flushes() -> None:
    fake = FakeKernel()
    assert sum(fake.apply(PLAN).changes.values()) == 2
    assert not fake.apply(PLAN).changes
    fake.flush()
    assert fake.apply(PLAN).changes


def test_it_shows_what_was_applied() -> None:
    fake = FakeKernel()
    fake.apply(PLAN)
    seen = fake.observe()
    assert seen.services == {ROUTER.netns: (ObservedService(VIP, None, None, {TASK: 1}),)}
    assert seen.published == {("tcp", 80): UPLINK}


def test_a_broken_router_is_told_and_the_rest_is_done() -> None:
    fake = FakeKernel()
    fake.broken[ROUTER.netns] = "gone"
    other = replace(ROUTER, netns="/run/netns/mesh-db")
    report = fake.apply(VipPlan((ROUTER, other), ()))
    assert report.errors == ["cannot balance in the router /run/netns/mesh-web: gone"]
    assert list(fake.observe().services) == [other.netns]


def test_prune_drops_what_is_not_planned() -> None:
    fake = FakeKernel()
    fake.apply(PLAN)
    assert fake.prune(VipPlan((), ())).changes == {"vip table": 1}
    assert fake.observe().services == {}
