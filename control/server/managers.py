"""Which nodes are managers: what may be changed, and how a node says that it is ready to be one. Pure.

A node is a manager because its spec says so. Its daemon then says where it listens (Enlist), and the leader's loop
(`control.roll`) gives it a place in the agreement, or takes that away.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from ipaddress import ip_address

import msgspec

from control.model import Node
from control.server.refusal import Refusal
from control.store.backend import Member
from control.store.tables import Snapshot
from control.store.txn import Change, Put
from control.token import same, secret_digest

_STORES = {"disk": "on the managers' own disks", "etcd": "in etcd"}


@dataclass(frozen=True, slots=True)
class Enlistment:
    """What a node says of itself. The addresses are host:port."""

    node_id: str
    secret: str
    address: str
    quorum_address: str
    store: str


def enlist(snapshot: Snapshot, said: Enlistment, store: str) -> list[Change]:
    """Note where a manager listens. Raises Refusal."""
    node = snapshot.get(Node, said.node_id)
    if node is None or not same(secret_digest(said.secret), node.secret_digest):
        raise Refusal("UNAUTHENTICATED", "this node is not a member of the cluster (any more)")
    name = node.description.hostname or node.id
    if node.spec.role != "manager":
        raise Refusal(
            "FAILED_PRECONDITION", f'node "{name}" is a worker: "mesh node promote {name}" makes it a manager'
        )
    if said.store != store:
        raise Refusal(
            "FAILED_PRECONDITION",
            f'node "{name}" cannot become a manager: this cluster keeps its state {_STORES.get(store, store)}, and its '
            f"meshd is set up for {_STORES.get(said.store, 'something else')} (see the setting store)",
        )
    check_address(said.address, name)
    if said.quorum_address:
        check_address(said.quorum_address, name)
    return [Put(msgspec.structs.replace(node, control_address=said.address))] * (node.control_address != said.address)


def check_address(text: str, name: str) -> None:
    """Refuse what others could not reach. Raises Refusal."""
    host, _, port = text.rpartition(":")
    try:
        address = ip_address(host.strip("[]"))
        usable = port.isascii() and port.isdigit() and 0 < int(port) < 65_536
    except ValueError:
        usable, address = False, None
    if not usable or address is None or address.is_unspecified or address.is_multicast:
        raise Refusal(
            "INVALID_ARGUMENT", f'node "{name}" says that it is reached at "{text[:60]}": no address and port'
        )


def check_farewell(node: Node, members: Sequence[Member], answering: Collection[str]) -> None:
    """Refuse to take a manager away if those who are left could not agree any more. Raises Refusal.

    `members` are those who take part, `answering` the node ids of those who are heard.
    """
    name = node.description.hostname or node.id
    voters = {member.node_id for member in members if member.voter}
    left = voters - {node.id}
    if node.id not in voters:
        return
    if not left:
        raise Refusal("FAILED_PRECONDITION", f'node "{name}" is the only manager: make another node one first')
    needed, have = len(left) // 2 + 1, len(left & set(answering))
    if have < needed:
        raise Refusal(
            "FAILED_PRECONDITION",
            f'node "{name}" must stay a manager: without it {have} of {len(left)} managers would answer, and {needed} '
            "are needed to agree on anything; bring the others back first, or demote those that are lost",
        )
