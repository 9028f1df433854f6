"""The way of a connection from a task of this node to a name or address, and where it would be lost. Pure.

What is desired comes from the plan, what is there from the kernel (`RouterState`, `Observed`); a difference between the
two is a finding, since the reconciler repairs it only when it looks again.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from ipaddress import ip_address

from control.assignment import Endpoint, Peer, ServiceEntry
from control.model import Network
from dns.plan import Address
from dns.resolver import Explanation
from mesh.agent.compile import NodePlan
from mesh.agent.view import View
from mesh.vip.plan import ObservedService, Protocol, RouterPlan, VirtualService
from overlay import names

# Of more backends than these, the rest is counted only.
BACKENDS_SHOWN = 10


@dataclass(frozen=True, slots=True)
class Step:
    """One thing on the way. `lost`: a packet gets no further here."""

    what: str
    found: str
    lost: bool = False


@dataclass(frozen=True, slots=True)
class Way:
    """How a router reaches an address: the device, and for one on another node the next hop and its tunnel."""

    device: str
    up: bool
    via: str = ""
    mac: str = ""  # of the next hop; "" when the kernel has no neighbour
    tunnel: str = ""  # underlay address for that MAC; "" when the kernel has no such entry


@dataclass(frozen=True, slots=True)
class RouterState:
    """What the kernel holds of one router."""

    exists: bool = True
    ways: Mapping[Address, Way] = field(default_factory=dict)
    services: tuple[ObservedService, ...] = ()
    counters: Mapping[str, tuple[int, int, int]] = field(default_factory=dict)  # device -> packets in, out, dropped
    met: frozenset[str] = frozenset()  # addresses inside WireGuard whose keys have met one of ours


@dataclass(frozen=True, slots=True)
class Question:
    """From an own task's address on a network, to an address that a name may have given."""

    task: str
    network_id: str
    source: Address
    target: str
    port: int | None
    protocol: Protocol
    explanation: Explanation | None  # None: the target was an address


def trace(view: View, plan: NodePlan, question: Question, router: RouterState) -> list[Step]:
    """All steps, up to the first at which everything is lost."""
    steps: list[Step] = []
    for step in _steps(view, plan, question, router):
        steps.append(step)
        if step.lost and step.what not in _OF_ONE_BACKEND:
            break
    return steps


_OF_ONE_BACKEND = ("backend", "route", "neighbour", "tunnel", "node")


def _steps(view: View, plan: NodePlan, question: Question, router: RouterState) -> Iterator[Step]:
    network = next(n for n in view.assignments.of("network", Network) if n.id == question.network_id)
    yield Step("source", f'task {question.task}, {question.source} on network "{network.spec.name}"')
    address = question.target
    if question.explanation is not None:
        found = question.explanation
        if not found.answers:
            yield Step("name", f"{question.target}: {found.outcome} ({'; '.join(found.why)})", lost=True)
            return
        address = found.answers[0]
        yield Step("name", f"{question.target} is {', '.join(found.answers)} ({'; '.join(found.why)})")
    if not router.exists:
        yield Step("router", "the network has no router on this node", lost=True)
        return
    wanted = _router_plan(plan, network, view)
    yield from _to(view, plan, wanted, question, ip_address(address), router)
    for device, (received, sent, dropped) in sorted(router.counters.items()):
        yield Step("counters", f"{device}: {received} packets in, {sent} out, {dropped} dropped")


def _router_plan(plan: NodePlan, network: Network, view: View) -> RouterPlan:
    path = f"{view.netns_dir}/{names.router_netns(network.id)}"
    return next(router for router in plan.vip.routers if router.netns == path)


def _to(
    view: View, plan: NodePlan, wanted: RouterPlan, question: Question, address: Address, router: RouterState
) -> Iterator[Step]:
    service = next((s for s in wanted.services if s.address == address and s.port in (None, question.port)), None)
    if service is not None:
        yield from _through(view, service, question, router)
    elif address in (wanted.gateway, wanted.gateway6):
        yield Step("address", f"{address} is the network's router on this node: it answers DNS only")
    elif any(address in subnet for subnet in (wanted.subnet, wanted.subnet6) if subnet is not None):
        yield from _to_task(view, address, router)
    elif (other := _network_of(plan, address)) is not None:
        yield Step("address", f'{address} is on a network the task is not on ("{other}")', lost=True)
    elif wanted.masquerade:
        yield Step("address", f"{address} is outside the mesh: through {wanted.uplink_device}, as this host")
    else:
        yield Step("address", f"{address} is outside the mesh, and the network is internal", lost=True)


def _network_of(plan: NodePlan, address: Address) -> str | None:
    for network in plan.dns.networks:
        if any(address in subnet for subnet in network.subnets):
            return network.name
    return None


