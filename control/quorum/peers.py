"""Where the other managers are, as far as known: values.

Identity is the node id; an address is a hint from somewhere, and the newest good one wins: what this manager is told
(`hint`), what the agreement says, what the others say when they call, what was known when it joined.
"""

from __future__ import annotations

from collections.abc import Mapping

from control.raft.configuration import Configuration, node_of

# Callers that this manager's configuration does not have (yet): it may be behind, and they lead. Others are dropped.
STRANGERS_MAX = 16


class Peers:
    """See the module. `joined`: addresses by node id from when this manager joined."""

    def __init__(self, node_id: str, joined: Mapping[str, str]) -> None:
        self._node_id, self._joined = node_id, dict(joined)
        self._hints: dict[str, str] = {}
        self._learned: dict[str, str] = {}
        self._nodes: frozenset[str] = frozenset()

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

    def among(self, configuration: Configuration) -> dict[str, str]:
        """Whom to be connected with, and where to try."""
        agreed = {node_of(member.id): member.address for member in configuration.members}
        self._nodes = frozenset(agreed)
        if not agreed:  # this manager has joined, and nobody has told it anything yet
            agreed = dict.fromkeys((*self._joined, *self._hints), "")
        found = {}
        for node in (*agreed, *(node for node in self._learned if node not in agreed)):
            sources = (self._hints, agreed, self._learned, self._joined)
            address = next((known[node] for known in sources if known.get(node)), "")
            if address and node != self._node_id:
                found[node] = address
        return found
