"""Every name, MAC and link-local address of the overlay, derived from numbers that the cluster hands out. Pure.

Nothing here is stored anywhere: a node that restarts, or another that looks, derives the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

# Namespaces, devices and aliases of ours begin with this; what does not is never touched.
PREFIX = "mesh"
# Routes of ours carry this protocol number (rtnetlink(7)): free in /etc/iproute2/rt_protos. mesh.vip uses the next.
ROUTE_PROTOCOL = 109

# Network ids are 25 characters; 12 of base 36 tell networks apart and keep names readable.
_ID_LENGTH = 12
# Locally administered, "msh" in ASCII, then the node's number.
MAC_PREFIX = "02:6d:73:68"
# Link-local addresses leave no host, so they may repeat on every host and network: the upper half for routers by node
# number, the lower half for uplinks by network.
_ROUTERS = IPv4Network("169.254.128.0/17")
_UPLINKS = IPv4Network("169.254.0.0/17")
# The same in IPv6: unique local addresses, "msh" in ASCII again; the next 16 bits are 0 for uplinks, 1 for routers.
_PREFIX6 = IPv6Network("fd6d:6573:68::/48")
# Where containers of others ask for names, whatever network they are on: the address of a router of node 0, which
# does not exist.
NAME_SERVER = _ROUTERS.network_address
_METADATA = IPv4Address("169.254.169.254")  # cloud metadata services
_METADATA_STAND_IN = IPv4Address("169.254.255.255")  # of the one node number that would get it
MAX_NODE_NUMBER = 32766
FIRST_VNI = 4096
_UPLINK_SLOTS = 8192  # /30s in the lower half; networks further apart than this in VNI share no slot in practice

# Bytes that VXLAN adds to a frame: outer IPv4 20 or IPv6 40, UDP 8, VXLAN 8, inner Ethernet 14 (RFC 7348).
VXLAN_OVERHEAD_BYTES = 50
VXLAN_OVERHEAD6_BYTES = 70
# WireGuard adds 32 bytes, UDP 8, the outer IPv6 40. Over IPv4 that leaves 20 over, of which wireguard-go needs up to 15
# where it has not heard of its device's MTU. VXLAN inside is always over IPv4.
WIREGUARD_OVERHEAD_BYTES = 80
WIREGUARD_PADDING_BYTES = 16
# Tasks find their router under this address on every interface, so that no neighbour has to be told (RFC 4291).
LINK_LOCAL_GATEWAY = IPv6Address("fe80::1")


# The namespace of WireGuard devices: no router, so not named like one. Its addresses are link-local IPv4 ones, all of
# which are free in there: one half per key slot.
ENCRYPTION_NETNS = f"{PREFIX}.encrypted"
KEY_SLOTS = (0, 1)
_TUNNELS = (IPv4Network("169.254.0.0/17"), IPv4Network("169.254.128.0/17"))


@dataclass(frozen=True, slots=True)
class Uplink:
    """The veth pair between a router and its host."""

    host_device: str
    router_device: str
    host_address: IPv4Address
    router_address: IPv4Address
    prefix_length: int
    host_address6: IPv6Address
    router_address6: IPv6Address
    prefix_length6: int


def router_netns(network_id: str) -> str:
    """Name of a network's router namespace."""
    return f"{PREFIX}-{network_id[:_ID_LENGTH]}"


def is_router_netns(name: str) -> bool:
    """Whether a namespace is one of our routers (task namespaces begin with "mesh-t-")."""
    return name.startswith(f"{PREFIX}-") and not name.startswith(f"{PREFIX}-t-")


def alias(network_id: str) -> str:
    """The alias (ifalias) on every device of a network, by which it is found again."""
    return f"{PREFIX}:{network_id}"


def vxlan_device(vni: int) -> str:
    """Name of a network's VXLAN device, unique on a host."""
    return f"vx{vni}"


def veth_device(address: IPv4Address) -> str:
    """Name of the router's end of a task's veth, by the task's address on the network."""
    return f"t{int(address):08x}"


def handed_device(address: IPv4Address) -> str:
    """Name of the other end of such a veth on the host, until an engine takes it."""
    return f"mh{int(address):08x}"


def router_mac(node_number: int) -> str:
    """MAC of a node's routers on VXLAN, the same on every network."""
    return f"{MAC_PREFIX}:{node_number >> 8:02x}:{node_number & 255:02x}"


def router_address(node_number: int) -> IPv4Address:
    """Address of a node's routers on VXLAN: a next hop only, it stands in no packet but ICMP errors."""
    assert 1 <= node_number <= MAX_NODE_NUMBER, node_number
    address = _ROUTERS.network_address + node_number
    return _METADATA_STAND_IN if address == _METADATA else address


def router_address6(node_number: int) -> IPv6Address:
    """The same in IPv6."""
    assert 1 <= node_number <= MAX_NODE_NUMBER, node_number
    return _PREFIX6.network_address + (1 << 64) + node_number


def uplink(vni: int) -> Uplink:
    """The uplink of a network's router."""
    base = _UPLINKS.network_address + 4 * ((vni - FIRST_VNI) % _UPLINK_SLOTS)
    base6 = _PREFIX6.network_address + (vni << 8)
    return Uplink(f"{PREFIX}{vni}", "up0", base + 1, base + 2, 30, base6 + 1, base6 + 2, 126)


def is_router_address(packed: bytes) -> bool:
    """Whether an address (4 or 16 bytes) is one that routers have on VXLAN."""
    if len(packed) == 4:
        return IPv4Address(packed) in _ROUTERS
    return len(packed) == 16 and int(IPv6Address(packed)) >> 64 == (int(_PREFIX6.network_address) >> 64) + 1


def is_uplink(device: str) -> bool:
    """Whether a device of a host is the uplink of one of our routers, also without its alias."""
    return device.startswith(PREFIX) and device.removeprefix(PREFIX).isdecimal()


def tunnel_mtu(underlay_mtu: int, version: int = 4) -> int:
    """What fits into one VXLAN packet on an underlay of that IP version."""
    return underlay_mtu - (VXLAN_OVERHEAD_BYTES if version == 4 else VXLAN_OVERHEAD6_BYTES)


def encrypted_mtu(underlay_mtu: int) -> int:
    """What fits into one WireGuard packet. Less `VXLAN_OVERHEAD_BYTES` for tasks.

    WireGuard pads to 16 bytes: a packet of any length up to this stays within the underlay's MTU.
    """
    fits = underlay_mtu - WIREGUARD_OVERHEAD_BYTES
    return fits - fits % WIREGUARD_PADDING_BYTES


def wireguard_device(slot: int) -> str:
    """Name of the device of a key slot."""
    return f"{PREFIX}-wg{slot}"


def is_wireguard_device(name: str) -> bool:
    """Whether a device is named like one of those."""
    return name in {wireguard_device(slot) for slot in KEY_SLOTS}


def tunnel_address(node_number: int, slot: int) -> IPv4Address:
    """Address of a node inside WireGuard, by the slot of its key."""
    assert 1 <= node_number <= MAX_NODE_NUMBER, node_number
    return _TUNNELS[slot].network_address + node_number
