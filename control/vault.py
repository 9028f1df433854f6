"""The keys that a manager has on its disk: `<state_dir>/vault.json`, mode 0600, written whole. Everything here blocks.

    data keys   what its log and its snapshots are encrypted with (control.store.sealing): of this manager alone, the
                current one first, then those that older files still need
    node key    the private key of its certificate; only while the cluster has autolock, instead of tls/key.pem

Without autolock they lie there as they are, and the file's mode is what protects them: that keeps the state off other
disks (backups of a machine, a drive that is sent away without this file), no more. With it the whole is locked by the
cluster's unlock key, which is on no disk in the clear: the store has it, encrypted by the data keys in here.

Whenever the unlock key becomes another, so does the data key: whoever has had the old one has perhaps had this file.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import msgspec

from control.ca.disk import CredentialsError, check_mode, replace_file
from control.lock import LockError, lock, parse_unlock_key, unlock
from control.store.aesgcm import KEY_BYTES, AesGcmSealer, Keys
from control.store.sealing import Sealer

NAME = "vault.json"
FORMAT = 1
# Random nonces are good for 2^32 messages under a key (NIST SP 800-38D): at 1,000 a second seven weeks.
DATA_KEY_LIFE_S = 28 * 86400.0
# Older data keys that are kept. They go as the log moves on; somebody who changes the unlock key more often than the
# log moves gets the file locked anew, without another data key.
DATA_KEYS_MAX = 16
FILE_MAX_BYTES = 64 * 1024
_ID_BYTES = 6


class VaultError(Exception):
    """The file cannot be used. One sentence."""


class DataKey(msgspec.Struct, frozen=True):
    """One of them. `made_s` is when, in seconds since 1970."""

    id: str
    key: bytes
    made_s: float


class Contents(msgspec.Struct, frozen=True):
    """What is kept. `plain`: files from before there were keys may still be there."""

    data_keys: tuple[DataKey, ...] = ()
    plain: bool = False
    node_key: bytes = b""  # PEM


class File(msgspec.Struct, frozen=True):
    """As it is on the disk: `contents`, or, `version` being the number of the unlock key, `locked`. 0 is no lock."""

    format: int
    version: int = 0
    contents: Contents | None = None
    locked: bytes = b""


class Vault:
    """See the module. As a KeyRing it may be used by the journal's threads while it is changed."""

    def __init__(self, path: Path, wall_s: Callable[[], float], random_bytes: Callable[[int], bytes] = os.urandom):
        """Reads the file, if there is one. Raises VaultError; others must not have been able to read it."""
        self._path, self._wall_s, self._random_bytes = path, wall_s, random_bytes
        self._file = _load(path)
        self._contents = self._file.contents if self._file is not None else Contents()
        self._key = b""  # that it is locked with
        self._keys: Keys | None = None
        self._make_ring()

    # --- locked or not ----------------------------------------------------------------------------------------------

    @property
    def locked(self) -> bool:
        """Whether nothing can be had without the unlock key."""
        return self._contents is None

    @property
    def version(self) -> int:
        """The number of the unlock key that the file is locked with; 0: none."""
        return self._file.version if self._file is not None else 0

    @property
    def node_key(self) -> bytes:
        """The key of the certificate, PEM; b"" if it is not here. Not while it is locked."""
        return self._open().node_key

    def unlock(self, text: str) -> None:
        """Have the keys, for as long as this process lives. Raises VaultError."""
        if self._file is None or not self.locked:
            return
        try:
            key = parse_unlock_key(text)
        except LockError as error:
            raise VaultError(str(error)) from error
        try:
            data = unlock(key, self._file.locked, _context(self._file.version))
        except LockError as error:
            raise VaultError(
                f"that is not the unlock key of this manager: it is locked with number {self._file.version}; a manager "
                "that was away while the key was changed keeps the one before"
            ) from error
        self._key, self._contents = key, msgspec.msgpack.decode(data, type=Contents)
        self._make_ring()

    def relock(self, version: int, text: str, node_key: bytes) -> bool:
        """Lock it with an unlock key, or, with version 0, with none; whether there is another data key now.

        `node_key` goes into a locked file, and is not in one that is not. Raises VaultError, OSError.
        """
        contents = self._open()
        try:
            key = parse_unlock_key(text) if version else b""
        except LockError as error:
            raise VaultError(str(error)) from error
        renew = bool(version) and 0 < len(contents.data_keys) < DATA_KEYS_MAX
        keys = (self._new_key(), *contents.data_keys) if renew else contents.data_keys
        self._key = key
        self._save(Contents(keys, contents.plain, node_key if version else b""), version)
        return renew

    # --- data keys --------------------------------------------------------------------------------------------------

    def prepare(self, *, plain: bool) -> None:
        """Have a data key; `plain`: there are files from before. Raises OSError."""
        contents = self._open()
        if not contents.data_keys:
            self._save(msgspec.structs.replace(contents, data_keys=(self._new_key(),), plain=plain), self.version)

    def current(self) -> Sealer:
        """See KeyRing."""
        assert self._keys is not None, "prepared, and not locked"
        return self._keys.current()

    def find(self, key_id: str) -> Sealer | None:
        """See KeyRing."""
        return self._keys.find(key_id) if self._keys is not None else None

    @property
    def due(self) -> bool:
        """Whether the data key has served for long enough."""
        keys = self._open().data_keys
        return 0 < len(keys) < DATA_KEYS_MAX and not 0 <= self._wall_s() - keys[0].made_s < DATA_KEY_LIFE_S

    def renew(self) -> None:
        """Another data key for new files. Raises OSError."""
        contents = self._open()
        keys = (self._new_key(), *contents.data_keys)
        self._save(msgspec.structs.replace(contents, data_keys=keys), self.version)

    def keep_only(self, in_use: set[str]) -> None:
        """Forget data keys that no file needs. Raises OSError."""
        contents = self._open()
        current, *old = contents.data_keys
        kept = Contents(
            (current, *(key for key in old if key.id in in_use)), contents.plain and "" in in_use, contents.node_key
        )
        if kept != contents:
            self._save(kept, self.version)

    def remove(self) -> None:
        """This node is no manager any more."""
        self._path.unlink(missing_ok=True)
        self._file, self._contents, self._key, self._keys = None, Contents(), b"", None

    # --- inside -----------------------------------------------------------------------------------------------------

    def _open(self) -> Contents:
        assert self._contents is not None, "it is not locked"
        return self._contents

    def _new_key(self) -> DataKey:
        return DataKey(self._random_bytes(_ID_BYTES).hex(), self._random_bytes(KEY_BYTES), self._wall_s())

    def _save(self, contents: Contents, version: int) -> None:
        if version:
            assert self._key
            data = msgspec.msgpack.encode(contents)
            file = File(FORMAT, version, None, lock(self._key, data, _context(version), self._random_bytes))
        else:
            file = File(FORMAT, 0, contents)
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        replace_file(self._path, msgspec.json.format(msgspec.json.encode(file)))
        self._file, self._contents = file, contents
        self._make_ring()

    def _make_ring(self) -> None:
        contents = self._contents
        if contents is not None and contents.data_keys:
            sealers = [AesGcmSealer(key.id, key.key, self._random_bytes) for key in contents.data_keys]
            self._keys = Keys(sealers, plain=contents.plain)


def _load(path: Path) -> File | None:
    try:
        check_mode(path)
        with path.open("rb") as stream:
            file = msgspec.json.decode(stream.read(FILE_MAX_BYTES + 1), type=File)
    except FileNotFoundError:
        return None
    except CredentialsError as error:
        raise VaultError(str(error)) from error
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise VaultError(f"cannot read the keys of this manager in {path}: {error}; restore the file") from error
    if file.format != FORMAT or bool(file.version) != (file.contents is None):
        raise VaultError(f"the keys of this manager in {path} were written by another meshd, or are damaged")
    return file


def _context(version: int) -> str:
    return f"meshd vault {FORMAT} {version}"
