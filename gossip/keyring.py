"""AES-GCM of packets and streams with a ring of keys: the first one encrypts, all are tried to decrypt. No I/O.

On the wire (memberlist's security.go): version, nonce of 12, ciphertext, tag of 16. Version 1 is sent; version 0, which
pads to 16 bytes before it encrypts, is read too. There is no protection against replays and no identity of a node:
whoever has a key is trusted with everything that gossip decides (design/gossip.md says what that is).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

KEY_LENGTHS = (16, 24, 32)
NONCE_LEN = 12
TAG_LEN = 16
OVERHEAD = 1 + NONCE_LEN + TAG_LEN  # of version 1
VERSION_PADDED, VERSION = 0, 1
_BLOCK = 16
# Keys on a ring. Each is tried on each packet that no other key opens, so their number is what junk costs; rotation
# needs two, and the answer to list-keys takes about 40.
KEYS_MAX = 40
# Managers tell a change to all nodes within a heartbeat or two, which are 5 s unless they were set higher.
HANDOVER_STEP_S = 15.0


class KeyRingError(ValueError):
    """A change of the key ring that cannot be made; the text is for people."""


class DecryptError(ValueError):
    """No key opens these bytes."""


class KeyRing:
    """Keys, primary first. An empty ring means that nothing is encrypted."""

    __slots__ = ("_ciphers", "_nonce")

    def __init__(self, keys: Sequence[bytes], nonce: Callable[[int], bytes]) -> None:
        """`nonce(n)`: n unpredictable bytes, never the same twice. Raises KeyRingError."""
        self._ciphers: dict[bytes, AESGCM] = {}
        self._nonce = nonce
        for key in keys:
            self.install(key)

    def __bool__(self) -> bool:
        return bool(self._ciphers)

    @property
    def keys(self) -> tuple[bytes, ...]:
        return tuple(self._ciphers)

    @property
    def primary(self) -> bytes | None:
        return next(iter(self._ciphers), None)

    def install(self, key: bytes) -> None:
        """Add a key, to decrypt with; the first of a ring is its primary key. One that is there is no error."""
        if len(key) not in KEY_LENGTHS:
            raise KeyRingError(f"a key has 16, 24 or 32 bytes, not {len(key)}")
        if key in self._ciphers:
            return
        if len(self._ciphers) >= KEYS_MAX:
            raise KeyRingError(f"the key ring is full: it has {KEYS_MAX} keys, remove one first")
        self._ciphers[key] = AESGCM(key)

    def use(self, key: bytes) -> None:
        """Encrypt with this key from now on."""
        if key not in self._ciphers:
            raise KeyRingError("the key to use is not in the key ring")
        self._ciphers = {key: self._ciphers.pop(key), **self._ciphers}

    def remove(self, key: bytes) -> None:
        """Forget a key; not the primary one. One that is not there is no error."""
        if key == self.primary:
            raise KeyRingError("the primary key cannot be removed: use another one first")
        self._ciphers.pop(key, None)

    def seal(self, plain: bytes, associated: bytes) -> bytes:
        """Encrypted with the primary key."""
        nonce = self._nonce(NONCE_LEN)
        cipher = next(iter(self._ciphers.values()))
        return b"".join((b"\x01", nonce, cipher.encrypt(nonce, plain, associated)))

    def open(self, data: bytes, associated: bytes) -> bytes:
        """Decrypted with whichever key fits. Raises DecryptError."""
        if len(data) < OVERHEAD:
            raise DecryptError("too short to be encrypted")
        if data[0] not in (VERSION_PADDED, VERSION):
            raise DecryptError("unknown version of encryption")
        nonce, sealed = data[1 : 1 + NONCE_LEN], data[1 + NONCE_LEN :]
        for cipher in tuple(self._ciphers.values()):  # long messages are opened in a thread
            try:
                plain = cipher.decrypt(nonce, sealed, associated)
            except InvalidTag:
                continue
            return plain if data[0] == VERSION else _unpad(plain)
        raise DecryptError("no key opens it")


def handover(before: Sequence[bytes], wanted: Sequence[bytes], age_s: float) -> tuple[tuple[bytes, ...], float | None]:
    """The ring `age_s` after it was heard that `wanted` is to follow `before`, and the age at which the next step is.

    All nodes hear of it within a step, each at another moment: first all learn to read with the new keys, then all
    write with the new primary one, then the old ones are forgotten. So nothing that was written is unreadable.
    """
    if age_s < HANDOVER_STEP_S:
        return tuple(dict.fromkeys((*before, *wanted))), HANDOVER_STEP_S
    if age_s < 2 * HANDOVER_STEP_S:
        return tuple(dict.fromkeys((*wanted, *before))), 2 * HANDOVER_STEP_S
    return tuple(wanted), None


def _unpad(plain: bytes) -> bytes:
    """Without the padding of PKCS 7."""
    count = plain[-1] if plain else 0
    if not 1 <= count <= _BLOCK or len(plain) % _BLOCK or plain[-count:] != bytes((count,)) * count:
        raise DecryptError("bad padding")
    return plain[:-count]
