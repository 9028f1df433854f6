"""An engine's calls against a node's book: repeated, restarted, without managers, on a full disk, and with clashes."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable
from ipaddress import ip_address
from pathlib import Path
from types import MappingProxyType, SimpleNamespace
from typing import Any, cast

import msgspec
import pytest
from msgspec.structs import replace

from control.assignment import AttachmentReport, Key, KnownNetwork, Record, Settings, key_of
from control.model import Lease, Network, NetworkSpec, NodeDescription
from mesh.agent.agent import Agent
from mesh.agent.attached import Guest
from mesh.agent.view import Assignments
from mesh.plugin import keeper as keepers
from mesh.plugin.driver import Driver, DriverError
from mesh.plugin.keeper import Keeper

WEB = Network(id="w" * 25, spec=NetworkSpec(name="web"), vni=4097, subnet="10.1.0.0/24", gateway="10.1.0.1")
LEASE = Lease(id="w/n/0", node_id="n", network_id=WEB.id, block="10.1.0.16/30")
SETTINGS = Settings(
    cluster_id="c", cluster_name="c", vxlan_port=4789, heartbeat_period_s=5, address_pools=("10.0.0.0/8",),
    subnet_prefix_length=16,
)  # fmt: skip
PORTS = {"com.docker.network.portmap": [{"Proto": 6, "Port": 80, "HostPort": 8080, "HostIP": "0.0.0.0"}]}


class FakeAgent:
    """Gives each guest its interface at once."""

    def __init__(self, *records: Record) -> None:
        held: dict[Key, Record] = {key_of(record): record for record in records}
        assignments = Assignments(1, MappingProxyType(held))
        description = NodeDescription(routes=("10.2.0.0/16",))
        self.session = SimpleNamespace(assignments=assignments, connected=False, description=description)
        self.identity = SimpleNamespace(node_id="n")
        self.reconciler = SimpleNamespace(plan=None)
        self.followers: list[Callable[[], None]] = []
        self.hosts_others = False
        self.guests: tuple[Guest, ...] = ()
        self.report = AttachmentReport()

    def attach(self, guests: Iterable[Guest], report: AttachmentReport) -> None:
        self.guests, self.report = tuple(guests), report

    def placed(self) -> frozenset[str]:
        return frozenset(guest.attachment.id for guest in self.guests)


@pytest.fixture
def agent() -> FakeAgent:
    return FakeAgent(SETTINGS, KnownNetwork(network=WEB), LEASE)


@pytest.fixture
def keeper(agent: FakeAgent, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Keeper:
    monkeypatch.setattr("mesh.plugin.driver.LEASE_WAIT_S", 0.05)
    monkeypatch.setattr(keepers, "PLACE_WAIT_S", 0.05)
    return Keeper(cast(Agent, agent), tmp_path / "book.json", lambda: 1000)


async def ask(keeper: Keeper, method: str, **body: Any) -> Any:
    return await Driver(keeper).call(method, msgspec.json.encode(body))


async def endpoint(keeper: Keeper, name: str, **options: Any) -> str:
    """What an engine does to start a container; its address."""
    given = await ask(keeper, "/IpamDriver.RequestAddress", PoolID=WEB.subnet)
    ids = {"NetworkID": "d" * 64, "EndpointID": name * 64}
    for _ in range(2):
        await ask(keeper, "/NetworkDriver.CreateEndpoint", **ids, Interface=given, Options=options)
        joined = await ask(keeper, "/NetworkDriver.Join", **ids, SandboxKey=f"/sandbox/{name}")
    address = str(given["Address"].partition("/")[0])
    assert joined["Gateway"] == WEB.gateway
    assert joined["InterfaceName"]["SrcName"] == f"mh{int(ip_address(address)):08x}"
    return address


async def test_a_container_comes_and_goes_and_all_of_it_is_on_disk(agent: FakeAgent, keeper: Keeper) -> None:
    address = await endpoint(keeper, "e", **{"mesh.service": "api"})
    (guest,) = agent.guests
    assert (guest.attachment.address, guest.attachment.service, guest.handed) == (address, "api", True)
    assert agent.report.attachments == (guest.attachment,)
    again = Keeper(cast(Agent, agent), keeper._path, lambda: 2000)
    assert again.book == keeper.book, "a daemon that starts anew knows what an engine never says again"
    ids = {"NetworkID": "d" * 64, "EndpointID": "e" * 64}
    for _ in range(2):
        await ask(again, "/NetworkDriver.Leave", **ids)
        assert agent.guests == ()
        await ask(again, "/NetworkDriver.DeleteEndpoint", **ids)
        await ask(again, "/IpamDriver.ReleaseAddress", PoolID=WEB.subnet, Address=address)
    assert (again.book.entries, again.book.held) == ({}, {})


async def test_a_network_of_both_families_gives_both(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine manages IPv4 alone: the other address is made of it, and told with the endpoint."""
    monkeypatch.setattr(keepers, "PLACE_WAIT_S", 0.05)
    both = replace(WEB, subnet6="fd00:1::/64", gateway6="fd00:1::a01:1")
    fake = FakeAgent(SETTINGS, KnownNetwork(network=both), LEASE)
    keeper = Keeper(cast(Agent, fake), tmp_path / "book.json", lambda: 1000)
    given = await ask(keeper, "/IpamDriver.RequestAddress", PoolID=WEB.subnet)
    assert given["Address"] == "10.1.0.16/24"
    ids = {"NetworkID": "d" * 64, "EndpointID": "a" * 64}
    for _ in range(2):
        made = await ask(keeper, "/NetworkDriver.CreateEndpoint", **ids, Interface=given)
        assert made == {"Interface": {"AddressIPv6": "fd00:1::a01:10/128"}}
        joined = await ask(keeper, "/NetworkDriver.Join", **ids, SandboxKey="/sandbox/a")
        assert (joined["Gateway"], joined["GatewayIPv6"]) == ("10.1.0.1", "fd00:1::a01:1")
        assert joined["StaticRoutes"] == [
            {"Destination": "fd00:1::a01:1/128", "RouteType": 1},
            {"Destination": "fd00:1::/64", "RouteType": 0, "NextHop": "fd00:1::a01:1"},
        ]


