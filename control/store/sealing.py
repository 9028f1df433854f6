"""How the journal's files are encrypted: an interface, and the one that does nothing.

A file names its key in its first frame, and every other frame of it is sealed with that key; a new file takes the
ring's current one. So a key is rotated by making it current, beginning a new segment (`Journal.rotate`) and taking a
snapshot; `Journal.keys_in_use` says when the last file under the old key is gone and the ring may forget it.

`context` is authenticated, not stored: which file of which cluster, and which frame of it, so that no piece can be put
in another's place. Lengths, terms of files and numbers of frames stay readable: they are needed to find a torn end.
"""

from __future__ import annotations

from typing import Protocol

from control.store.errors import BackendFailed

PLAIN_KEY_ID = ""


class SealBroken(Exception):
    """It was not sealed with this key, or not in this place, or has been changed since."""


class Sealer(Protocol):
    """One key. Called from the journal's threads: no shared state."""

    @property
    def key_id(self) -> str:
        """How files name it; not secret."""

    def seal(self, data: bytes, context: bytes) -> bytes:
        """Encrypt."""

    def unseal(self, data: bytes, context: bytes) -> bytes:
        """Inverse. Raises SealBroken."""


class KeyRing(Protocol):
    """The keys a manager has."""

    def current(self) -> Sealer:
        """For new files."""

    def find(self, key_id: str) -> Sealer | None:
        """For files that exist."""


class PlainSealer:
    """Leaves everything as it is."""

    @property
    def key_id(self) -> str:
        return PLAIN_KEY_ID

    def seal(self, data: bytes, context: bytes) -> bytes:
        return data

    def unseal(self, data: bytes, context: bytes) -> bytes:
        return data


class PlainRing:
    """No encryption: nothing is sealed, and nothing sealed can be read."""

    def current(self) -> Sealer:
        return PlainSealer()

    def find(self, key_id: str) -> Sealer | None:
        return PlainSealer() if key_id == PLAIN_KEY_ID else None


def sealer_of(ring: KeyRing, key_id: str, path: str) -> Sealer:
    """The key of a file. Raises BackendFailed."""
    sealer = ring.find(key_id)
    if sealer is None:
        raise BackendFailed(
            f'{path} is encrypted with key "{key_id}", which this manager does not have: restore its vault.json, '
            "or remove this manager and join it anew"
        )
    return sealer
