"""Identifiers: 25 characters of base 36, as users of Docker know them; 125 bits of a given random source."""

from __future__ import annotations

import random

ID_LENGTH = 25
_ALPHABET = "0123456789abcdefghijklmnopqrstuvwxyz"


class IdSource:
    """Makes ids from a random source; call it for the next."""

    def __init__(self, random_source: random.Random) -> None:
        """`random_source`: random.SystemRandom in production, a seeded one in tests."""
        self._random = random_source

    def __call__(self) -> str:
        """A new id."""
        return "".join(self._random.choices(_ALPHABET, k=ID_LENGTH))
