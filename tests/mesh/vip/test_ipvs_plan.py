"""What IPVS should hold, and what leads there, without a kernel."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network, ip_address

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mesh.vip import ingress, ipvs_plan
from mesh.vip.ipvs_plan import (
    AF_INET,
    AF_INET6,
    DeleteBackend,
    DeleteService,
    Destination,
    PutBackend,
    PutService,
    Service,
    ServiceId,
    difference,
    mark,
    meeting,
    service,
    service_id,
)
from mesh.vip.maps import service_key
from mesh.vip.plan import Backend, RouterPlan, VirtualService

VIP = IPv4Address("10.1.0.200")
TASKS = [IPv4Address("10.1.0.11"), IPv4Address("10.1.0.12"), IPv4Address("10.1.0.13")]


def vip(weights: dict[int, int], address: str = str(VIP), **settings_: object) -> VirtualService:
    """A VIP with weights for some of the tasks."""
    backends = tuple(Backend(TASKS[number], weight) for number, weight in weights.items())
    return VirtualService(ip_address(address), None, None, None, backends, **settings_)  # type: ignore[arg-type]


def port(weights: dict[int, int]) -> VirtualService:
    backends = tuple(Backend(TASKS[number], weight) for number, weight in weights.items())
    return VirtualService(IPv4Address("169.254.0.2"), "tcp", 8080, 80, backends)


def router(*services: VirtualService) -> RouterPlan:
    return RouterPlan(
        netns="/run/netns/r",
        subnet=IPv4Network("10.1.0.0/24"),
        gateway=IPv4Address("10.1.0.1"),
        vxlan_device="vx1",
        uplink_device="up0",
        uplink_address=IPv4Address("169.254.0.2"),
        masquerade=True,
        local_tasks=(),
        return_paths=(),
        services=services,
    )


def test_a_vip_is_known_by_a_mark_that_is_its_address_and_a_port_by_itself() -> None:
    assert service_id(service_key(vip({}))) == ServiceId(AF_INET, mark=int(VIP))
    assert service_id(service_key(port({}))) == ServiceId(AF_INET, 0, 6, IPv4Address("169.254.0.2").packed, 8080)


def test_marks_are_never_numbers_of_nodes() -> None:
    for address in ("10.0.0.1", "192.168.0.1", "172.16.0.1", "fd00::7", "fd00::", "fd00::7fff"):
        assert mark(int(ip_address(address))) > ingress.HOST_NUMBER


def test_vips_of_ipv6_that_end_alike_are_told_and_the_lower_one_is_kept() -> None:
    keys = [(int(ip_address(one)),) for one in ("fd00::1:0:0:7", "fd00::7", "fd00::8", "10.0.0.7")]
    assert meeting(keys) == {(int(ip_address("fd00::1:0:0:7")),)}
    assert service_id(keys[1]).family == AF_INET6


def test_a_backend_keeps_the_port_of_a_vip_and_has_the_target_of_a_published_one() -> None:
    assert list(service(vip({0: 1}), 0).weights) == [Destination(TASKS[0].packed, 0)]
    assert list(service(port({0: 1}), 0).weights) == [Destination(TASKS[0].packed, 80)]


@pytest.mark.parametrize("scheduler", ["rr", "wrr", "lc", "wlc", "sh", "mh"])
def test_hashing_schedulers_pass_over_drained_backends_and_have_one_order_on_all_nodes(scheduler: str) -> None:
    made = [service(vip({0: 1, 1: 0, 2: 5}, scheduler=scheduler), turn) for turn in (0, 1)]
    hashing = scheduler in {"sh", "mh"}
    assert made[0].scheduler == scheduler
    assert made[0].flags == (ipvs_plan.FLAG_FALLBACK if hashing else 0)
    assert (list(made[0].weights) == list(made[1].weights)) is hashing
    assert made[0].weights == made[1].weights


def test_affinity_is_persistence_in_whole_seconds() -> None:
    made = service(vip({0: 1}, affinity_s=0.3), 0)
    assert (made.flags, made.affinity_s) == (ipvs_plan.FLAG_PERSISTENT, 1)


def test_nothing_changes_when_nothing_differs() -> None:
    held = {service_id(service_key(one)): service(one, 3) for one in (vip({0: 1, 1: 0}), port({0: 2}))}
    assert difference(held, dict(held)) == ipvs_plan.Difference([], [])


def test_a_drained_backend_is_a_weight_and_a_removed_one_goes_after_the_rules() -> None:
    id_ = service_id(service_key(vip({})))
    drained = difference({id_: service(vip({0: 1, 1: 1}), 0)}, {id_: service(vip({0: 0, 1: 1}), 0)})
    assert drained.before == [PutBackend(id_, Destination(TASKS[0].packed, 0), 0, new=False)]
    assert drained.after == []
    gone = difference({id_: service(vip({0: 0, 1: 1}), 0)}, {id_: service(vip({1: 1}), 0)})
    assert gone == ipvs_plan.Difference([], [DeleteBackend(id_, Destination(TASKS[0].packed, 0))])


def test_another_scheduler_changes_the_service_and_not_its_backends() -> None:
    id_ = service_id(service_key(vip({})))
    wanted = service(vip({0: 1}, scheduler="lc"), 0)
    step = difference({id_: service(vip({0: 1}), 0)}, {id_: wanted})
    assert step == ipvs_plan.Difference([PutService(id_, wanted, new=False)], [])


_WEIGHTS = st.dictionaries(st.sampled_from(range(3)), st.integers(0, 3))
_SERVICES = st.dictionaries(
    st.sampled_from(range(1, 4)), st.tuples(_WEIGHTS, st.sampled_from(["rr", "wlc", "mh"])), max_size=3
)


@given(_SERVICES, _SERVICES)
@settings(max_examples=100, deadline=None)
def test_the_steps_lead_from_any_table_to_any_other(
    before: dict[int, tuple[dict[int, int], str]], after: dict[int, tuple[dict[int, int], str]]
) -> None:
    def made(some: dict[int, tuple[dict[int, int], str]]) -> dict[ServiceId, Service]:
        return {
            ServiceId(AF_INET, number): service(vip(weights, scheduler=scheduler), 0)
            for number, (weights, scheduler) in some.items()
        }

    held, wanted = made(before), made(after)
    table = {id_: replace(one, weights=dict(one.weights)) for id_, one in held.items()}
    step = difference(held, wanted)
    for operation in (*step.before, *step.after):
        match operation:
            case PutService(id_, one, new):
                assert (id_ in table) is not new
                table[id_] = replace(one, weights=table[id_].weights if not new else {})
            case DeleteService(id_):
                del table[id_]
            case PutBackend(id_, destination, weight, new):
                weights = table[id_].weights
                assert isinstance(weights, dict)
                assert (destination in weights) is not new
                weights[destination] = weight
            case DeleteBackend(id_, destination):
                weights = table[id_].weights
                assert isinstance(weights, dict)
                del weights[destination]
    assert table == wanted


@pytest.mark.parametrize("arrival", [(0, 1, 2), (2, 1, 0), (1, 0, 2), (2, 0), (1,)])
def test_hashed_backends_are_brought_into_one_order_and_never_all_gone(arrival: tuple[int, ...]) -> None:
    id_, wanted = ServiceId(AF_INET, 7), service(vip({0: 1, 1: 1, 2: 1}, scheduler="sh"), 0)
    held = replace(wanted, weights={Destination(TASKS[number].packed, 0): 1 for number in arrival})
    table = dict(held.weights)
    step = difference({id_: held}, {id_: wanted})
    for operation in step.before:
        match operation:
            case DeleteBackend(_, destination):
                del table[destination]
                assert table
            case PutBackend(_, destination, weight, _):
                table[destination] = weight
    assert list(table) == list(wanted.weights)
    assert step.before or arrival == (0, 1, 2)
    assert step.after == []


def test_only_services_that_take_connections_are_sent_to_ipvs() -> None:
    found = ipvs_plan.elements([vip({0: 1}), vip({0: 0}, "10.1.0.201"), vip({0: 1}, "fd00::9"), port({0: 0})])
    assert found["marks"] == {(int(VIP),): (int(VIP),)}
    six = int(ip_address("fd00::9"))
    assert found["v6marks"] == {(six,): (mark(six),)}
    assert found["idle"] == {(int(IPv4Address("169.254.0.2")), 6, 8080): ()}
    assert ipvs_plan.elements([port({0: 1})])["idle"] == {}


def test_the_router_refuses_only_what_ipvs_has_left() -> None:
    plan = router(vip({0: 1}))
    table = ipvs_plan.table(plan, ingress.as_served(ingress.service_addresses(plan)))
    hooks = {chain.name: chain.hook.priority for chain in table.chains if chain.hook is not None}
    assert hooks["guard"] > 99  # where IPVS takes connections in (ip_vs_core.c: NF_IP_PRI_NAT_SRC - 1)
    (begin,) = (chain.hook for chain in table.chains if chain.name == "begin")
    assert begin is not None
    assert (begin.type, begin.name) == ("nat", "prerouting")
    assert hooks["pass"] < 98 < hooks["show"]
    assert len({chain.name for chain in table.chains}) == len(table.chains)
