"""Join tokens, node secrets and ids. Pure: all randomness is passed in as bytes.

A join token is `MTKN-1-<digest>-<secret>`. The digest lets a newcomer check that the cluster it talks to is the one it
was told to join, before it says anything: it is of the root certificate (control.ca.root). The secret says which role
the newcomer gets. Both are base 36, so that a double click selects the whole token. After SwarmKit's `SWMTKN-1-...`
(ca/certificates.go).
"""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass

PREFIX = "MTKN-1"
RANDOM_BYTES = 16  # of an id or a secret: 128 bits, which nobody guesses and no two draws share
_SECRET_LENGTH = 25  # base 36 digits of 16 bytes
_DIGEST_LENGTH = 50  # base 36 digits of a SHA-256
_DIGITS = "0123456789abcdefghijklmnopqrstuvwxyz"


class TokenError(Exception):
    """The text is not a join token; one sentence that says what to do."""


@dataclass(frozen=True, slots=True)
class JoinToken:
    """The two parts of a well-formed token."""

    digest: str
    secret: str

    def __str__(self) -> str:
        return f"{PREFIX}-{self.digest}-{self.secret}"


def base36(data: bytes, length: int) -> str:
    """`data` as a number in base 36, padded with zeros to `length` digits."""
    number, digits = int.from_bytes(data, "big"), []
    while number:
        number, digit = divmod(number, 36)
        digits.append(_DIGITS[digit])
    return "".join(reversed(digits)).rjust(length, "0")


def make_id(random_bytes: bytes) -> str:
    """An id of an object, or a secret, from 16 random bytes: 25 lower case letters and digits."""
    assert len(random_bytes) == RANDOM_BYTES, f"an id is made of {RANDOM_BYTES} bytes"
    return base36(random_bytes, _SECRET_LENGTH)


def make_token(digest: str, random_bytes: bytes) -> str:
    """A new join token of the cluster whose root has this digest, from 16 random bytes."""
    assert _is_base36(digest, _DIGEST_LENGTH), "a digest of a root"
    return str(JoinToken(digest, make_id(random_bytes)))


def with_digest(token: str, digest: str) -> str:
    """The same secret for another root."""
    return str(JoinToken(digest, parse_token(token).secret))


def parse_token(text: str) -> JoinToken:
    """The parts of a token. Raises TokenError."""
    parts = text.strip().split("-")
    if "-".join(parts[:2]) != PREFIX:
        raise TokenError(f'this is not a join token (they begin with "{PREFIX}-"): print one with "mesh join-token"')
    if len(parts) != 4 or not _is_base36(parts[2], _DIGEST_LENGTH) or not _is_base36(parts[3], _SECRET_LENGTH):
        raise TokenError('the join token is damaged or cut short: print it again with "mesh join-token"')
    return JoinToken(parts[2], parts[3])


def same(one: str, other: str) -> bool:
    """Whether two secrets are equal, in a time that does not tell how much of them is. An empty one never is."""
    return bool(one) and hmac.compare_digest(one.encode(), other.encode())


def secret_digest(secret: str) -> str:
    """What is stored of a node's secret: SHA-256, hexadecimal. It has 128 random bits, so needs no salt."""
    return hashlib.sha256(secret.encode()).hexdigest()


def _is_base36(text: str, length: int) -> bool:
    return len(text) == length and all(c in _DIGITS for c in text)
