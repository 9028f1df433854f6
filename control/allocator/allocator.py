"""Decides on numbers and addresses: networks first, then services, then tasks. Pure.

A task leaves NEW when it has everything: one address per network, and its service's ports. What cannot be given is said
on the task. An address of a task that has ended rests before it is used again, so that nobody who still has it in a
cache or a connection table reaches the wrong task.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from ipaddress import IPv4Network

from msgspec.structs import replace

from control.allocator import pools
from control.decision import Decision
from control.lifecycle import TaskState, Writer, is_terminal
from control.model import (
    Cluster,
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


def decide(snapshot: Snapshot, now_ms: int) -> Decision:
    """Give what is missing, and let rest what was given back."""
    if not snapshot.all(Cluster):
        return Decision()
    work = _Work(snapshot, now_ms)
    work.networks()
    work.rest()
    for service in snapshot.all(Service):
        work.service(service)
    for task in snapshot.all(Task):
        if task.status.state is TaskState.NEW and task.desired_state <= TaskState.RUNNING:
            work.task(task)
    return Decision(tuple((Writer.ALLOCATOR, change) for change in work.changes), work.wake_at_ms)


@dataclass(slots=True)
class _Work:
    """One decision under way: what is taken grows as things are handed out."""

    snapshot: Snapshot
    now_ms: int
    changes: list[Change] = field(default_factory=list)
    wake_at_ms: int | None = None
    _taken: dict[str, set[str]] = field(default_factory=dict)  # network id -> addresses
    _networks: dict[str, Network] = field(default_factory=dict)
    _ready: set[str] = field(default_factory=set)  # services with all their ports and VIPs

    # --- networks -----------------------------------------------------------------------------------------------------

    def networks(self) -> None:
        """VXLAN id, subnet and gateway for each."""
        everything = list(self.snapshot.all(Network))
        vnis = {n.vni for n in everything if n.vni}
        used = [IPv4Network(n.subnet or n.spec.subnet) for n in everything if n.subnet or n.spec.subnet]
        routes = [IPv4Network(r) for node in self.snapshot.all(Node) for r in node.description.routes]
        for network in everything:
            whole = network.vni and network.subnet
            self._networks[network.id] = network if whole else self._allocated(network, vnis, used, routes)

    def _allocated(
        self, network: Network, vnis: set[int], used: list[IPv4Network], routes: list[IPv4Network]
    ) -> Network:
        spec = self.snapshot.cluster().spec
        vni = network.vni or pools.free_vni(vnis)
        if network.spec.subnet:
            subnet: IPv4Network | None = IPv4Network(network.spec.subnet)
        else:
            subnet = pools.free_subnet(spec.address_pools, spec.subnet_prefix_length, used + routes)
        if vni is None or subnet is None:
            return network
        vnis.add(vni)
        used.append(subnet)
        made = replace(network, vni=vni, subnet=str(subnet), gateway=str(pools.gateway(subnet)))
        self.changes.append(Put(made))
        return made

    def _address(self, network_id: str, asker: str) -> str | None:
        network = self._networks.get(network_id)
        if network is None or not network.subnet:
            return None
        taken = self._taken.setdefault(network_id, self.snapshot.addresses_taken(network_id) | {network.gateway})
        address = pools.free_address(IPv4Network(network.subnet), taken, asker)
        if address is not None:
            taken.add(address)
        return address

    # --- addresses at rest --------------------------------------------------------------------------------------------

    def rest(self) -> None:
        """Addresses of ended tasks rest; those that have rested are free."""
        rest_ms = int(self.snapshot.cluster().spec.address_rest_s * 1000)
        for resting in self.snapshot.all(RestingAddress):
            if resting.until_ms <= self.now_ms or resting.network_id not in self._networks:
                self.changes.append(Delete(RestingAddress, resting.id))
            else:
                self._wake(resting.until_ms)
        for task in self.snapshot.all(Task):
            until_ms = task.meta.updated_ms + rest_ms
            if is_terminal(task.status.state) and self.now_ms < until_ms:
                for held in task.addresses:
                    self._let_rest(held, until_ms)

    def _let_rest(self, held: TaskAddress, until_ms: int) -> None:
        resting = RestingAddress(
            id=f"{held.network_id}/{held.address}",
            network_id=held.network_id,
            address=held.address,
            until_ms=until_ms,
        )
        taken = self.snapshot.address_holder(held.network_id, held.address) is not None
        if held.network_id in self._networks and not taken:
            self.changes.append(Put(resting))
            self._taken.setdefault(
                held.network_id,
                self.snapshot.addresses_taken(held.network_id) | {self._networks[held.network_id].gateway},
            ).add(held.address)
            self._wake(until_ms)

    def _wake(self, at_ms: int) -> None:
        self.wake_at_ms = at_ms if self.wake_at_ms is None else min(self.wake_at_ms, at_ms)

    # --- services -----------------------------------------------------------------------------------------------------

    def service(self, service: Service) -> None:
        """One VIP per network, and ports. What it has already it keeps."""
        vips, complete = self._vips(service)
        ports = self._ports(service)
        if complete and ports is not None:
            self._ready.add(service.id)
        changed = replace(service, vips=vips, ports=service.ports if ports is None else ports)
        if (changed.vips, changed.ports) != (service.vips, service.ports):
            self.changes.append(Put(changed))

    def _vips(self, service: Service) -> tuple[tuple[VirtualAddress, ...], bool]:
        if service.spec.endpoint_mode != "vip":
            return (), True
        held = {v.network_id: v for v in service.vips}
        vips, complete = [], True
        for attachment in service.spec.task.networks:
            vip = held.get(attachment.network_id)
            if vip is None:
                address = self._address(attachment.network_id, service.id)
                vip = VirtualAddress(network_id=attachment.network_id, address=address) if address else None
            complete = complete and vip is not None
            if vip is not None:
                vips.append(vip)
        return tuple(vips), complete

    def _ports(self, service: Service) -> tuple[PortSpec, ...] | None:
        """The published ports with automatic ones filled in; None when there is none left."""
        before = {(p.protocol, p.target, p.mode): p.published for p in service.ports}
        ports: list[PortSpec] = []
        for port in service.spec.ports:
            published = port.published or before.get((port.protocol, port.target, port.mode), 0)
            if not published and port.mode == "ingress":
                own = {p.published for p in ports if p.protocol == port.protocol}
                published = self._automatic_port(port.protocol, own) or 0
                if not published:
                    return None
            ports.append(replace(port, published=published or port.target))
        return tuple(ports)

    def _automatic_port(self, protocol: str, own: set[int]) -> int | None:
        taken = own | {
            p.published
            for service in self.snapshot.all(Service)
            for p in (*service.ports, *service.spec.ports)
            if p.protocol == protocol and p.mode == "ingress"
        }
        for change in self.changes:
            if isinstance(change, Put) and isinstance(change.obj, Service):
                taken |= {p.published for p in change.obj.ports if p.protocol == protocol}
        return pools.free_port(taken)

    # --- tasks --------------------------------------------------------------------------------------------------------

    def task(self, task: Task) -> None:
        """Everything it needs, or the reason why not."""
        service = self.snapshot.get(Service, task.service_id)
        if service is None:
            return
        if service.id not in self._ready:
            self._explain(task, self._lack_of_service(service))
            return
        addresses: list[TaskAddress] = []
        for attachment in task.spec.networks:
            address = self._address(attachment.network_id, task.id)
            if address is None:
                for given in addresses:
                    self._taken[given.network_id].discard(given.address)
                self._explain(task, self._lack(attachment.network_id))
                return
            addresses.append(TaskAddress(network_id=attachment.network_id, address=address, aliases=attachment.aliases))
        ports = tuple(p for p in service.ports if p.mode == "host")
        status = TaskStatus(state=TaskState.PENDING, at_ms=self.now_ms, message="pending")
        self.changes.append(Put(replace(task, addresses=tuple(addresses), ports=ports, status=status)))

    def _lack_of_service(self, service: Service) -> str:
        for attachment in service.spec.task.networks:
            if not any(v.network_id == attachment.network_id for v in service.vips):
                return self._lack(attachment.network_id)
        return "no automatic port is free"

    def _lack(self, network_id: str) -> str:
        network = self._networks.get(network_id)
        if network is None:
            return f"network {network_id} is gone"
        if not network.subnet:
            return f'network "{network.spec.name}" has no subnet: the address pools of the cluster are used up'
        size = pools.capacity(IPv4Network(network.subnet))
        return f'network "{network.spec.name}" has no free addresses ({size} of {size} in use)'

    def _explain(self, task: Task, text: str) -> None:
        if task.status.error != text:
            status = TaskStatus(state=TaskState.NEW, at_ms=self.now_ms, message="new", error=text)
            self.changes.append(Put(replace(task, status=status)))
