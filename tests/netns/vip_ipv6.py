"""IPv6 for the network "web" of the lab, laid by hand: what the balancers need of the overlay, and no more.

Tasks have a /128 and reach everything by the router, as over IPv4; routers reach each other by unique-local addresses.
"""

from __future__ import annotations

import json
from dataclasses import replace
from ipaddress import IPv6Address, IPv6Network

from mesh.vip.plan import Backend, RouterPlan, VipPlan, VirtualService
from overlay import names
from tests.netns.vip_lab import Lab
from tests.netns.world import Host, inside

SUBNET6 = IPv6Network("fd00:10:1::/64")
GATEWAY6 = SUBNET6[1]
VIP6 = SUBNET6[0x200]
OUTSIDE6 = IPv6Address("2001:db8:51::2")
_UPLINK = IPv6Network("fd6d:6573:68:1000::/64")
_ROUTERS = IPv6Network("fd6d:6573:69::/64")
UPLINK_HOST6, UPLINK_ROUTER6 = _UPLINK[1], _UPLINK[2]


def host6(host: Host) -> IPv6Address:
    """The address of a host on the underlay."""
    return IPv6Address("2001:db8:66::10") + host.number


def address6(lab: Lab, name: str) -> IPv6Address:
    """The address of a task: the last byte is that of its IPv4 address."""
    return SUBNET6[int(lab.address(name)) & 0xFF]


def speak(lab: Lab) -> None:
    """Lay IPv6 on the underlay and on the network "web" of all hosts."""
    switch = lab.world.switch
    for netns in (switch, *(host.netns for host in lab.hosts)):
        inside(netns, "sysctl", "-qw", "net.ipv6.conf.all.forwarding=1")
    for device, address in (("br0", "2001:db8:66::1/64"), ("out", "2001:db8:51::1/64")):
        _address(switch, device, address)
    _address(lab.outside, "eth0", f"{OUTSIDE6}/64")
    _ip(lab.outside, "route add default via 2001:db8:51::1")
    for host in lab.hosts:
        _address(host.netns, "eth0", f"{host6(host)}/64")
        _ip(host.netns, "route add default via 2001:db8:66::1")
        _router(lab, host)


def _router(lab: Lab, host: Host) -> None:
    net = lab.nets["web"]
    router, uplink, vxlan = lab.router(host), names.uplink(net.vni), names.vxlan_device(net.vni)
    inside(router, "sysctl", "-qw", "net.ipv6.conf.all.forwarding=1")
    _address(host.netns, uplink.host_device, f"{UPLINK_HOST6}/126")
    _address(router, uplink.router_device, f"{UPLINK_ROUTER6}/126")
    _ip(router, f"route add default via {UPLINK_HOST6}")
    _address(router, "lo", f"{GATEWAY6}/128")
    for task in host.tasks["web"]:
        device = names.veth_device(task.address)
        inside(task.netns, "sysctl", "-qw", "net.ipv6.conf.eth0.disable_ipv6=0")
        _address(task.netns, "eth0", f"{address6(lab, task.id)}/128")
        mac = _mac(router, device)
        _ip(task.netns, f"route add {GATEWAY6} dev eth0")
        _ip(task.netns, f"neigh replace {GATEWAY6} lladdr {mac} dev eth0")
        _ip(task.netns, f"route add default via {GATEWAY6}")
        mac = _mac(task.netns, "eth0")
        _ip(router, f"route add {address6(lab, task.id)} dev {device}")
        _ip(router, f"neigh replace {address6(lab, task.id)} lladdr {mac} dev {device}")
    for peer in lab.hosts:
        if peer is not host:
            via = _ROUTERS[peer.number]
            _ip(router, f"neigh replace {via} lladdr {names.router_mac(peer.number)} dev {vxlan}")
            for task in peer.tasks["web"]:
                _ip(router, f"route add {address6(lab, task.id)} via {via} dev {vxlan} onlink")


def _address(netns: str, device: str, address: str) -> None:
    inside(netns, "sysctl", "-qw", f"net.ipv6.conf.{device}.disable_ipv6=0")
    _ip(netns, f"addr replace {address} dev {device} nodad")


def _mac(netns: str, device: str) -> str:
    return str(json.loads(inside(netns, "ip", "-j", "link", "show", "dev", device))[0]["address"])


def _ip(netns: str, words: str) -> None:
    inside(netns, "ip", "-6", *words.split())


def plan6(lab: Lab, host: Host) -> VipPlan:
    """The plan of a host, with the network "web" in both families."""
    plan, router = lab.plan(host), lab.router(host)
    uplink = names.uplink(lab.nets["web"].vni).router_address
    ports = tuple(
        replace(port, router_address6=UPLINK_ROUTER6) if port.router_address == uplink else port
        for port in plan.published
    )
    return VipPlan(tuple(_both(lab, r) if r.netns == router else r for r in plan.routers), ports)


def _both(lab: Lab, router: RouterPlan) -> RouterPlan:
    translated = {task.address: address6(lab, name) for name, task in lab.task_names.items()}

    def other(one: VirtualService) -> VirtualService:
        address = VIP6 if one.protocol is None else UPLINK_ROUTER6
        backends = tuple(Backend(translated[b.address], b.weight) for b in one.backends)  # type: ignore[index]
        return replace(one, address=address, backends=backends)

    return replace(
        router,
        subnet6=SUBNET6,
        gateway6=GATEWAY6,
        uplink_address6=UPLINK_ROUTER6,
        local_tasks=(*router.local_tasks, *(translated[one] for one in router.local_tasks)),  # type: ignore[index]
        return_paths=tuple(replace(p, router_address6=_ROUTERS[p.node_number]) for p in router.return_paths),
        services=(*router.services, *map(other, router.services)),
    )


def apply6(lab: Lab) -> None:
    """Make the balancers of all hosts as planned, in both families."""
    for host in lab.hosts:
        kernel = lab.kernels[host.number]
        assert kernel.apply(plan6(lab, host)).errors == []
        assert kernel.prune(plan6(lab, host)).errors == []
