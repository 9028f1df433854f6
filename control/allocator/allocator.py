"""Decides on numbers and addresses: networks first, then services, then tasks. Pure.

A task leaves NEW when it has everything: one address per network, and its service's ports. What cannot be given is said
on the task. When a task has ended, its addresses are taken from it and put to rest (`RestingAddress`), so that nobody
who still has one in a cache or a connection table reaches the wrong task; the reaper forgets a task only after that.
Nothing is remembered between decisions: what is free follows from the store.
"""

from __future__ import annotations

from collections.abc import Callable
from ipaddress import IPv4Address, IPv4Network, IPv6Network

from msgspec.structs import replace

from control import ipv6
from control.allocator import pools
from control.allocator.ports import PortError, Ports
from control.decision import Decision
from control.lifecycle import RUNNABLE_TO, TaskState, Writer, is_terminal
from control.model import (
    RESTING_VNIS,
    Attachment,
    Cluster,
    ClusterSpec,
    Lease,
    Network,
    Node,
    PortSpec,
    RestingAddress,
    Service,
    Task,
    TaskAddress,
    TaskStatus,
    VirtualAddress,
)
from control.store.tables import Snapshot
from control.store.txn import Change, Delete, Put


def decide(snapshot: Snapshot, now_ms: int, new_id: Callable[[], str]) -> Decision:
    """Give what is missing, and let rest what was given back. Makes no ids: `new_id` is there for all cores alike."""
    if not snapshot.all(Cluster):
        return Decision()
    work = _Work(snapshot, now_ms)
    work.resting()
    work.networks()
    waiting = work.release()
    work.leases()
    work.services()
    for task in sorted(waiting, key=_order):
        work.task(task)
    return Decision(tuple((Writer.ALLOCATOR, change) for change in work.changes), work.wake_at_ms)


def _order(task: Task) -> tuple[int, str, int, str]:
    """Who gets an address first, and so who has the latest: the order in which tasks were made."""
    return task.meta.created_ms, task.service_id, task.slot, task.id


class _Lack(Exception):
    """Something cannot be given. One sentence for the tasks that wait for it."""


