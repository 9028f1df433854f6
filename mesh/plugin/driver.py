"""The calls of an engine, answered from the book and the catalogue: network driver and IPAM.

An address pool's id is its subnet, and a subnet is one network of the cluster: so no call needs what an earlier one has
left behind, and an engine that was restarted, which replays nothing, finds everything as it was.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from ipaddress import IPv4Address, IPv4Network, IPv6Network, ip_address
from typing import Any

from msgspec.structs import replace

from control.allocator import pools
from control.assignment import NetworkWish, Settings
from control.ipv6 import embedded
from control.model import Network, PortSpec, Protocol
from control.spec import is_label
from mesh.plugin import wire
from mesh.plugin.book import BookError, Entry, occupied
from mesh.plugin.keeper import ID_LENGTH, LEASE_WAIT_S, Keeper
from mesh.plugin.labels import LabelError, read_labels
from mesh.plugin.wire import WireError
from overlay.names import handed_device

Answer = Mapping[str, Any]
NAME_OPTION, ID_OPTION = "mesh.name", "mesh.network"


class DriverError(Exception):
    """A call is refused. One sentence, which the engine shows to its user."""


class Driver:
    """See the module."""

    def __init__(self, keeper: Keeper) -> None:
        self._keeper = keeper
        self._calls: dict[str, Callable[[bytes], Awaitable[Answer]]] = {
            "/IpamDriver.RequestPool": self._request_pool,
            "/IpamDriver.ReleasePool": self._nothing,
            "/IpamDriver.RequestAddress": self._request_address,
            "/IpamDriver.ReleaseAddress": self._release_address,
            "/NetworkDriver.CreateNetwork": self._create_network,
            "/NetworkDriver.DeleteNetwork": self._delete_network,
            "/NetworkDriver.CreateEndpoint": self._create_endpoint,
            "/NetworkDriver.DeleteEndpoint": self._delete_endpoint,
            "/NetworkDriver.EndpointOperInfo": self._endpoint_info,
            "/NetworkDriver.Join": self._join,
            "/NetworkDriver.Leave": self._leave,
            "/NetworkDriver.ProgramExternalConnectivity": self._publish,
            "/NetworkDriver.RevokeExternalConnectivity": self._unpublish,
            "/NetworkDriver.DiscoverNew": self._nothing,
            "/NetworkDriver.DiscoverDelete": self._nothing,
        }

    async def call(self, method: str, body: bytes) -> Answer:
        """What to answer. Raises DriverError, or WireError for what makes no sense."""
        handler = self._calls.get(method)
        if handler is None:
            raise DriverError(f"meshd knows no call {method[:80]}")
        try:
            return await handler(body)
        except (BookError, LabelError) as error:
            raise DriverError(str(error)) from error
        except OSError as error:
            raise DriverError(f"meshd cannot write its state: {error.strerror}") from error

    async def _nothing(self, body: bytes) -> Answer:
        return {}

    # --- addresses ----------------------------------------------------------------------------------------------------

    async def _request_pool(self, body: bytes) -> Answer:
        asked = wire.read(body, wire.RequestPool)
        if asked.v6:
            raise DriverError('IPv6 comes with the network: "mesh network create --ipv6", not "--ipv6" of Docker')
        pool = _subnet(asked.pool) if asked.pool else self._free_subnet()
        return {"PoolID": str(pool), "Pool": str(pool), "Data": {}}

    def _free_subnet(self) -> IPv4Network:
        records = self._keeper.agent.session.assignments
        settings = records.settings() or Settings(cluster_id="", cluster_name="", vxlan_port=0, heartbeat_period_s=0)
        routes = self._keeper.agent.session.description.routes
        taken = [IPv4Network(n.subnet) for n in self._keeper.networks()] + [IPv4Network(r) for r in routes]
        found = pools.Subnets(settings.address_pools, settings.subnet_prefix_length, taken).take()
        if found is None:
            raise DriverError("the address pools of the cluster are used up")
        return found

    async def _request_address(self, body: bytes) -> Answer:
        asked = wire.read(body, wire.RequestAddress)
        pool = _subnet(asked.pool_id)
        if (asked.options or {}).get(wire.ADDRESS_TYPE) == wire.GATEWAY_TYPE:
            if asked.address and ip_address(asked.address) != pools.gateway(pool):
                raise DriverError(f"the gateway of a mesh network is its first address, {pools.gateway(pool)}")
            return {"Address": f"{pools.gateway(pool)}/{pool.prefixlen}", "Data": {}}
        keeper = self._keeper
        await keeper.until(lambda: self._leased(str(pool)), LEASE_WAIT_S)
        network = keeper.network(str(pool))
        if network is None:
            raise DriverError(f"the cluster has no network with subnet {pool} (any more)")
        book, address = keeper.book.request(network.id, keeper.leases(), asked.address, keeper.now_ms())
        keeper.change(book)
        return {"Address": f"{address}/{pool.prefixlen}", "Data": {}}

    def _leased(self, subnet: str) -> bool:
        network, keeper = self._keeper.network(subnet), self._keeper
        if network is None:
            return False
        try:
            keeper.book.request(network.id, keeper.leases(), "", keeper.now_ms())
        except BookError:
            return False
        return True

    async def _release_address(self, body: bytes) -> Answer:
        asked = wire.read(body, wire.ReleaseAddress)
        network = self._keeper.network(str(_subnet(asked.pool_id)))
        if network is not None:
            self._keeper.change(self._keeper.book.release(network.id, asked.address, self._keeper.now_ms()))
        return {}

    # --- networks -----------------------------------------------------------------------------------------------------

    async def _create_network(self, body: bytes) -> Answer:
        asked = wire.read(body, wire.CreateNetwork)
        if not asked.ipv4_data:
            raise DriverError('a mesh network needs addresses from mesh: use "--ipam-driver mesh"')
        subnet = str(_subnet(asked.ipv4_data[0].pool))
        keeper, name = self._keeper, asked.label(NAME_OPTION)
        if asked.label(ID_OPTION) or keeper.network(subnet) is not None:
            return {}  # of the cluster already
        self._check_free(name, IPv4Network(subnet))
        internal = bool((asked.options or {}).get(wire.INTERNAL))
        wish = NetworkWish(id=asked.network_id[:ID_LENGTH], name=name, subnet=subnet, internal=internal)
        keeper.change(replace(keeper.book, networks={**keeper.book.networks, asked.network_id: wish}))
        if name and not await keeper.until(lambda: keeper.network(subnet) is not None, LEASE_WAIT_S):
            keeper.change(keeper.book.without_network(asked.network_id))
            raise DriverError(
                f'no manager has made network "{name}": none answers, or the name or subnet cannot be had'
            )
        return {}

    def _check_free(self, name: str, subnet: IPv4Network) -> None:
        """What managers would refuse, said at once. Raises DriverError."""
        if name and not is_label(name):
            raise DriverError(f'"{name}" is no name of a network: lower case letters, digits and hyphens')
        for network in self._keeper.networks():
            if name == network.spec.name:
                raise DriverError(f'network "{name}" already exists')
            if IPv4Network(network.subnet).overlaps(subnet):
                raise DriverError(f'subnet {subnet} overlaps network "{network.spec.name}" ({network.subnet})')

    async def _delete_network(self, body: bytes) -> Answer:
        asked = wire.read(body, wire.OfNetwork)
        self._keeper.change(self._keeper.book.without_network(asked.network_id))
        return {}

    # --- endpoints ----------------------------------------------------------------------------------------------------

    async def _create_endpoint(self, body: bytes) -> Answer:
        asked = wire.read(body, wire.OfEndpoint)
        address, _, length = (asked.interface.address if asked.interface else "").partition("/")
        if not length:
            raise DriverError('a mesh network needs addresses from mesh: use "--ipam-driver mesh"')
        network = self._keeper.network(str(IPv4Network(f"{address}/{length}", strict=False)))
        if network is None:
            raise DriverError(f"the cluster has no network with address {address} (any more)")
        entry = Entry(id=asked.endpoint_id, network_id=network.id, address=address, options=read_labels(asked.labels()))
        self._keeper.change(self._keeper.book.create(entry, self._keeper.now_ms()))
        return wire.endpoint_answer(_address6(network, address))

    async def _delete_endpoint(self, body: bytes) -> Answer:
        asked = wire.read(body, wire.OfEndpoint)
        self._keeper.change(self._keeper.book.delete(asked.endpoint_id, self._keeper.now_ms()))
        return {}

    async def _endpoint_info(self, body: bytes) -> Answer:
        entry = self._keeper.book.entries.get(wire.read(body, wire.OfEndpoint).endpoint_id)
        if entry is None:
            return {"Value": {}}
        said = self._keeper.describe(entry)
        return {"Value": {"mesh.service": said.service, "mesh.address": said.address}}

    async def _join(self, body: bytes) -> Answer:
        asked = wire.read(body, wire.OfEndpoint)
        entry = self._keeper.book.entries.get(asked.endpoint_id)
        network = self._keeper.network(entry.network_id) if entry is not None else None
        if entry is None or network is None:
            raise DriverError(f"there is no endpoint {asked.endpoint_id[:12]} on a network of the cluster")
        self._keeper.change(self._keeper.book.change(entry.id, sandbox=asked.sandbox_key))
        if not await self._keeper.until_placed(entry.id):
            self._keeper.change(self._keeper.book.change(entry.id, sandbox=""))
            raise DriverError(f'the container gets no interface on network "{network.spec.name}": see the log of meshd')
        device = handed_device(IPv4Address(entry.address))
        return wire.join_answer(device, network)

    async def _leave(self, body: bytes) -> Answer:
        asked = wire.read(body, wire.OfEndpoint)
        self._keeper.change(self._keeper.book.change(asked.endpoint_id, sandbox="", ports=()))
        return {}

    # --- published ports ----------------------------------------------------------------------------------------------

    async def _publish(self, body: bytes) -> Answer:
        asked = wire.read(body, wire.OfEndpoint)
        ports = tuple(_port(mapping) for mapping in wire.port_mappings(asked.options))
        for port in ports:
            if occupied(self._keeper.book.entries, port, asked.endpoint_id) or self._published(port):
                raise DriverError(f"port {port.published}/{port.protocol} of this machine is published already")
        self._keeper.change(self._keeper.book.change(asked.endpoint_id, ports=ports))
        return {}

    def _published(self, wanted: PortSpec) -> bool:
        """Whether a service publishes it on every node, or a task on this one."""
        plan = self._keeper.agent.reconciler.plan
        own = {(p.protocol, p.published) for e in self._keeper.book.entries.values() for p in e.ports}
        found = {(p.protocol, p.port) for p in plan.vip.published} if plan is not None else set()
        return (wanted.protocol, wanted.published) in found - own

    async def _unpublish(self, body: bytes) -> Answer:
        asked = wire.read(body, wire.OfEndpoint)
        self._keeper.change(self._keeper.book.change(asked.endpoint_id, ports=()))
        return {}


def _subnet(text: str) -> IPv4Network:
    try:
        return IPv4Network(text)
    except ValueError as error:
        raise WireError(f'"{text[:40]}" is no IPv4 subnet') from error


def _address6(network: Network, address: str) -> str:
    """The IPv6 address that goes with an IPv4 one of a network; "" without IPv6."""
    return str(embedded(IPv6Network(network.subnet6), IPv4Address(address))) if network.subnet6 else ""


_PROTOCOLS: dict[str, Protocol] = {"tcp": "tcp", "udp": "udp", "sctp": "sctp"}


def _port(mapping: wire.PortMapping) -> PortSpec:
    if mapping.protocol not in _PROTOCOLS:
        raise DriverError("only ports of TCP, UDP and SCTP can be published")
    if not mapping.published:
        raise DriverError(f"say which port of this machine leads to port {mapping.target}: -p 8080:{mapping.target}")
    return PortSpec(
        target=mapping.target,
        published=mapping.published,
        protocol=_PROTOCOLS[mapping.protocol],
        mode="host",
        address=mapping.address,
    )
