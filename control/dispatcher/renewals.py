"""Which nodes are asked, with the answer to a heartbeat, to get another certificate: while the root is being changed,
those that have one of another root, a few at a time, and afterwards those that still believe the
one before (control.ca.rotation). Pure.
"""

from __future__ import annotations

import contextlib

from control.ca.root import CaError, digest, load_certificate
from control.ca.rotation import BATCH_MAX, believed
from control.model import Authority, Node
from control.store.tables import Snapshot

# So many are asked in this time at most: each costs a signature, a handshake, and a commit.
BATCH_PERIOD_S = 3.0


class Renewals:
    """See the module."""

    def __init__(self) -> None:
        self._version = -1
        self._wanted = ""  # digest of the root that signs; "" if there is none to speak of
        self._believed = 1
        self._asked = 0
        self._since = 0.0

    def ask(self, snapshot: Snapshot, node: Node | None, now: float) -> bool:
        """Whether to ask this node now; if so, it is counted."""
        self._look(snapshot)
        if node is None or not self._wanted or not node.issuer:
            return False
        if node.issuer == self._wanted and node.believes <= self._believed:
            return False
        if now - self._since >= BATCH_PERIOD_S:
            self._since, self._asked = now, 0
        if self._asked >= BATCH_MAX:
            return False
        self._asked += 1
        return True

    def _look(self, snapshot: Snapshot) -> None:
        authority = next(iter(snapshot.all(Authority)), None)
        version = authority.meta.version if authority is not None else 0
        if version == self._version:
            return
        self._version, self._wanted = version, ""
        if authority is not None:
            with contextlib.suppress(CaError):  # a damaged record asks nobody
                self._wanted = digest(load_certificate(authority.certificate.encode()))
                self._believed = len(believed(authority))