class _Work:
    """One decision under way: what is taken grows as things are handed out."""

    def __init__(self, snapshot: Snapshot, now_ms: int) -> None:
        self.changes: list[Change] = []
        self.wake_at_ms: int | None = None
        self._snapshot = snapshot
        self._now_ms = now_ms
        self._spec: ClusterSpec = snapshot.cluster().spec
        self._networks: dict[str, Network] = {n.id: n for n in snapshot.all(Network)}
        self._resting: dict[str, set[str]] = {}  # network id -> addresses
        self._released: dict[str, list[str]] = {}  # network id -> addresses put to rest just now
        self._pools: dict[str, pools.Addresses] = {}
        self._lacks: dict[str, str] = {}  # service id -> what it waits for
        self._ports: dict[str, tuple[PortSpec, ...]] = {}  # service id -> all its ports

    # --- rest ---------------------------------------------------------------------------------------------------------

    def resting(self) -> None:
        """Those that have rested are free again, from the next decision on."""
        for rest in self._snapshot.all(RestingAddress):
            known = rest.network_id == RESTING_VNIS or rest.network_id in self._networks
            if rest.until_ms == 0 and known and self._rest_ms():
                self.changes.append(Put(replace(rest, until_ms=self._rest_until())))
            elif rest.until_ms <= self._now_ms or not known:
                self.changes.append(Delete(RestingAddress, rest.id, rest.meta.version))
                continue
            else:
                self._wake(rest.until_ms)
            self._resting.setdefault(rest.network_id, set()).add(rest.address)

    def release(self) -> list[Task]:
        """Take the addresses of ended tasks back. Returns the tasks that wait for theirs."""
        waiting = []
        for task in self._snapshot.all(Task):
            if task.status.state is TaskState.NEW:
                if task.desired_state <= RUNNABLE_TO:
                    waiting.append(task)
            elif task.addresses and is_terminal(task.status.state):
                for held in task.addresses:
                    self._rest(held.network_id, held.address)
                self.changes.append(Put(replace(task, addresses=())))
        return waiting

    def _rest(self, network_id: str, address: str) -> None:
        """Put an address to rest. Before the change that frees it: if only this one is written, nothing is lost."""
        if network_id not in self._networks or not self._rest_ms():
            return
        if self._snapshot.address_holder(network_id, address) or address in self._released.get(network_id, ()):
            return  # it rests already; or, by somebody's mistake, it is in use again
        until_ms = self._rest_until()
        name = f"{network_id}/{address}"
        rest = RestingAddress(id=name, network_id=network_id, address=address, until_ms=until_ms)
        self.changes.append(Put(rest))
        self._released.setdefault(network_id, []).append(address)
        self._wake(until_ms)

    def _rest_ms(self) -> int:
        return int(self._spec.address_rest_s * 1000)

    def _rest_until(self) -> int:
        return self._now_ms + self._rest_ms()

    def _wake(self, at_ms: int) -> None:
        self.wake_at_ms = at_ms if self.wake_at_ms is None else min(self.wake_at_ms, at_ms)

    # --- networks -----------------------------------------------------------------------------------------------------

    def networks(self) -> None:
        """VXLAN id, subnet and gateway for each that has none."""
        everything = list(self._networks.values())
        new = sorted((n for n in everything if not (n.vni and n.subnet)), key=lambda n: (n.meta.created_ms, n.id))
        if not new:
            return
        resting = {int(vni) for vni in self._resting.get(RESTING_VNIS, ())}
        vnis = pools.Numbers(pools.FIRST_VNI, pools.LAST_VNI, resting.union(n.vni for n in everything))
        avoid = [IPv4Network(n.subnet or n.spec.subnet) for n in everything if n.subnet or n.spec.subnet]
        routes = {route for node in self._snapshot.all(Node) for route in node.description.routes}
        avoid += [IPv4Network(route) for route in routes]
        subnets = pools.Subnets(self._spec.address_pools, self._spec.subnet_prefix_length, avoid)
        for network in new:
            vni = network.vni or vnis.take()
            subnet = IPv4Network(network.spec.subnet) if network.spec.subnet else subnets.take()
            if vni is not None and subnet is not None:
                gateway = str(pools.gateway(subnet))
                made = replace(network, vni=vni, subnet=str(subnet), gateway=gateway)
                if network.spec.ipv6:
                    made = self._with_ipv6(made, pools.gateway(subnet))
                self._networks[network.id] = made
                self.changes.append(Put(made))

    def _with_ipv6(self, network: Network, gateway: IPv4Address) -> Network:
        asked = network.spec.subnet6
        subnet6 = IPv6Network(asked) if asked else ipv6.subnet6(self._snapshot.cluster().id, network.vni)
        return replace(network, subnet6=str(subnet6), gateway6=str(ipv6.embedded(subnet6, gateway)))

    def _take(self, network_id: str) -> str:
        """A free address. Raises _Lack."""
        network = self._networks.get(network_id)
        if network is None:
            raise _Lack(f"network {network_id} is gone")
        if not network.subnet:
            raise _Lack(f'network "{network.spec.name}" has no subnet: the address pools of the cluster are used up')
        pool = self._pools.get(network_id)
        if pool is None:
            pool = self._pools[network_id] = self._pool(network)
        address = pool.take()
        if address is None:
            size = pools.capacity(IPv4Network(network.subnet))
            rest = " or at rest" if network_id in self._resting or network_id in self._released else ""
            raise _Lack(f'network "{network.spec.name}" has no free addresses ({size} of {size} in use{rest})')
        return address

    def _pool(self, network: Network) -> pools.Addresses:
        """What is free on a network. The search goes on after the address that was handed out last."""
        latest = max(
            (
                (_order(task), held.address)
                for task in self._snapshot.tasks_on_network(network.id)
                for held in task.addresses
                if held.network_id == network.id
            ),
            default=None,
        )
        if latest is None:
            vips = [
                (service.meta.created_ms, service.id, vip.address)
                for service in self._snapshot.services_on_network(network.id)
                for vip in service.vips
                if vip.network_id == network.id
            ]
            last = max(vips)[2] if vips else ""
        else:
            last = latest[1]
        pool = pools.Addresses(IPv4Network(network.subnet), self._snapshot.addresses_taken(network.id), last)
        for address in self._released.get(network.id, ()):
            pool.block(address)
        return pool

    # --- leases -------------------------------------------------------------------------------------------------------

    def leases(self) -> None:
        """A block for each wish; nothing for nodes and networks that are gone. What cannot be given stays a wish."""
        gone: list[Lease | Attachment] = [a for a in self._snapshot.all(Attachment) if self._strays(a)]
        for lease in self._snapshot.all(Lease):
            if self._strays(lease):
                gone.append(lease)
            elif not lease.block and self._networks[lease.network_id].subnet:
                block = self._block(self._networks[lease.network_id])
                if block is not None:
                    self.changes.append(Put(replace(lease, block=block)))
        self.changes += (Delete(type(obj), obj.id, obj.meta.version) for obj in gone)

    def _strays(self, obj: Lease | Attachment) -> bool:
        return self._snapshot.get(Node, obj.node_id) is None or obj.network_id not in self._networks

    def _block(self, network: Network) -> str | None:
        """A free block of a network's addresses. At least half of them stay for tasks and services."""
        pool = self._pools.get(network.id)
        if pool is None:
            pool = self._pools[network.id] = self._pool(network)
        leases = (lease for lease in self._snapshot.all(Lease) if lease.network_id == network.id and lease.block)
        leased = sum(IPv4Network(lease.block).num_addresses for lease in leases)
        return pool.take_block(pools.block_length(IPv4Network(network.subnet)), leased)

    # --- services -----------------------------------------------------------------------------------------------------

    def services(self) -> None:
        """One VIP per network, and ports. What a service has already it keeps."""
        services = self._snapshot.all(Service)
        ports = Ports(services)
        for service in sorted(services, key=lambda s: (s.meta.created_ms, s.id)):
            vips, freed = self._vips(service)
            try:
                given = ports.give(service)
            except PortError as error:
                self._lacks.setdefault(service.id, str(error))
                given = service.ports
            if (vips, given) != (service.vips, service.ports):
                self.changes.append(Put(replace(service, vips=vips, ports=given)))
                for vip in freed:  # after the service, which holds it: one address has one holder at a time
                    self._rest_vip(vip)
            self._ports[service.id] = given

    def _vips(self, service: Service) -> tuple[tuple[VirtualAddress, ...], list[VirtualAddress]]:
        """The VIPs it shall have, and those that it loses."""
        if not service.vips and (service.spec.endpoint_mode != "vip" or not service.spec.task.networks):
            return (), []
        held = {vip.network_id: vip for vip in service.vips if vip.network_id in self._networks}
        vips: list[VirtualAddress] = []
        if service.spec.endpoint_mode == "vip":
            for attachment in service.spec.task.networks:
                vip = held.pop(attachment.network_id, None) or self._new_vip(service, attachment.network_id)
                if vip is not None:
                    vips.append(vip)
            # While an update moves it to another network, clients on the old one reach the tasks that are still there.
            serving = self._networks_in_use(service) if held else frozenset()
            vips += [vip for network_id, vip in held.items() if network_id in serving]
        return tuple(vips), [vip for vip in service.vips if vip not in vips]

    def _new_vip(self, service: Service, network_id: str) -> VirtualAddress | None:
        try:
            return VirtualAddress(network_id=network_id, address=self._take(network_id))
        except _Lack as lack:
            self._lacks.setdefault(service.id, str(lack))
            return None

    def _networks_in_use(self, service: Service) -> frozenset[str]:
        live = (t for t in self._snapshot.tasks_of_service(service.id) if not is_terminal(t.status.state))
        return frozenset(held.network_id for task in live for held in task.addresses)

    def _rest_vip(self, vip: VirtualAddress) -> None:
        if vip.network_id in self._networks and self._rest_ms():
            name, until_ms = f"{vip.network_id}/{vip.address}", self._rest_until()
            rest = RestingAddress(id=name, network_id=vip.network_id, address=vip.address, until_ms=until_ms)
            self.changes.append(Put(rest))
            self._wake(until_ms)

    # --- tasks --------------------------------------------------------------------------------------------------------

    def task(self, task: Task) -> None:
        """Everything it needs, or the reason why not."""
        if task.service_id not in self._ports:
            return  # its service is gone, and it will be
        lack = self._lacks.get(task.service_id)
        if lack is not None:
            self._explain(task, lack)
            return
        addresses: list[TaskAddress] = []
        try:
            for attachment in task.spec.networks:
                address = self._take(attachment.network_id)
                addresses.append(
                    TaskAddress(network_id=attachment.network_id, address=address, aliases=attachment.aliases)
                )
        except _Lack as missing:
            for given in addresses:
                self._pools[given.network_id].give_back(given.address)
            self._explain(task, str(missing))
            return
        ports = tuple(port for port in self._ports[task.service_id] if port.mode == "host")
        status = TaskStatus(state=TaskState.PENDING, at_ms=self._now_ms, message="pending")
        self.changes.append(Put(replace(task, addresses=tuple(addresses), ports=ports, status=status)))

    def _explain(self, task: Task, text: str) -> None:
        """The reason on the task, unless it stands there already."""
        if task.status.error != text:
            status = TaskStatus(state=TaskState.NEW, at_ms=self._now_ms, message="new", error=text)
            self.changes.append(Put(replace(task, status=status)))
