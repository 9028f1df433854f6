"""Reads what the kernel holds of one router, for `trace`. Blocking; changes nothing."""

from __future__ import annotations

import os
from ipaddress import ip_network
from pathlib import Path

from dns.plan import Address
from mesh.agent.trace import RouterState, Way
from mesh.vip.plan import Observed
from overlay import names, wireguard
from overlay.rtnl import Namespace, inside


def look(netns: str, vxlan: str, observed: Observed) -> RouterState:
    """The router whose namespace is at `netns`. Raises OSError."""
    if not os.path.exists(netns):
        return RouterState(exists=False)
    router = Namespace(netns)
    try:
        links = router.links()
        index = links[vxlan].index if vxlan in links else None
        neighbours = router.neighbours(index) if index is not None else {}
        tunnels = {entry.mac: entry.tunnel for entry in router.fdb(index)} if index is not None else {}
        ways: dict[Address, Way] = {}
        for route in router.routes(names.ROUTE_PROTOCOL):
            prefix = ip_network(route.destination)
            if route.type == "unicast" and prefix.num_addresses == 1:
                mac = neighbours.get(route.via, "")
                up = route.device in links and links[route.device].up
                ways[prefix.network_address] = Way(route.device, up, route.via, mac, tunnels.get(mac, ""))
    finally:
        router.close()
    text = inside(netns, lambda: Path("/proc/thread-self/net/dev").read_text())
    return RouterState(True, ways, observed.services.get(netns, ()), counters(text), _met(Path(netns).parent))


def _met(directory: Path) -> frozenset[str]:
    """The addresses of other nodes inside WireGuard that have answered; none where nothing is encrypted."""
    path = directory / names.ENCRYPTION_NETNS
    if not path.exists():
        return frozenset()
    inner = Namespace(str(path))
    try:
        door = wireguard.find(netns_dir=str(directory))
        devices = [door.observe(inner, slot) for slot in names.KEY_SLOTS]
    finally:
        inner.close()
    peers = [peer for device in devices if device is not None for peer in device.peers.values()]
    return frozenset(prefix.partition("/")[0] for peer in peers if peer.handshake_s for prefix in peer.allowed)


def counters(text: str) -> dict[str, tuple[int, int, int]]:
    """Device -> packets in, out, dropped, of /proc/net/dev; without devices that never had any."""
    found = {}
    for line in text.splitlines()[2:]:
        name, _, rest = line.partition(":")
        fields = [int(field) for field in rest.split()]
        if len(fields) >= 12 and (fields[1] or fields[9]):
            found[name.strip()] = (fields[1], fields[9], fields[3] + fields[11])
    return found
