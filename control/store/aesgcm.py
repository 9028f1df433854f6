"""AES-256-GCM behind `control.store.sealing`: a nonce of 12 random bytes, then what the cipher gives.

Random nonces are safe for 2^32 messages under one key (NIST SP 800-38D, 8.3): at 1,000 frames a second that is seven
weeks of uninterrupted full load, so keys rotate by time well before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from control.store.sealing import PLAIN_KEY_ID, PlainSealer, SealBroken, Sealer

KEY_BYTES = 32
NONCE_BYTES = 12


class AesGcmSealer:
    """One key. `random_bytes` is `os.urandom` but in tests."""

    def __init__(self, key_id: str, key: bytes, random_bytes: Callable[[int], bytes]) -> None:
        assert key_id != PLAIN_KEY_ID
        assert len(key) == KEY_BYTES
        self._key_id = key_id
        self._cipher = AESGCM(key)
        self._random_bytes = random_bytes

    @property
    def key_id(self) -> str:
        return self._key_id

    def seal(self, data: bytes, context: bytes) -> bytes:
        nonce = self._random_bytes(NONCE_BYTES)
        return nonce + self._cipher.encrypt(nonce, data, context)

    def unseal(self, data: bytes, context: bytes) -> bytes:
        try:
            return self._cipher.decrypt(data[:NONCE_BYTES], data[NONCE_BYTES:], context)
        except (InvalidTag, ValueError) as error:
            raise SealBroken from error


class Keys:
    """A ring of such keys. The first is the current one; files written before encryption can be read if `plain`."""

    def __init__(self, sealers: Iterable[AesGcmSealer], *, plain: bool = False) -> None:
        self._sealers: list[Sealer] = list(sealers)
        assert self._sealers
        self._readable: dict[str, Sealer] = {sealer.key_id: sealer for sealer in self._sealers}
        if plain:
            self._readable[PLAIN_KEY_ID] = PlainSealer()

    def current(self) -> Sealer:
        return self._sealers[0]

    def find(self, key_id: str) -> Sealer | None:
        return self._readable.get(key_id)
