"""What routers and tasks should hold, in the terms of rtnetlink: routes, addresses, neighbours, tunnels. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from ipaddress import ip_address

from overlay import names
from overlay.plan import Address, LocalEndpoint, OverlayNetwork, OverlayPlan, RemoteEndpoint
from overlay.rtnl import FdbEntry, Route


def reached(plan: OverlayPlan, network: OverlayNetwork) -> set[int]:
    """The nodes that this network reaches, by number."""
    return {peer.number for peer in plan.peers if peer.keys or not network.encrypted}


def wanted_routes(plan: OverlayPlan, network: OverlayNetwork, veths: dict[str, str]) -> set[Route]:
    """All routes of ours in a router. `veths`: the router's devices of local tasks, by address."""
    source, uplink = str(network.gateway), names.uplink(network.vni)
    routes = {_to_one(ip_address(address), device, "", source) for address, device in veths.items()}
    nodes = reached(plan, network)
    routes |= {route_to_remote(network, one) for one in network.remote if one.node_number in nodes}
    # An address of the subnet that nobody has is refused here, and does not leak out by the default route.
    routes.add(Route(str(network.subnet), "unreachable"))
    if not network.internal:
        routes.add(Route("0.0.0.0/0", "unicast", uplink.router_device, str(uplink.host_address)))
    if network.subnet6 is not None:
        routes.add(Route(str(network.subnet6), "unreachable"))
        if not network.internal:
            routes.add(Route("::/0", "unicast", uplink.router_device, str(uplink.host_address6)))
    return routes


def route_to_remote(network: OverlayNetwork, remote: RemoteEndpoint) -> Route:
    """The one to a task of another node."""
    return _to_one(remote.address, names.vxlan_device(network.vni), _next_hop(remote), str(network.gateway))


def _to_one(address: Address, device: str, via: str, source: str) -> Route:
    """The route to one task. IPv6 chooses a good source by itself (RFC 6724)."""
    if address.version == 4:
        return Route(f"{address}/32", "unicast", device, via, source)
    return Route(f"{address}/128", "unicast", device, via)


def _next_hop(remote: RemoteEndpoint) -> str:
    number = remote.node_number
    return str(names.router_address(number) if remote.address.version == 4 else names.router_address6(number))


def addresses_of(endpoint: LocalEndpoint) -> tuple[Address, ...]:
    return (endpoint.address,) if endpoint.address6 is None else (endpoint.address, endpoint.address6)


def task_routes(network: OverlayNetwork, endpoint: LocalEndpoint) -> set[Route]:
    """The routes of ours in a task: by its default gateway, and over IPv6 also to the rest of the network."""
    routes = set()
    if endpoint.default_route:
        routes.add(Route("0.0.0.0/0", "unicast", endpoint.interface, str(network.gateway)))
    if endpoint.address6 is not None:
        gateway = str(names.LINK_LOCAL_GATEWAY)
        routes.add(Route(str(network.subnet6), "unicast", endpoint.interface, gateway))
        if endpoint.default_route:
            routes.add(Route("::/0", "unicast", endpoint.interface, gateway))
    return routes


def task_sysctls6(device: str) -> dict[str, str]:
    return {f"ipv6/conf/{device}/disable_ipv6": "0", f"ipv6/conf/{device}/accept_ra": "0"}


def tunnel_state(network: OverlayNetwork, nodes: Mapping[int, str]) -> tuple[dict[str, str], set[FdbEntry]]:
    """Neighbours (address -> MAC) and FDB entries of a VXLAN device, for nodes with their tunnel addresses.

    Of IPv6 only where the network has it: below an MTU of 1280 a device takes none.
    """
    neighbours = {str(names.router_address(number)): names.router_mac(number) for number in nodes}
    if network.subnet6 is not None:
        neighbours |= {str(names.router_address6(number)): names.router_mac(number) for number in nodes}
    return neighbours, {FdbEntry(names.router_mac(number), tunnel) for number, tunnel in nodes.items()}


def router_addresses(network: OverlayNetwork, loopback: int, uplink_index: int) -> set[tuple[int, str]]:
    """A router's own addresses, by device index."""
    uplink = names.uplink(network.vni)
    wanted = {
        (loopback, f"{network.gateway}/32"),
        (uplink_index, f"{uplink.router_address}/{uplink.prefix_length}"),
    }
    if network.subnet6 is not None:
        wanted |= {
            (loopback, f"{network.gateway6}/128"),
            (uplink_index, f"{uplink.router_address6}/{uplink.prefix_length6}"),
        }
    return wanted
