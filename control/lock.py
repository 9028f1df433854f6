"""The unlock key of a cluster, and what it locks: the small blob of keys that a manager has on its disk. Pure.

    MSHKEY-1-<43 characters>      32 random bytes, base64 without padding; as SwarmKit's SWMKEY-1-…

What is locked is AES-256-GCM under that key, bound to the cluster and to the number of the key (they are counted from
1; 0 is a manager that is not locked). A backup has a key of its own, derived from the unlock key (HKDF, RFC 5869) and
a salt that is its name, so that the same bytes are never a key for two things.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from control.store.aesgcm import AesGcmSealer

PREFIX = "MSHKEY-1-"
KEY_BYTES = 32
NONCE_BYTES = 12
# What is read of somebody who types a key: it has 52 characters, and perhaps a line's end.
UNLOCK_KEY_MAX = 256
SALT_BYTES = 16
_BACKUP = "backup"


class LockError(Exception):
    """A key is none, or not the right one. One sentence."""


def make_unlock_key(random_bytes: bytes) -> str:
    """The key as users see it, of KEY_BYTES random ones."""
    assert len(random_bytes) == KEY_BYTES
    return PREFIX + base64.b64encode(random_bytes).decode().rstrip("=")


def parse_unlock_key(text: str) -> bytes:
    """Inverse, with white space around it. Raises LockError, which does not repeat it."""
    text = text.strip()
    if not text:
        raise LockError('there must be an unlock key: "mesh unlock-key" prints it on a manager that is not locked')
    if not text.startswith(PREFIX):
        raise LockError(f"that is no unlock key: it must begin with {PREFIX}")
    try:
        key = base64.b64decode(text.removeprefix(PREFIX) + "=", validate=True)
    except (binascii.Error, ValueError) as error:
        raise LockError("the unlock key is damaged: copy all of it") from error
    if len(key) != KEY_BYTES or make_unlock_key(key) != text:
        raise LockError("the unlock key is damaged: copy all of it")
    return key


def lock(key: bytes, data: bytes, context: str, random_bytes: Callable[[int], bytes]) -> bytes:
    """Encrypt; `context` says what it is and is not stored."""
    nonce = random_bytes(NONCE_BYTES)
    return nonce + AESGCM(key).encrypt(nonce, data, context.encode())


def unlock(key: bytes, data: bytes, context: str) -> bytes:
    """Inverse. Raises LockError if that is another key, or the data was changed."""
    try:
        return AESGCM(key).decrypt(data[:NONCE_BYTES], data[NONCE_BYTES:], context.encode())
    except (InvalidTag, ValueError) as error:
        raise LockError("that is not the unlock key") from error


# --- backups ----------------------------------------------------------------------------------------------------------


def backup_key_id(version: int, salt: bytes) -> str:
    """How a backup names its key: by the number of the unlock key, for people, and the salt."""
    assert len(salt) == SALT_BYTES
    return f"{_BACKUP}.{version}.{salt.hex()}"


def backup_sealer(unlock_key: str, key_id: str, random_bytes: Callable[[int], bytes]) -> AesGcmSealer:
    """The key of the backup that names it so. Raises LockError."""
    kind, _, rest = key_id.partition(".")
    salt = rest.rpartition(".")[2]
    if kind != _BACKUP or len(salt) != 2 * SALT_BYTES:
        raise LockError("that is no backup of a cluster with autolock")
    derived = HKDF(hashes.SHA256(), KEY_BYTES, salt.encode(), b"meshd backup").derive(parse_unlock_key(unlock_key))
    return AesGcmSealer(key_id, derived, random_bytes)


def backup_version(key_id: str) -> str:
    """The number of the unlock key that a backup needs, for people; "" if it is not locked."""
    kind, _, rest = key_id.partition(".")
    return rest.partition(".")[0] if kind == _BACKUP else ""
