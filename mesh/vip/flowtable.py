"""The fast path of a router: established connections pass from device to device, beside routing and all rules. Pure.

A flowtable (Documentation/networking/nf_flowtable.rst) looks at packets as they come in by the devices that are named
in it. Those of a connection it knows are translated and sent on at once, half of the work of the whole way; everything
else goes the whole way, and what ends a connection (FIN, RST) does, too. Which connections it knows, a rule says, and
every rule that refuses something has been passed by then: a connection enters by its third packet at the earliest.

- Only those that are *assured* enter. Silent for 30 s a connection leaves, and is then what it was when it entered: one
  that entered by the answer to its SYN would come back half open, to be forgotten a minute later.
- None with a mark, whose answers go by another node (`ingress`): the kernel looks the ways of both directions up by the
  mark of one packet.
- One that leaves may be silent for as long as the router's connections may (`Nftables._tune`), less the 30 s that have
  passed; the kernel knows that number of the namespace, and no policy beside it.
- One that is no longer tracked, because its backend is gone, is not found here either (nf_ct_is_dying).
- A change of routes is noticed by the next packet: the connection goes the whole way, and enters anew.

Its devices are no part of the table's value: a device that goes takes its place in the flowtable with it, unasked. They
are changed by a message of our own, so that a task that comes needs no nft.
"""

from __future__ import annotations

from collections.abc import Collection

from mesh.vip.plan import RouterPlan

NAME = "known"
# Shorter, and next to nothing is left to one that leaves (after 30 s); longer, and the kernel, which looks
# after those inside by half a day at a time, would give less than was asked for (nf_ct_offload_timeout).
IDLE_MIN_S, IDLE_MAX_S = 60.0, 43_200.0
# Devices of one router that take part. The kernel tells them in one message of some 30 KB; those of the tasks beyond
# go the whole way.
DEVICES_MAX = 1024
# Of one message. It takes twice as many (NFT_NETDEVICE_MAX), but could not tell those who listen, in one page.
DEVICES_PER_MESSAGE = 128

# What a kernel must take, one after the other, in a namespace that goes away. Before 5.8, when devices could not be
# changed, the second one removes the whole flowtable, and the third does not find it.
TRIALS = (
    f"table inet trial {{ flowtable {NAME} {{ hook ingress priority 0; devices = {{ lo }}; }}; }}",
    f"delete flowtable inet trial {NAME} {{ hook ingress priority 0; devices = {{ lo }}; }}",
    f"table inet trial {{ chain pass {{ type filter hook forward priority 0; flow add @{NAME}; }}; }}",
)


def allows(idle_s: float) -> bool:
    """Whether connections that may be silent for so long can pass by it."""
    return IDLE_MIN_S <= idle_s <= IDLE_MAX_S


def entrance(meshed: bool) -> str:
    """The rule by which connections enter; of the chain for forwarded packets."""
    unmarked = "ct mark 0 " if meshed else ""
    return f"ct state established {unmarked}ct status assured flow add @{NAME} accept"


def devices(router: RouterPlan) -> tuple[str, ...]:
    """The devices that take part where they are there: both ways out first."""
    return (router.vxlan_device, router.uplink_device, *router.task_devices)[:DEVICES_MAX]


def difference(wanted: Collection[str], held: Collection[str]) -> tuple[list[str], list[str]]:
    """(devices to add, devices to take out)."""
    have = frozenset(held)
    return [one for one in wanted if one not in have], sorted(have.difference(wanted))