def _through(view: View, service: VirtualService, question: Question, router: RouterState) -> Iterator[Step]:
    owner = next(
        (
            s.name
            for s in view.assignments.of("service", ServiceEntry)
            if any(vip.address == str(service.address) for vip in s.vips)
        ),
        "a service",
    )
    yield Step("address", f"{service.address} is the virtual address of {owner}")
    held = next(
        (s for s in router.services if s.address == service.address and s.port in (None, question.port)),
        None,
    )
    wanted = {backend.address for backend in service.backends if backend.weight > 0}
    have = {address for address, slots in held.slots.items() if slots > 0} if held is not None else set()
    if wanted != have:
        missing, extra = _list(wanted - have), _list(have - wanted)
        yield Step("balancer", f"the kernel differs from the plan (missing {missing}, too many {extra}): repaired soon")
    if not have:
        yield Step("balancer", f"no task of {owner} is ready: connections are refused at once", lost=True)
        return
    yield Step("balancer", f"{service.scheduler} over {len(have)} of {len(service.backends)} tasks")
    for address in sorted(have, key=int)[:BACKENDS_SHOWN]:
        yield from _to_task(view, address, router)
    if len(have) > BACKENDS_SHOWN:
        yield Step("balancer", f"and {len(have) - BACKENDS_SHOWN} more tasks")


def _list(addresses: set[Address]) -> str:
    return ", ".join(str(address) for address in sorted(addresses, key=int)) or "none"


def _to_task(view: View, address: Address, router: RouterState) -> Iterator[Step]:
    """From the router to the task that has an address."""
    endpoint = _endpoint(view, address)
    if endpoint is None:
        yield Step("backend", f"{address} is no task's: the router refuses it", lost=True)
        return
    peer = view.assignments.peer(endpoint.node_id)
    where = "this node" if endpoint.node_id == view.node_id else f"node {peer.name if peer else endpoint.node_id}"
    yield Step("backend", f"{endpoint.hostname} {address} on {where}, {endpoint.state}")
    way = router.ways.get(address)
    encrypted = _is_encrypted(view, endpoint)
    if peer is not None and endpoint.node_id != view.node_id and encrypted and not peer.tunnel_keys:
        yield Step("encryption", f"{peer.name} has told no WireGuard key: mesh doctor there says what helps", lost=True)
    elif way is None or not way.up:
        missing = "no route" if way is None else f"device {way.device} is down"
        yield Step("route", f"{missing} to {address} in the router", lost=True)
    elif endpoint.node_id == view.node_id:
        yield Step("route", f"{way.device} (this node)")
    elif peer is None or not peer.data_address:
        yield Step("node", f"node {endpoint.node_id} is not known here", lost=True)
    else:
        yield from _tunnel(peer, way, router, encrypted=encrypted)


def _is_encrypted(view: View, endpoint: Endpoint) -> bool:
    return any(n.id == endpoint.network_id and n.spec.encrypted for n in view.assignments.of("network", Network))


def _ends(peer: Peer, *, encrypted: bool) -> set[str]:
    """The addresses at which a node takes VXLAN."""
    if not encrypted:
        return {peer.data_address}
    return {str(names.tunnel_address(peer.number, key.slot)) for key in peer.tunnel_keys}


def _tunnel(peer: Peer, way: Way, router: RouterState, *, encrypted: bool) -> Iterator[Step]:
    yield Step("route", f"via {way.via} on {way.device}")
    ends = _ends(peer, encrypted=encrypted)
    if way.mac != names.router_mac(peer.number):
        found = way.mac or "none"
        yield Step("neighbour", f"{way.via} should be {names.router_mac(peer.number)}, is {found}", lost=True)
    elif way.tunnel not in ends:
        wanted = " or ".join(sorted(ends))
        yield Step("tunnel", f"{way.mac} should go to {wanted}, goes to {way.tunnel or 'nowhere'}", lost=True)
    elif encrypted:
        met = "keys have met" if way.tunnel in router.met else "no handshake yet: the first packet asks for one"
        yield Step("tunnel", f"VXLAN inside WireGuard to {peer.name} ({peer.data_address}), {met}")
    else:
        yield Step("tunnel", f"VXLAN to {peer.name} ({way.tunnel})")
    if peer.state != "ready":
        yield Step("node", f"{peer.name} is {peer.state}", lost=peer.state == "down")


def _endpoint(view: View, address: Address) -> Endpoint | None:
    """Whose address it is. An IPv6 one ends in the IPv4 one (control.ipv6)."""
    text = str(address) if address.version == 4 else str(ip_address(int(address) & 0xFFFFFFFF))
    return next((e for e in view.assignments.of("endpoint", Endpoint) if e.address == text), None)
