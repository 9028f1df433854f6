"""Where the other managers are, as far as known: values.

Identity is the node id; an address is a hint from somewhere, and the newest good one wins: what this manager is told
(`hint`), what the others say, themselves or of each other, what the agreement says, what was known when it joined.
"""

from __future__ import annotations

from collections.abc import Mapping, Set

from control.raft.configuration import Configuration, node_of

# Callers that this manager's configuration does not have (yet): it may be behind, and they lead. Others are dropped.
STRANGERS_MAX = 16
# One that is no member any more is still to be told so.
LINGER_S = 10.0
# What is said of others is looked at: an address is a host name and a port.
ADDRESS_MAX = 300


class Peers:
    """See the module. `joined`: addresses by node id from when this manager joined."""

    def __init__(self, node_id: str, joined: Mapping[str, str]) -> None:
        self._node_id, self._joined = node_id, dict(joined)
        self._hints: dict[str, str] = {}
        self._learned: dict[str, str] = {}
        self._nodes: frozenset[str] = frozenset()
        self._gone: dict[str, float] = {}  # no members any more, and until when to keep in contact

    def hint(self, addresses: Mapping[str, str]) -> None:
        """All that somebody else knows, host:port by node id; the hints of before are forgotten."""
        self._hints = dict(addresses)

    def learn(self, node_id: str, address: str) -> None:
        """A manager has said where it listens."""
        self._learned.pop(node_id, None)
        self._learned[node_id] = address
        strangers = [node for node in self._learned if node not in self._nodes]
        for node in strangers[: max(len(strangers) - STRANGERS_MAX, 0)]:
            del self._learned[node]

    def told(self, addresses: Mapping[str, str], connected: Set[str]) -> bool:
        """Another one says where members are. Whether that is of use: those that can be reached need it not."""
        new = {
            node: address
            for node, address in addresses.items()
            if node in self._nodes - connected and len(address) <= ADDRESS_MAX and self._learned.get(node) != address
        }
        self._learned.update(new)
        return bool(new)

    def among(self, configuration: Configuration, now: float) -> dict[str, str]:
        """Whom to be connected with, and where to try."""
        agreed = {node_of(member.id): member.address for member in configuration.members}
        self._gone |= dict.fromkeys(self._nodes - agreed.keys(), now + LINGER_S)
        self._gone = {node: end for node, end in self._gone.items() if end > now and node not in agreed}
        self._nodes = frozenset(agreed)
        if not agreed:  # this manager has joined, and nobody has told it anything yet
            agreed = dict.fromkeys((*self._joined, *self._hints), "")
        found = {}
        for node in dict.fromkeys((*agreed, *self._gone, *self._learned)):
            sources = (self._hints, self._learned, agreed, self._joined)
            address = next((known[node] for known in sources if known.get(node)), "")
            if address and node != self._node_id:
                found[node] = address
        return found
