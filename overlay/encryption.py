"""Makes WireGuard of an `OverlayPlan` true on this host: its namespace, a device per key, peers, ways to other nodes.

See docs/decisions/0015. Level-triggered as all of `kernel`, which calls it, and in whose thread it runs. `apply` adds
and corrects, and gives each of this node's keys the next step of its life; `prune` removes. In this namespace is
nothing but WireGuard, so what is missing here sends nothing.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from overlay import names, tunnels, wireguard
from overlay.keys import KeyFile, OwnKey, told
from overlay.plan import OverlayPlan
from overlay.rtnl import Namespace, Route
from overlay.tunnels import Endpoint, WgDevice, WgPeer

# Nothing of this namespace is for others. What comes out of WireGuard is for its VXLAN devices.
_SYSCTLS = {"ipv4/ip_forward": "0", "ipv4/conf/all/rp_filter": "0", "ipv4/conf/default/rp_filter": "0"}
_ENCRYPTED_KINDS = ("wireguard", "tun", "vxlan")

Changes = Counter[str]


@dataclass(frozen=True, slots=True)
class Encrypted:
    """Where VXLAN devices of encrypted networks are made, and the addresses of the other nodes there, by number."""

    inner: Namespace
    mtu: int  # of WireGuard
    nodes: Mapping[int, str]


class Encryption:
    """WireGuard of one host."""

    def __init__(
        self, directory: Path, host_netns: str | None, keys: KeyFile | None, now_s: Callable[[], float]
    ) -> None:
        """`directory` holds namespaces by name. `now_s` is the time of day, which handshakes are stamped with."""
        self.path = str(directory / names.ENCRYPTION_NETNS)
        self._host_netns, self._dir, self._keys, self._now_s = host_netns, directory, keys, now_s
        self._found: wireguard.WireGuard | None = None
        self._endpoints: dict[str, Endpoint] = {}  # that this process has set, by public key

    def door(self) -> wireguard.WireGuard:
        """The way this host has WireGuard. Raises OSError with a sentence when it has none."""
        if self._found is None:
            self._found = wireguard.find(self._host_netns, str(self._dir))
        return self._found

    def apply(self, plan: OverlayPlan, host: Namespace, inner: Namespace, mtu: int, changes: Changes) -> Encrypted:
        """All of it, in the namespace `inner`, on an underlay with `mtu`. Raises OSError or NetlinkError."""
        if self._keys is None:
            raise OSError("this node has no keys")
        door, keys = self.door(), self._keys.load()
        changes["encryption sysctl"] += len(inner.set_sysctls(_SYSCTLS))
        wg_mtu = names.encrypted_mtu(mtu)
        held = {key.slot: self._device(door, host, inner, plan, key, wg_mtu, changes) for key in keys}
        wanted = tunnels.wanted_peers(plan, own_keys=len(keys))
        for slot, device in held.items():
            self._peers(door, inner, slot, device, wanted, changes)
        self._endpoints = {public: peer.endpoint for public, peer in wanted.items() if peer.endpoint is not None}
        paths = _paths(plan, keys, held)
        for route in _routes(plan, paths) - inner.routes(names.ROUTE_PROTOCOL):
            inner.replace_route(route, names.ROUTE_PROTOCOL, inner.links()[route.device].index)
            changes["encryption route"] += 1
        self._advance(keys, held)
        return Encrypted(inner, wg_mtu, {n: str(names.tunnel_address(n, path.peer_slot)) for n, path in paths.items()})

    def prune(self, plan: OverlayPlan, inner: Namespace, changes: Changes) -> None:
        """Remove what is too much beside encrypted networks that there are. Raises OSError or NetlinkError."""
        if self._keys is None:
            return
        door, keys = self.door(), self._keys.load()
        wanted = tunnels.wanted_peers(plan, own_keys=len(keys))
        for slot in names.KEY_SLOTS:
            device = door.observe(inner, slot)
            if slot not in {key.slot for key in keys}:
                if device is not None:
                    door.remove(inner, slot)
                    changes["encryption link"] += 1
            elif device is not None:
                for public in device.peers.keys() - wanted.keys():
                    door.end_peer(inner, slot, public)
                    changes["encryption peer"] += 1
        # By which key a node is sent to is for `apply` to say, which may have known of fewer sessions.
        kept = {f"{names.tunnel_address(peer.number, key.slot)}/32" for peer in plan.peers for key in peer.keys}
        for route in inner.routes(names.ROUTE_PROTOCOL):
            if route.destination not in kept:
                inner.delete_route(route, names.ROUTE_PROTOCOL)
                changes["encryption route"] += 1
        for link in inner.links().values():
            if link.kind == "vxlan":  # of a crash before it got into its router
                inner.delete_link(link.index)
                changes["link"] += 1

    def remove(self, inner: Namespace) -> None:
        """Remove all that is in the namespace. Without WireGuard there is no process to end."""
        try:
            door = self.door()
        except OSError:
            door = None
        for slot in names.KEY_SLOTS if door is not None else ():
            assert door is not None
            door.remove(inner, slot)
        for link in inner.links().values():
            if link.kind in _ENCRYPTED_KINDS:
                inner.delete_link(link.index)
        self._endpoints.clear()

    # --- inside -----------------------------------------------------------------------------------------------------

    def _device(
        self,
        door: wireguard.WireGuard,
        host: Namespace,
        inner: Namespace,
        plan: OverlayPlan,
        key: OwnKey,
        mtu: int,
        changes: Changes,
    ) -> WgDevice:
        """The device of a key, up and addressed; returns what it held before this."""
        device = door.observe(inner, key.slot)
        if device is None:
            door.make(host, inner, key.slot, mtu)
            device = WgDevice("", 0)
            changes["encryption link"] += 1
        port = plan.wireguard_port + key.slot
        if (device.public, device.port) != (key.public, port):
            door.configure(inner, key.slot, key, port)
            changes["encryption link"] += 1
        link = inner.links()[names.wireguard_device(key.slot)]
        address = (link.index, f"{tunnels.own_address(plan, key.slot)}/32")
        held = {a for a in inner.addresses() if a[0] == link.index and ":" not in a[1]}
        for other in held - {address}:
            inner.delete_address(*other)
            changes["encryption address"] += 1
        if address not in held:
            inner.add_address(*address)
            changes["encryption address"] += 1
        if (link.mtu, link.up) != (mtu, True):
            inner.set_link(link.index, mtu=mtu, state="up")
            changes["encryption link"] += 1
        return device

    def _peers(
        self,
        door: wireguard.WireGuard,
        inner: Namespace,
        slot: int,
        device: WgDevice,
        wanted: Mapping[str, WgPeer],
        changes: Changes,
    ) -> None:
        for change in tunnels.changes(device.peers, wanted, self._endpoints, self._now_s()):
            door.change(inner, slot, change)
            changes["encryption peer"] += 1

    def _advance(self, keys: tuple[OwnKey, ...], held: Mapping[int, WgDevice]) -> None:
        assert self._keys is not None
        replaced = len(keys) > 1 and tunnels.replaced(held[keys[-1].slot], held[keys[0].slot], self._now_s())
        with contextlib.suppress(OSError):  # a full disk: the keys that there are go on
            self._keys.advance(replaced=replaced)


def _paths(plan: OverlayPlan, keys: Iterable[OwnKey], held: Mapping[int, WgDevice]) -> dict[int, tunnels.Path]:
    """How to send to each node that has a key, by its number."""
    own = [key.slot for key in told(tuple(keys)) if key.slot in held]
    met = [(slot, public) for slot in own for public, peer in held[slot].peers.items() if peer.handshake_s]
    found = {peer.number: tunnels.path(peer, own, met) for peer in plan.peers}
    return {number: path for number, path in found.items() if path is not None}


def _routes(plan: OverlayPlan, paths: Mapping[int, tunnels.Path]) -> set[Route]:
    """A route to every address of every node, by the own key that it is sent to with."""
    return {
        Route(
            f"{names.tunnel_address(peer.number, key.slot)}/32",
            "unicast",
            names.wireguard_device(paths[peer.number].own_slot),
            source=str(tunnels.own_address(plan, paths[peer.number].own_slot)),
        )
        for peer in plan.peers
        if peer.number in paths
        for key in peer.keys
    }
