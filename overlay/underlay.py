"""What the host's own network says of the packets between nodes."""

from __future__ import annotations

from overlay.rtnl import Namespace

# Without a device to measure (it is gone), what every Ethernet has.
DEFAULT_UNDERLAY_MTU = 1500


def underlay_mtu(host: Namespace, underlay: str) -> int:
    """MTU of the device that has the underlay address."""
    indexes = {index for index, address in host.addresses() if address.partition("/")[0] == underlay}
    return min((link.mtu for link in host.links().values() if link.index in indexes), default=DEFAULT_UNDERLAY_MTU)
