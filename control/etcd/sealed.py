"""Blobs are encrypted before etcd gets them: it keeps everything readable on its disks, and in its backups.

Each value names its key. What is authenticated with it is which row of which cluster it is, and in which version, so
that nobody who can write to etcd can put one row, or an older one, in the place of another.
"""

from __future__ import annotations

from control.store.errors import BackendFailed
from control.store.sealing import PLAIN_KEY_ID, KeyRing, SealBroken, sealer_of


class BlobSeal:
    """The keys, for one cluster. A core."""

    def __init__(self, ring: KeyRing, cluster_id: str) -> None:
        self._ring, self._cluster_id = ring, cluster_id

    def seal(self, kind: str, id_: str, version: int, blob: bytes) -> tuple[str, bytes]:
        """Id of the key, and the blob sealed."""
        sealer = self._ring.current()
        return sealer.key_id, sealer.seal(blob, self._context(kind, id_, version))

    def unseal(self, kind: str, id_: str, version: int, key_id: str, data: bytes) -> bytes:
        """Inverse. Raises BackendFailed."""
        name = f"the {kind} {id_} in etcd"
        if key_id == PLAIN_KEY_ID and self._ring.find(PLAIN_KEY_ID) is None:
            raise BackendFailed(f"{name} is not encrypted, while this cluster's store is: restore a backup")
        try:
            return sealer_of(self._ring, key_id, name).unseal(data, self._context(kind, id_, version))
        except SealBroken as error:
            raise BackendFailed(f"{name} was changed by something that is not meshd: restore a backup") from error

    def _context(self, kind: str, id_: str, version: int) -> bytes:
        return f"{self._cluster_id}/{kind}/{id_}/{version}".encode()