async def test_addresses_run_out_and_may_be_asked_for(keeper: Keeper) -> None:
    with pytest.raises(DriverError, match="not leased to this node"):
        await ask(keeper, "/IpamDriver.RequestAddress", PoolID=WEB.subnet, Address="10.1.0.99")
    given = [await endpoint(keeper, name) for name in "abcd"]
    assert len(set(given)) == 4
    with pytest.raises(DriverError, match="no address left"):
        await ask(keeper, "/IpamDriver.RequestAddress", PoolID=WEB.subnet)
    with pytest.raises(DriverError, match="no network with subnet"):
        await ask(keeper, "/IpamDriver.RequestAddress", PoolID="10.9.0.0/24")
    gateway = {"RequestAddressType": "com.docker.network.gateway"}
    answer = await ask(keeper, "/IpamDriver.RequestAddress", PoolID=WEB.subnet, Options=gateway)
    assert answer["Address"] == "10.1.0.1/24"


async def test_ports_are_published_once(agent: FakeAgent, keeper: Keeper) -> None:
    await endpoint(keeper, "a")
    await endpoint(keeper, "b")
    first, second = ({"NetworkID": "d" * 64, "EndpointID": name * 64, "Options": PORTS} for name in "ab")
    await ask(keeper, "/NetworkDriver.ProgramExternalConnectivity", **first)
    await ask(keeper, "/NetworkDriver.ProgramExternalConnectivity", **first)
    with pytest.raises(DriverError, match=r"port 8080/tcp of this machine is published already"):
        await ask(keeper, "/NetworkDriver.ProgramExternalConnectivity", **second)
    await ask(keeper, "/NetworkDriver.RevokeExternalConnectivity", **first)
    await ask(keeper, "/NetworkDriver.ProgramExternalConnectivity", **second)
    assert [[p.published for p in guest.attachment.ports] for guest in agent.guests] == [[], [8080]]


async def test_a_full_disk_is_said_and_nothing_is_given(keeper: Keeper, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    before = keeper.book
    monkeypatch.setattr(keepers, "_save", full)
    with pytest.raises(DriverError, match="cannot write its state: No space left on device"):
        await ask(keeper, "/IpamDriver.RequestAddress", PoolID=WEB.subnet)
    assert keeper.book is before


async def test_a_container_that_gets_no_interface_does_not_start(
    agent: FakeAgent, keeper: Keeper, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(agent, "placed", frozenset)
    with pytest.raises(DriverError, match='gets no interface on network "web"'):
        await endpoint(keeper, "e")
    assert agent.guests == ()


async def test_networks_made_in_the_engine(agent: FakeAgent, keeper: Keeper) -> None:
    pool = await ask(keeper, "/IpamDriver.RequestPool", Pool="")
    assert pool["Pool"] == "10.0.0.0/16", "clear of the cluster's networks and of this machine's routes"
    data = [{"Pool": pool["Pool"], "Gateway": "10.0.0.1/16"}]
    await ask(keeper, "/NetworkDriver.CreateNetwork", NetworkID="f" * 64, IPv4Data=data, Options={})
    assert agent.report.networks == (), "its name is not known yet"
    for name, subnet, sentence in (
        ("web", "10.5.0.0/24", 'network "web" already exists'),
        ("other", "10.1.0.0/25", r'overlaps network "web"'),
        ("A B", "10.5.0.0/24", "is no name of a network"),
        ("late", "10.5.0.0/24", 'no manager has made network "late"'),
    ):
        options = {"com.docker.network.generic": {"mesh.name": name}}
        with pytest.raises(DriverError, match=sentence):
            await ask(
                keeper, "/NetworkDriver.CreateNetwork", NetworkID="g" * 64, IPv4Data=[{"Pool": subnet}], Options=options
            )
    await ask(keeper, "/NetworkDriver.DeleteNetwork", NetworkID="f" * 64)
    assert keeper.book.networks == {}
    with pytest.raises(DriverError, match="ipam-driver mesh"):
        await ask(keeper, "/NetworkDriver.CreateNetwork", NetworkID="h" * 64, IPv4Data=[])
    with pytest.raises(DriverError, match="IPv6 comes with the network"):
        await ask(keeper, "/IpamDriver.RequestPool", V6=True)
    with pytest.raises(DriverError, match="knows no call"):
        await ask(keeper, "/NetworkDriver.New")
