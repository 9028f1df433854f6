"""What the transport needs of others, and tells them."""

from __future__ import annotations

import ssl
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, TypeVar

M = TypeVar("M")
M_contra = TypeVar("M_contra", contravariant=True)


@dataclass(frozen=True, slots=True)
class Identity:
    """Who this manager is. The epoch changes when a cluster was recovered without its quorum."""

    cluster_id: str
    epoch: int
    node_id: str


class Tls(Protocol):
    """Contexts that ask for the other side's certificate, asked for anew with each connection: certificates change.

    Names in certificates are ids of nodes, never of hosts: the client context must not check host names.
    """

    @property
    def server(self) -> ssl.SSLContext:
        """For those who call."""

    @property
    def client(self) -> ssl.SSLContext:
        """For calling them."""

    def node_of(self, connection: ssl.SSLObject) -> str | None:
        """Whose certificate the other side has shown; None if it is no manager's."""


class Codec(Protocol[M]):
    """Raft's messages as bytes."""

    def encode(self, messages: Sequence[M]) -> bytes:
        """Some messages as the payload of a frame."""

    def decode(self, payload: bytes, sender: str, receiver: str) -> list[M]:
        """Inverse of `encode`. Raises ValueError for anything else, or for a message of or to somebody else."""

    def size_bytes(self, message: M) -> int:
        """About how long it is encoded; cheap."""

    def urgent(self, message: M) -> bool:
        """Whether it goes ahead of appends: heartbeats, votes, and what answers them."""


class Handler(Protocol[M_contra]):
    """Who is told. Called on the event loop, never from within `send`; must not block. What it raises (OSError and
    EOFError excepted, which would be taken for the connection's) ends the transport."""

    def received(self, sender: str, messages: Sequence[M_contra]) -> None:
        """Messages of a peer, in the order in which they were sent on their lane."""

    def report_unreachable(self, node_id: str) -> None:
        """A connection broke, or a message was dropped (told at most once in REPORT_S)."""

    def report_snapshot(self, node_id: str, ok: bool) -> None:
        """A snapshot that `send_snapshot` took has arrived whole, or will not."""

    def snapshot_received(self, sender: str, message: M_contra, snapshot: Path) -> None:
        """A whole, verified, synced snapshot; the file is the handler's now."""

    def address_learned(self, node_id: str, address: str) -> None:
        """A peer listens elsewhere than was known. Authenticated if there is TLS."""


@dataclass(slots=True)
class Counters:
    """Since the start."""

    sent: int = 0
    received: int = 0
    connections: int = 0  # that were welcome here
    dropped: Counter[str] = field(default_factory=Counter)  # messages that were not sent, by reason
    refused: Counter[str] = field(default_factory=Counter)  # connections and bytes of others, by reason


@dataclass(frozen=True, slots=True)
class PeerStatus:
    """One peer, for `mesh quorum status`."""

    node_id: str
    addresses: tuple[str, ...]  # the one in use first
    connected: bool  # urgent lane
    since_s: float  # loop time of the last change of `connected`
    problem: str  # one sentence, "" if none
