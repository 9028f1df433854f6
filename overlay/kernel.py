"""Makes an `OverlayPlan` true on this host: reads what the kernel holds, changes what differs, removes what is ours.

Level-triggered and idempotent: the same plan twice changes nothing; after a crash anywhere the next `apply` completes
what was begun, and a fresh process adopts all that is right without touching it. Acknowledgements of the kernel are not
believed (it acknowledges ignored FDB changes): every apply works from dumps.

Order of an apply, per network, so that traffic never meets a half-made path: namespace, sysctls, devices, addresses,
neighbours and FDB, routes. `prune` goes the other way. What cannot be done is collected per thing; the rest is done.
Synchronous; all calls from one worker thread.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pyroute2.netlink.exceptions import NetlinkError

from overlay import names
from overlay.encryption import Encrypted, Encryption
from overlay.keys import KeyFile
from overlay.made import Made, News, Rerouted
from overlay.plan import LocalEndpoint, OverlayNetwork, OverlayPlan
from overlay.rtnl import Link, Namespace, Route, create_namespace, is_namespace, reason, remove_namespace
from overlay.underlay import DEFAULT_UNDERLAY_MTU, underlay_mtu
from overlay.wanted import (
    addresses_of,
    reached,
    route_to_remote,
    router_addresses,
    task_routes,
    task_sysctls6,
    tunnel_state,
    wanted_routes,
)

KernelError = (OSError, NetlinkError)

HOST_SYSCTLS = {"ipv4/ip_forward": "1"}
HOST_SYSCTLS6 = {"ipv6/conf/all/forwarding": "1"}
# Devices that take router advertisements go on to do so although the host forwards from now on.
ACCEPT_RA_ALSO_FORWARDING = "2"
# Set before a router gets devices: they inherit `default`. No redirects: answers of the routing mesh leave by the
# device they came in, on purpose. No reverse path filter: their way back is not the way of the routing table.
ROUTER_SYSCTLS = {
    "ipv4/ip_forward": "1",
    "ipv4/conf/all/rp_filter": "0",
    "ipv4/conf/default/rp_filter": "0",
    "ipv4/conf/all/send_redirects": "0",
    "ipv4/conf/default/send_redirects": "0",
    "ipv4/conf/all/proxy_arp": "1",  # a task finds its whole subnet behind its one interface
    "ipv4/conf/all/accept_local": "1",  # else, where routes make VIPs local, each packet's source is looked up
}
ROUTER_SYSCTLS6 = {
    "ipv6/conf/all/disable_ipv6": "0",
    "ipv6/conf/default/disable_ipv6": "0",
    "ipv6/conf/default/accept_ra": "0",
    "ipv6/conf/all/forwarding": "1",
}
# A client that reaches one backend by two addresses (VIP and its own) loses SYNs for a second when timestamps carry a
# random offset per destination (PAWS on TIME_WAIT); 2 is timestamps without offsets.
TASK_SYSCTLS = {"ipv4/tcp_timestamps": "2"}
_OUR_KINDS = ("veth", "vxlan", "wireguard", "tun")


@dataclass(slots=True)
class Report:
    """What one call changed, counted by kind of thing, and sentences about what it could not."""

    changes: Counter[str] = field(default_factory=Counter)
    errors: list[str] = field(default_factory=list)

    def failed(self, what: str, error: Exception) -> None:
        """Note a thing that could not be done."""
        self.errors.append(f"cannot {what}: {reason(error)}")


@dataclass(frozen=True, slots=True)
class _Underlay:
    """What carries the VXLAN of a network between nodes: the host's own network, or WireGuard."""

    home: Namespace  # where VXLAN devices are made, and their UDP socket stays
    local: str  # their tunnel address; "": as the route says
    mtu: int  # of the network
    nodes: Mapping[int, str]  # tunnel addresses of the nodes that are reached, by number


