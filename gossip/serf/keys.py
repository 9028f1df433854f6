"""Questions about keys: a node asks all, each changes its own ring and answers, the asker counts. Pure.

`install` makes a key known, `use` makes it the one that encrypts, `remove` forgets it, `list` tells. Names and texts
are Serf's (internal_query.go, keymanager.go), since its command shows them.
"""

from __future__ import annotations

import base64
import binascii
import enum
from collections import Counter
from dataclasses import dataclass, field

import msgspec

from gossip.keyring import KeyRing, KeyRingError
from gossip.serf.messages import KeyRequest, KeyResponse, QueryResponse, Type, decode, encode
from gossip.serf.pack import BadMessage

PREFIX = "_serf_"
# Distinct keys and messages kept of all answers: a ring has a few; more is somebody's nonsense.
KEYS_MAX = 256
NOT_ENCRYPTED = "No keyring to modify (encryption not enabled)"
EMPTY = "Keyring is empty (encryption not enabled)"


class KeyCommand(enum.Enum):
    """The value completes PREFIX to the name of the query."""

    INSTALL = "install-key"
    USE = "use-key"
    REMOVE = "remove-key"
    LIST = "list-keys"

    @property
    def query(self) -> str:
        return PREFIX + self.value


class KeyTextError(ValueError):
    """What a user typed is no key."""


def parse_key(text: str) -> bytes:
    """The bytes of a key in base64. Raises KeyTextError."""
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise KeyTextError(f"illegal base64 data in key: {error}") from error


def show_key(key: bytes) -> str:
    """A key as users see it."""
    return base64.b64encode(key).decode()


class KeyResult(msgspec.Struct, frozen=True):
    """What all nodes answered; `error` is empty when all did as asked."""

    messages: dict[str, str]
    keys: dict[str, int]
    primary_keys: dict[str, int]
    nodes: int
    responses: int
    errors: int

    @property
    def error(self) -> str:
        if self.errors:
            return f"{self.errors}/{self.nodes} nodes reported failure"
        if self.responses < self.nodes:
            return f"{self.responses}/{self.nodes} nodes reported success"
        return ""


@dataclass
class KeyCount:
    """Answers so far."""

    nodes: int
    messages: dict[str, str] = field(default_factory=dict)
    keys: Counter[str] = field(default_factory=Counter)
    primary_keys: Counter[str] = field(default_factory=Counter)
    responses: int = 0
    errors: int = 0

    def add(self, node: str, payload: bytes) -> bool:
        """Count an answer; whether all have answered."""
        self.responses += 1
        try:
            answer = decode(payload)
        except BadMessage as error:
            answer = KeyResponse(False, f"Failed to decode key query response: {error}")
        if not isinstance(answer, KeyResponse):
            answer = KeyResponse(False, "Invalid key query response type")
        self.errors += not answer.ok
        if not answer.ok or answer.message:
            self.messages[node] = answer.message
        for key in answer.keys:
            if key in self.keys or len(self.keys) < KEYS_MAX:
                self.keys[key] += 1
        if answer.primary and (answer.primary in self.primary_keys or len(self.primary_keys) < KEYS_MAX):
            self.primary_keys[answer.primary] += 1
        return self.responses >= self.nodes

    def result(self) -> KeyResult:
        """What is known now."""
        return KeyResult(
            dict(self.messages), dict(self.keys), dict(self.primary_keys), self.nodes, self.responses, self.errors
        )


def answer_key_query(name: str, payload: bytes, ring: KeyRing) -> tuple[KeyResponse, bool]:
    """Do what a key query asks of this node: (the answer, whether the ring has changed)."""
    if name == KeyCommand.LIST.query:
        if not ring:
            return KeyResponse(False, EMPTY), False
        return KeyResponse(True, "", tuple(show_key(key) for key in ring.keys), show_key(ring.keys[0])), False
    try:
        request = decode(payload)
        if not isinstance(request, KeyRequest):
            return KeyResponse(False, "Invalid key request"), False
    except BadMessage:
        return KeyResponse(False, "Invalid key request"), False
    if not ring:
        return KeyResponse(False, NOT_ENCRYPTED), False
    try:
        match KeyCommand(name.removeprefix(PREFIX)):
            case KeyCommand.INSTALL:
                ring.install(request.key)
            case KeyCommand.USE:
                ring.use(request.key)
            case KeyCommand.REMOVE:
                ring.remove(request.key)
            case KeyCommand.LIST:
                pass
    except KeyRingError as error:
        return KeyResponse(False, str(error)), False
    return KeyResponse(True), True


def fitting_response(response: QueryResponse, answer: KeyResponse, limit: int) -> bytes:
    """The bytes of `response` with as much of a list of keys as fits `limit` bytes, and a notice if that is not all."""
    total = len(answer.keys)
    for shown in range(total, -1, -1):
        if shown < total:
            notice = f"truncated key list response, showing first {shown} of {total} keys"
            answer = msgspec.structs.replace(answer, keys=answer.keys[:shown], message=notice)
        raw = encode(msgspec.structs.replace(response, payload=encode(answer)))
        if len(raw) <= limit:
            return raw
    raise AssertionError(f"{Type.KEY_RESPONSE.name} does not fit {limit} bytes")
