"""Keeps a manager's keys as its cluster wants them: in the clear, or locked by the unlock key (docs/decisions/0026).

Where the key of the certificate lies goes with it: in its file, or in the vault. It is in both while that changes, so
a crash loses nothing; the next start removes what should not be there. No tasks: who calls takes turns.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from pathlib import Path

from control.ca.disk import DIRECTORY, KEY_NAME, CredentialsError
from control.model import Cluster
from control.vault import NAME, Vault, VaultError
from mesh.daemon.identity import Identity
from mesh.daemon.papers import Papers

log = logging.getLogger(__name__)

LOCKED = 'this manager is locked: run "mesh unlock" on it, with the key that "mesh unlock-key" prints on another one'


class LockerError(Exception):
    """It cannot be locked or unlocked. One sentence."""


def open_vault(state_dir: Path, identity: Identity | None, wall_s: Callable[[], float]) -> Vault:
    """The vault of this machine. Blocks. Raises VaultError."""
    vault = Vault(state_dir / NAME, wall_s)
    manages = identity is not None and identity.role == "manager"
    if vault.locked and not manages and (state_dir / DIRECTORY / KEY_NAME).exists():
        vault.remove()  # it was just not a manager any more when meshd was ended
    return vault


class Locker:
    """See the module."""

    def __init__(self, vault: Vault, papers: Papers) -> None:
        self._vault, self._papers = vault, papers
        self._open = asyncio.Event()
        if not vault.locked:
            self._open.set()

    @property
    def locked(self) -> bool:
        """Whether this manager waits for the unlock key."""
        return self._vault.locked

    async def unlock(self, text: str) -> None:
        """Raises LockerError."""
        try:
            await asyncio.to_thread(self._vault.unlock, text)
            await self._papers.open(self._vault.node_key)
        except (VaultError, CredentialsError) as error:
            raise LockerError(str(error)) from error
        log.info("unlocked")
        self._open.set()

    async def once_open(self, run: Callable[[], Awaitable[None]]) -> None:
        """What needs the keys of this node waits for them; what runs here goes on from the copy on its disk."""
        if self.locked:
            log.warning("waits for the unlock key", extra={"reason": LOCKED})
        await self._open.wait()
        await run()

    async def follow(self, cluster: Cluster) -> bool:
        """Be locked with the cluster's key, or not; whether files are to be written with another data key from now on.

        Raises LockerError.
        """
        version = cluster.unlock_version if cluster.unlock_key else 0
        if version == self._vault.version:
            return False
        key = self._papers.credentials().key
        try:
            if not version:
                await self._papers.show_key(key)
            renewed = await asyncio.to_thread(self._vault.relock, version, cluster.unlock_key, key)
            if version:
                await self._papers.hide_key(key)
        except (OSError, VaultError) as error:
            raise LockerError(f"cannot change the lock of this manager's keys: {error}") from error
        log.info("the keys of this manager are locked" if version else "the keys of this manager are not locked")
        return renewed

    async def renew(self) -> bool:
        """Another data key if it is time; whether it was. Raises LockerError."""
        if not self._vault.due:
            return False
        try:
            await asyncio.to_thread(self._vault.renew)
        except OSError as error:
            raise LockerError(f"cannot keep another data key: {error.strerror}") from error
        return True

    async def release(self) -> None:
        """This node is no manager any more: its key is in its file, and nothing else stays. Raises LockerError."""
        try:
            if self._papers.exist and not self._vault.locked:
                await self._papers.show_key(self._papers.credentials().key)
            await asyncio.to_thread(self._vault.remove)
            self._open.set()
        except OSError as error:
            raise LockerError(f"cannot take the lock off the key of this node: {error.strerror}") from error
