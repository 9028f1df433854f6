"""Blocks of addresses for nodes: given once, out of the way of tasks, at most half, gone with node or network."""

from __future__ import annotations

from ipaddress import IPv4Network
from itertools import combinations

import pytest

from control.model import Attachment, Lease, Network, Node
from control.store.tables import leased
from tests.control.cluster import World, network, node, service


def wish(number: int = 0, node_id: str = "n1", network_id: str = "a") -> Lease:
    return Lease(id=f"{network_id}/{node_id}/{number}", node_id=node_id, network_id=network_id)


def blocks(made: World) -> list[IPv4Network]:
    return [IPv4Network(lease.block) for lease in made.snapshot.all(Lease) if lease.block]


def cluster(*nodes: str, subnet: str = "10.1.0.0/24") -> World:
    made = World()
    made.put(network("a", subnet=subnet), *(node(name) for name in nodes))
    made.decide()
    return made


def test_a_wish_becomes_a_block_that_nobody_else_has() -> None:
    made = cluster("n1", "n2", subnet="10.1.0.0/20")
    made.put(wish(0), wish(1), wish(0, "n2"), service(replicas=20, networks=["a"]))
    made.settle()
    made.put(wish(2))
    made.settle()
    given = blocks(made)
    assert [b.prefixlen for b in given] == [28] * 4
    assert not any(one.overlaps(other) for one, other in combinations(given, 2))
    held = {a.address for task in made.tasks() for a in task.addresses}
    assert len(held) == 20
    assert held.isdisjoint(a for lease in made.snapshot.all(Lease) for a in leased(lease))


def test_the_network_keeps_half_of_its_addresses() -> None:
    made = cluster("n1", subnet="10.1.0.0/24")
    made.put(*(wish(number) for number in range(40)))
    made.settle()
    assert sum(b.num_addresses for b in blocks(made)) in range(112, 129)
    assert all(b.prefixlen == 29 and b.subnet_of(IPv4Network("10.1.0.0/24")) for b in blocks(made))
    ends = (IPv4Network("10.1.0.0/32"), IPv4Network("10.1.0.1/32"), IPv4Network("10.1.0.255/32"))
    assert not any(block.overlaps(end) for block in blocks(made) for end in ends)


@pytest.mark.parametrize(("cls", "name"), [(Node, "n1"), (Network, "a")])
def test_leases_and_attachments_go_with_node_and_network(cls: type[Node] | type[Network], name: str) -> None:
    made = cluster("n1", "n2")
    made.put(wish(0))
    made.settle()
    address = leased(next(iter(made.snapshot.all(Lease))))[0]
    made.put(Attachment(id="c", node_id="n1", network_id="a", address=address, name="box", service="box"))
    made.settle()
    assert made.snapshot.attachments_of_service("BOX")
    made.delete(cls, name)
    made.decide()
    assert not made.snapshot.all(Lease)
    assert not made.snapshot.all(Attachment)