class Kernel:
    """The overlay of one host."""

    def __init__(
        self,
        netns_dir: str = "/run/netns",
        host_netns: str | None = None,
        keys: KeyFile | None = None,
        now_s: Callable[[], float] = lambda: 0.0,
    ) -> None:
        """`netns_dir` holds the router namespaces by name; `host_netns` is the host's own (None: this process's).

        `keys` are those of this node, and `now_s` the time of day, both for encrypted networks.
        """
        self._dir = Path(netns_dir)
        self._host_netns = host_netns
        self._encryption = Encryption(self._dir, host_netns, keys, now_s)
        self._handles: dict[str | None, Namespace] = {}
        self._made = Made()
        self._news = News(True, ())  # of the last `apply`, for `prune`

    def apply(self, plan: OverlayPlan, whole: bool = True) -> Report:
        """Add and correct what the plan wants. Removes only what stands in its way.

        Unless it is to be done as a `whole`, what is planned as it was applied last is not looked at.
        """
        report, self._news = Report(), self._made.news(plan, whole)
        for one in self._news.rerouted:
            self._reroute(plan, one, report, came=True)
        if not plan.networks or self._news.nothing:
            return report
        try:
            host = self._handle(self._host_netns)
            self._sysctls(host, HOST_SYSCTLS, "host", report)
            if any(network.subnet6 is not None for network in plan.networks):
                self._forward6(host, report)
            mtu = underlay_mtu(host, plan.underlay, [peer.underlay for peer in plan.peers])
        except KernelError as error:
            report.failed("look at the host's network", error)
            return report
        plain = _Underlay(
            host,
            str(plan.underlay),
            names.tunnel_mtu(mtu, plan.underlay.version),
            {peer.number: str(peer.underlay) for peer in plan.peers},
        )
        encrypted = self._encrypted(plan, host, mtu, report)
        for network in self._news.networks:
            underlay = encrypted if network.encrypted else plain
            if underlay is None:
                continue
            errors = len(report.errors)
            try:
                self._network(host, underlay, plan, network, report)
            except KernelError as error:
                report.failed(f"make the router of network {network.id}", error)
            if len(report.errors) == errors:
                self._made.done([network])
        return report

    def prune(self, plan: OverlayPlan, whole: bool = True) -> Report:
        """Remove what is ours and not in the plan; unless as a `whole`, of what the last `apply` looked at."""
        report, news = Report(), self._news
        for one in news.rerouted:
            self._reroute(plan, one, report, came=False)
        if news.nothing and not whole:
            return report
        wanted = {names.router_netns(n.id): n for n in plan.networks}
        looked_at = {names.router_netns(n.id) for n in (plan if whole else news).networks}
        for name in self._routers():
            path = str(self._dir / name)
            try:
                if name in looked_at:
                    self._prune_router(plan, wanted[name], self._handle(path), report)
                elif name not in wanted:
                    self._remove_router(path, report)
            except KernelError as error:
                report.failed(f"remove what is left of {name}", error)
        self._prune_encryption(plan, report)
        self._prune_host(plan, report)
        return report

    def _reroute(self, plan: OverlayPlan, one: Rerouted, report: Report, came: bool) -> None:
        """Routes to tasks of other nodes, and nothing else: those that came, or those that went."""
        network, errors = one.network, len(report.errors)
        try:
            router = self._handle(str(self._dir / names.router_netns(network.id)))
            index = router.index_of(names.vxlan_device(network.vni))
        except KernelError as error:
            report.failed(f"route in network {network.id}", error)
            return
        nodes = reached(plan, network)
        some = [route_to_remote(network, r) for r in (one.came if came else one.went) if r.node_number in nodes]
        if not came:
            for route in some:
                self._unroute(router, network, route, report)
            return
        self._replace(router, network, [(route, index) for route in some], report)
        if len(report.errors) == errors:
            self._made.done([network])

    def _unroute(self, router: Namespace, network: OverlayNetwork, route: Route, report: Report) -> None:
        try:
            router.delete_route(route, names.ROUTE_PROTOCOL)
            report.changes["route"] += 1
        except KernelError as error:
            report.failed(f"remove the route to {route.destination} in network {network.id}", error)

    def _replace(
        self, where: Namespace, network: OverlayNetwork, routes: list[tuple[Route, int | None]], report: Report
    ) -> None:
        for route, error in where.replace_routes(routes, names.ROUTE_PROTOCOL).items():
            if error:
                report.failed(f"route {route.destination} in network {network.id}", OSError(error, os.strerror(error)))
            else:
                report.changes["route"] += 1

    # --- encryption -------------------------------------------------------------------------------------------------

    def _encrypted(self, plan: OverlayPlan, host: Namespace, mtu: int, report: Report) -> _Underlay | None:
        """What carries encrypted networks; None when there are none, or nothing to carry them, which is reported."""
        networks = [network for network in plan.networks if network.encrypted]
        if not networks:
            return None
        try:
            for network in networks:
                self._shut(network, report)
            self._encryption.door()  # or nothing needs to be made
            inner = self._namespace(self._encryption.path, report)
            made = self._encryption.apply(plan, host, inner, mtu, report.changes)
        except KernelError as error:
            for network in networks:
                report.failed(f"carry network {network.id}, which is encrypted", error)
                for endpoint in network.local:
                    report.failed(f"attach task {endpoint.id} to network {network.id}, which is encrypted", error)
            return None
        return _through(made)

    def _shut(self, network: OverlayNetwork, report: Report) -> None:
        """Remove a VXLAN device of an encrypted network whose socket is not among WireGuard devices."""
        path = self._dir / names.router_netns(network.id)
        if not is_namespace(path):
            return
        router = self._handle(str(path))
        for link in router.links().values():
            if link.kind == "vxlan" and link.home != self._home(router, self._encryption.path):
                router.delete_link(link.index)
                report.changes["link"] += 1

    def _home(self, router: Namespace, path: str | None) -> int | None:
        """The number by which a router knows a namespace. -1, which no device has, when that is not there."""
        if path is not None and not is_namespace(Path(path)):
            return -1
        found = router.number_of(self._handle(path))
        return -1 if found is None else found

    def _prune_encryption(self, plan: OverlayPlan, report: Report) -> None:
        path = self._encryption.path
        if not Path(path).exists():
            return
        try:
            if any(network.encrypted for network in plan.networks):
                if is_namespace(Path(path)):
                    self._encryption.prune(plan, self._handle(path), report.changes)
                return
            if is_namespace(Path(path)):
                self._encryption.remove(self._handle(path))
            self._forget(path)
            remove_namespace(path)
            report.changes["namespace"] += 1
        except KernelError as error:
            report.failed("remove what encrypted networks have left", error)

    # --- one network ------------------------------------------------------------------------------------------------

    def _network(
        self, host: Namespace, underlay: _Underlay, plan: OverlayPlan, network: OverlayNetwork, report: Report
    ) -> None:
        mtu = underlay.mtu
        router = self._router(network, report)
        self._sysctls(router, ROUTER_SYSCTLS, "router", report)
        if network.subnet6 is not None:
            self._sysctls(router, ROUTER_SYSCTLS6, "router", report)
        links = router.links()
        self._link_up(router, links["lo"], report)
        vxlan = self._vxlan(underlay, router, plan, network, report)
        uplink = self._uplink(host, router, network, report)
        self._addresses(router, router_addresses(network, links["lo"].index, uplink.index), report)
        if plan.name_server is not None:
            self._name_server(host, router, network, f"{plan.name_server}/32", report)
        self._tunnels(router, vxlan, network, underlay.nodes, report)
        veths = self._veths(router, network, mtu, report)
        self._sysctls(router, {f"ipv4/neigh/{device}/proxy_delay": "0" for device in veths.values()}, "router", report)
        self._routes(router, plan, network, router.links(), veths, report)

    def _router(self, network: OverlayNetwork, report: Report) -> Namespace:
        """The network's router namespace."""
        return self._namespace(str(self._dir / names.router_netns(network.id)), report)

    def _namespace(self, name: str, report: Report) -> Namespace:
        """A namespace of ours; made when it is not there."""
        path = Path(name)
        if not is_namespace(path):
            self._empty_lost(name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.unlink(missing_ok=True)
            create_namespace(name)
            report.changes["namespace"] += 1
        return self._handle(name)

    def _empty_lost(self, path: str) -> None:
        """What has lost its name lives on through our handle, and its devices keep VNIs and ports: remove them."""
        lost = self._handles.get(path)
        if lost is not None:
            for link in lost.links().values():
                if link.kind in _OUR_KINDS:
                    lost.delete_link(link.index)
        self._forget(path)

    def _vxlan(
        self, underlay: _Underlay, router: Namespace, plan: OverlayPlan, network: OverlayNetwork, report: Report
    ) -> Link:
        """The network's VXLAN device, in the router. Its UDP socket stays where it was made."""
        name, mtu = names.vxlan_device(network.vni), underlay.mtu
        device = router.links().get(name)
        wanted = (network.vni, underlay.local, plan.vxlan_port, self._home(router, underlay.home.path))
        if device is not None and (device.vni, device.local, device.port, device.home) != wanted:
            router.delete_link(device.index)
            device = None
        if device is None:
            device = self._new_vxlan(underlay, router, plan, network, report)
        mac = names.router_mac(plan.node_number)
        if (device.mac, device.mtu, device.up) != (mac, mtu, True):
            router.set_link(device.index, address=mac, mtu=mtu, state="up")
            report.changes["link"] += 1
        return device

    def _new_vxlan(
        self, underlay: _Underlay, router: Namespace, plan: OverlayPlan, network: OverlayNetwork, report: Report
    ) -> Link:
        name, home = names.vxlan_device(network.vni), underlay.home
        left_over = home.links().get(name)
        if left_over is not None:
            if not _is_left_over(left_over, network.vni):
                raise OSError(errno.EEXIST, f"the name {name} belongs to another device of this machine")
            home.delete_link(left_over.index)  # of a crash between making and moving
        try:
            home.add_vxlan(name, network.vni, underlay.local, plan.vxlan_port, underlay.mtu)
        except NetlinkError as error:
            if error.code != errno.EEXIST:
                raise
            held = f"VNI {network.vni} on UDP port {plan.vxlan_port} belongs to another device of this machine"
            raise OSError(errno.EEXIST, held) from error
        made = home.links()[name]
        home.move_link(made.index, str(router.path), names.alias(network.id))
        report.changes["link"] += 1
        return router.links()[name]

    def _uplink(self, host: Namespace, router: Namespace, network: OverlayNetwork, report: Report) -> Link:
        """The veth pair to the host, with both ends up and addressed."""
        uplink = names.uplink(network.vni)
        links = host.links()
        inner = router.links().get(uplink.router_device)
        if uplink.host_device not in links or inner is None:
            if uplink.host_device in links:
                host.delete_link(links[uplink.host_device].index)
            host.add_veth(uplink.host_device, uplink.router_device, str(router.path), DEFAULT_UNDERLAY_MTU)
            report.changes["link"] += 1
            links = host.links()
            inner = router.links()[uplink.router_device]
        outer = links[uplink.host_device]
        self._link_up(host, outer, report, names.alias(network.id))
        self._link_up(router, inner, report)
        wanted = {(outer.index, f"{uplink.host_address}/{uplink.prefix_length}")}
        if network.subnet6 is not None:
            self._sysctls(host, {f"ipv6/conf/{uplink.host_device}/disable_ipv6": "0"}, "host", report)
            wanted.add((outer.index, f"{uplink.host_address6}/{uplink.prefix_length6}"))
        self._addresses(host, wanted, report)
        # localhost:port on this host goes through the uplink with a loopback source until it is translated.
        device = f"ipv4/conf/{uplink.host_device}"
        self._sysctls(host, {f"{device}/route_localnet": "1", f"{device}/rp_filter": "0"}, "host", report)
        return inner

    def _name_server(
        self, host: Namespace, router: Namespace, network: OverlayNetwork, address: str, report: Report
    ) -> None:
        """The address that is the name server's everywhere: in each router, and on the host by each of its uplinks."""
        self._addresses(router, {(router.links()["lo"].index, address)}, report)
        outer = host.links()[names.uplink(network.vni).host_device]
        self._addresses(host, {(outer.index, address)}, report)

    def _addresses(self, router: Namespace, wanted: set[tuple[int, str]], report: Report) -> None:
        for index, address in sorted(wanted - router.addresses()):
            router.add_address(index, address)
            report.changes["address"] += 1

    def _tunnels(
        self, router: Namespace, vxlan: Link, network: OverlayNetwork, nodes: Mapping[int, str], report: Report
    ) -> None:
        """One permanent neighbour and one FDB entry per other node."""
        neighbours, entries = tunnel_state(network, nodes)
        held = router.neighbours(vxlan.index)
        for address, mac in neighbours.items():
            if held.get(address) != mac:
                router.set_neighbour(vxlan.index, address, mac)
                report.changes["neighbour"] += 1
        present = router.fdb(vxlan.index)
        known = {entry.mac for entry in present}
        for entry in entries - present:
            # For a node that moved: the kernel would ignore a second entry for its MAC.
            (router.replace_fdb if entry.mac in known else router.add_fdb)(vxlan.index, entry)
            report.changes["fdb"] += 1

    def _routes(
        self,
        router: Namespace,
        plan: OverlayPlan,
        network: OverlayNetwork,
        links: dict[str, Link],
        veths: dict[str, str],
        report: Report,
    ) -> None:
        missing = wanted_routes(plan, network, veths) - router.routes(names.ROUTE_PROTOCOL)
        routes = [(route, links[route.device].index if route.device else None) for route in missing]
        self._replace(router, network, routes, report)

    # --- tasks ------------------------------------------------------------------------------------------------------

    def _veths(self, router: Namespace, network: OverlayNetwork, mtu: int, report: Report) -> dict[str, str]:
        """Every local task's interface; returns the router's devices of those that are there, by address."""
        made: dict[str, str] = {}
        for endpoint in network.local:
            try:
                make = self._handed if endpoint.handed else self._veth
                device = make(router, network, endpoint, mtu, report)
                made |= {str(address): device for address in addresses_of(endpoint)}
            except KernelError as error:
                report.failed(f"attach task {endpoint.id} to network {network.id}", error)
        return made

    def _handed(
        self, router: Namespace, network: OverlayNetwork, endpoint: LocalEndpoint, mtu: int, report: Report
    ) -> str:
        """A veth whose other end an engine takes from the host; from then on that end is the engine's."""
        name, given = names.veth_device(endpoint.address), names.handed_device(endpoint.address)
        outer = router.links().get(name)
        if outer is None:
            host = self._handle(self._host_netns)
            left_over = host.links().get(given)
            if left_over is not None:
                host.delete_link(left_over.index)  # of a veth that has lost its router
            router.add_veth(name, given, self._host_netns or "/proc/thread-self/ns/net", mtu)
            report.changes["link"] += 1
            outer = router.links()[name]
        self._link_up(router, outer, report, names.alias(network.id))
        if network.gateway6 is not None:  # neighbours of IPv6 are answered where they are asked
            self._addresses(router, {(outer.index, f"{network.gateway6}/128")}, report)
        return name

    def _veth(
        self, router: Namespace, network: OverlayNetwork, endpoint: LocalEndpoint, mtu: int, report: Report
    ) -> str:
        name = names.veth_device(endpoint.address)
        with contextlib.closing(Namespace(endpoint.netns)) as task:
            outer, inner = router.links().get(name), task.links().get(endpoint.interface)
            if outer is None or inner is None:
                if outer is not None:
                    router.delete_link(outer.index)  # of an earlier task with this address
                router.add_veth(name, endpoint.interface, endpoint.netns, mtu)
                report.changes["link"] += 1
                outer, inner = router.links()[name], task.links()[endpoint.interface]
            for where, link in ((router, outer), (task, inner)):
                if link.mtu != mtu:
                    where.set_link(link.index, mtu=mtu)
                    report.changes["link"] += 1
            self._link_up(router, outer, report, names.alias(network.id))
            if network.subnet6 is not None:
                self._addresses(router, {(outer.index, f"{names.LINK_LOCAL_GATEWAY}/64")}, report)
            self._task_side(task, inner, network, endpoint, report)
        return name

    def _task_side(
        self, task: Namespace, device: Link, network: OverlayNetwork, endpoint: LocalEndpoint, report: Report
    ) -> None:
        """The inside of a task: address with the network's prefix, default route by its gateway."""
        self._sysctls(task, TASK_SYSCTLS, "task", report)
        if endpoint.address6 is not None:
            self._sysctls(task, task_sysctls6(device.name), "task", report)
        self._link_up(task, task.links()["lo"], report)
        self._link_up(task, device, report)
        self._addresses(task, {(device.index, f"{endpoint.address}/{network.subnet.prefixlen}")}, report)
        if endpoint.address6 is not None:
            # Alone on its link: everything else of the network is behind the router.
            self._addresses(task, {(device.index, f"{endpoint.address6}/128")}, report)
        missing = task_routes(network, endpoint) - task.routes(names.ROUTE_PROTOCOL)
        self._replace(task, network, [(route, device.index) for route in missing], report)

    def _forward6(self, host: Namespace, report: Report) -> None:
        """Let the host forward IPv6, without taking from it the routes that it gets by advertisements."""
        advertised = host.sysctls_that("ipv6/conf/*/accept_ra", "1")
        kept = {name: ACCEPT_RA_ALSO_FORWARDING for name in advertised if not name.startswith("ipv6/conf/mesh")}
        self._sysctls(host, kept, "host", report)
        self._sysctls(host, HOST_SYSCTLS6, "host", report)

    # --- removal ----------------------------------------------------------------------------------------------------

    def _routers(self) -> list[str]:
        try:
            return sorted(name for name in os.listdir(self._dir) if names.is_router_netns(name))
        except FileNotFoundError:
            return []

    def _prune_router(self, plan: OverlayPlan, network: OverlayNetwork, router: Namespace, report: Report) -> None:
        links = router.links()
        veths = {str(a): names.veth_device(e.address) for e in network.local for a in addresses_of(e)}
        for route in router.routes(names.ROUTE_PROTOCOL) - wanted_routes(plan, network, veths):
            router.delete_route(route, names.ROUTE_PROTOCOL)
            report.changes["route"] += 1
        keep = {"lo", names.vxlan_device(network.vni), names.uplink(network.vni).router_device, *veths.values()}
        for link in links.values():
            if link.name not in keep and link.kind in ("veth", "vxlan"):
                router.delete_link(link.index)
                report.changes["link"] += 1
        vxlan = links.get(names.vxlan_device(network.vni))
        if vxlan is not None:
            self._prune_tunnels(router, vxlan, plan, network, report)

    def _prune_tunnels(
        self, router: Namespace, vxlan: Link, plan: OverlayPlan, network: OverlayNetwork, report: Report
    ) -> None:
        """Forget nodes that are gone; where those that stay are reached, `_tunnels` has said."""
        neighbours, entries = tunnel_state(network, dict.fromkeys(reached(plan, network), ""))
        for address in router.neighbours(vxlan.index):
            if address not in neighbours:
                router.delete_neighbour(vxlan.index, address)
                report.changes["neighbour"] += 1
        known = {entry.mac for entry in entries}
        for entry in router.fdb(vxlan.index):
            if entry.mac not in known:
                router.delete_fdb(vxlan.index, entry)
                report.changes["fdb"] += 1

    def _remove_router(self, path: str, report: Report) -> None:
        """A whole network leaves this host. The VXLAN device holds its VNI as long as it lives, so it goes first."""
        if is_namespace(Path(path)):
            router = self._handle(path)
            for link in router.links().values():
                if link.kind in ("veth", "vxlan"):
                    router.delete_link(link.index)
        self._forget(path)
        remove_namespace(path)
        report.changes["namespace"] += 1

    def _prune_host(self, plan: OverlayPlan, report: Report) -> None:
        """Devices of ours in the host namespace that no network of the plan has."""
        wanted = {names.uplink(n.vni).host_device for n in plan.networks}
        try:
            host = self._handle(self._host_netns)
            for link in host.links().values():
                uplink = link.alias.startswith(names.alias("")) or names.is_uplink(link.name)
                stray = link.kind == "vxlan" and _is_left_over(link, link.vni)
                if stray or (uplink and link.kind == "veth" and link.name not in wanted):
                    host.delete_link(link.index)
                    report.changes["link"] += 1
        except KernelError as error:
            report.failed("remove devices of networks that are gone", error)

    # --- helpers ----------------------------------------------------------------------------------------------------

    def _handle(self, path: str | None) -> Namespace:
        """A handle that is kept while its namespace lives."""
        held = self._handles.get(path)
        if held is None or not held.alive():
            self._forget(path)
            held = self._handles[path] = Namespace(path)
        return held

    def _forget(self, path: str | None) -> None:
        held = self._handles.pop(path, None)
        if held is not None:
            held.close()

    def close(self) -> None:
        """Close all handles. What is in the kernel stays."""
        for path in list(self._handles):
            self._forget(path)

    def _sysctls(self, where: Namespace, wanted: dict[str, str], place: str, report: Report) -> None:
        changed = where.set_sysctls(wanted)
        if changed:
            report.changes[f"{place} sysctl"] += len(changed)

    def _link_up(self, where: Namespace, link: Link, report: Report, alias: str = "") -> None:
        """Up, and under its alias where it has one (which the kernel ignores when it makes a device)."""
        if not link.up or (alias and link.alias != alias):
            where.set_link(link.index, state="up", **({"ifalias": alias} if alias else {}))
            report.changes["link"] += 1


def _is_left_over(link: Link, vni: int) -> bool:
    """Whether a VXLAN device of the host is one of ours that never got into its router: as we make them, and unused."""
    return link.kind == "vxlan" and link.vni == vni and link.name == names.vxlan_device(vni) and not link.up


def _through(encrypted: Encrypted) -> _Underlay:
    return _Underlay(encrypted.inner, "", encrypted.mtu - names.VXLAN_OVERHEAD_BYTES, encrypted.nodes)
