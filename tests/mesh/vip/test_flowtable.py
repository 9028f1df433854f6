"""Which devices a flowtable has, and for how patient connections there is one."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network

from mesh.vip import flowtable
from mesh.vip.plan import DEFAULT_IDLE_S, RouterPlan


def router(*task_devices: str) -> RouterPlan:
    return RouterPlan(
        netns="/run/netns/mesh-web",
        subnet=IPv4Network("10.1.0.0/24"),
        gateway=IPv4Address("10.1.0.1"),
        vxlan_device="vx4096",
        uplink_device="up0",
        uplink_address=IPv4Address("169.254.0.2"),
        masquerade=True,
        local_tasks=(),
        return_paths=(),
        services=(),
        task_devices=task_devices,
    )


def test_all_devices_of_a_router_take_part_and_of_very_many_those_that_all_share() -> None:
    assert flowtable.devices(router("t0a01000b")) == ("vx4096", "up0", "t0a01000b")
    many = flowtable.devices(router(*(f"t{number:08x}" for number in range(5000))))
    assert (many[:2], len(many)) == (("vx4096", "up0"), flowtable.DEVICES_MAX)


def test_the_difference_is_what_is_to_be_added_and_what_is_to_be_taken_out() -> None:
    assert flowtable.difference(("vx4096", "up0", "t1"), {"up0", "lo"}) == (["vx4096", "t1"], ["lo"])
    assert flowtable.difference((), ()) == ([], [])


def test_the_time_out_that_is_left_to_one_that_comes_back_is_a_good_one() -> None:
    assert flowtable.allows(DEFAULT_IDLE_S)
    assert not flowtable.allows(59)
    assert not flowtable.allows(86_400)
