"""The key and the certificate of this node, in memory and on disk (control.ca.disk), and who it believes. No tasks.

What is on disk is read once, at the start: a node whose files others could have read does not start.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from pathlib import Path

from cryptography import x509

from control.ca.contexts import Credentials, Locked, client_context, peer_of, server_context
from control.ca.disk import DIRECTORY, Shelf
from control.ca.names import Holder, holder_in
from control.ca.requests import make_request
from control.ca.root import load_certificates, load_key
from control.ca.schedule import has_expired, renew_at_s
from control.ca.verify import root_of_digest, verify_manager
from control.server.enrolment import Believe


class Papers:
    """See the module. Raises CredentialsError if the files cannot be used."""

    def __init__(self, state_dir: Path, wall_ms: Callable[[], int], *, locked: bool = False) -> None:
        """`locked`: the key is in the vault, and comes with `open`."""
        self._shelf, self._wall_ms = Shelf(state_dir / DIRECTORY), wall_ms
        self._kept = b""  # the key, where it is not in its file
        self._held: Credentials | None = None if locked else self._shelf.load()
        self._made: tuple[Credentials, ssl.SSLContext, ssl.SSLContext] | None = None

    @property
    def exist(self) -> bool:
        return self._held is not None or self._shelf.exists

    def credentials(self) -> Credentials:
        """What to show now. Only while this node is a member. Raises Locked."""
        if self._held is None:
            assert self._shelf.exists, "a member has a certificate"
            raise Locked("this manager is locked")
        return self._held

    @property
    def holder(self) -> Holder | None:
        """Whom the certificate names."""
        return holder_in(self.credentials().certificate)

    @property
    def expired(self) -> bool:
        return has_expired(self.credentials().certificate, self._now_s())

    def renew_in_s(self, fraction: float) -> float:
        """How long until the certificate should be renewed; see `control.ca.schedule`."""
        return renew_at_s(self.credentials().certificate, fraction) - self._now_s()

    async def request(self) -> bytes:
        """For a certificate for this node's key, which is made if there is none. Raises CredentialsError."""
        return make_request(load_key(self._kept) if self._kept else await asyncio.to_thread(self._shelf.key))

    async def keep(self, chain: bytes, roots: bytes) -> None:
        """A certificate that a manager has given. Raises CredentialsError."""
        self._held = await asyncio.to_thread(self._shelf.save, chain, roots, self._kept)

    async def forget(self) -> None:
        """The node is no member any more."""
        await asyncio.to_thread(self._shelf.remove)
        self._held, self._kept = None, b""

    # --- where the key is -------------------------------------------------------------------------------------------

    async def open(self, key: bytes) -> None:
        """It was unlocked. Raises CredentialsError."""
        self._held = await asyncio.to_thread(self._shelf.load, key)
        await self.hide_key(key)

    async def hide_key(self, key: bytes) -> None:
        """It is in the vault, and not in its file from now on. Raises OSError."""
        self._kept = key
        await asyncio.to_thread(self._shelf.hide_key)

    async def show_key(self, key: bytes) -> None:
        """It is in its file. Raises OSError."""
        await asyncio.to_thread(self._shelf.show_key, key)
        self._kept = b""

    def contexts(self) -> tuple[ssl.SSLContext, ssl.SSLContext]:
        """Of a server and of a client, for the certificate of now."""
        held = self.credentials()
        if self._made is None or self._made[0] is not held:
            self._made = held, server_context(held), client_context(held)
        return self._made[1:]

    # --- whom to believe before there is TLS ------------------------------------------------------------------------

    def by_digest(self, digest: str) -> Believe:
        """A newcomer knows the digest of the root from its token."""

        def believe(leaf: x509.Certificate, chain: list[x509.Certificate], roots: list[x509.Certificate]) -> Holder:
            return verify_manager(leaf, chain, [root_of_digest(roots, digest)], self._now_s())

        return believe

    def by_roots(self) -> Believe:
        """A member knows the roots, or what the root now is certified by."""
        known = load_certificates(self.credentials().roots)

        def believe(leaf: x509.Certificate, chain: list[x509.Certificate], _: list[x509.Certificate]) -> Holder:
            return verify_manager(leaf, chain, known, self._now_s())

        return believe

    def _now_s(self) -> float:
        return self._wall_ms() / 1000


class ManagersTls:
    """Of the connections among managers (control.transport.seam.Tls)."""

    def __init__(self, papers: Papers) -> None:
        self._papers = papers

    @property
    def server(self) -> ssl.SSLContext:
        return self._papers.contexts()[0]

    @property
    def client(self) -> ssl.SSLContext:
        return self._papers.contexts()[1]

    def node_of(self, connection: ssl.SSLObject) -> str | None:
        own, peer = self._papers.holder, peer_of(connection)
        if own is None or peer is None or (peer.role, peer.cluster_id) != ("manager", own.cluster_id):
            return None
        return peer.id
