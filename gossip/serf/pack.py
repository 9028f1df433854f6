"""Bytes of the Serf layer: msgpack in its old dialect, where text and bytes are both "raw" (no str8, no bin). Pure.

Peers' bytes are read with bounds: what claims to be longer than it is, nests too deep, or has keys that are no text is
a `BadMessage`. Names are UTF-8 with surrogateescape, so that any name survives a round trip.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgpack  # type: ignore[import-untyped]  # ships no types

# An array or map of more entries than this is nobody's: the largest is the status time of each member in a push/pull,
# and clusters end far below. It bounds what a nested array of false lengths can make us allocate.
ENTRIES_MAX = 1 << 16
U64_MAX = (1 << 64) - 1


class BadMessage(Exception):
    """Bytes from a peer that mean nothing; to be counted and dropped."""


def pack(value: object) -> bytes:
    """Encode; maps in the order given (Go sends fields by name, and so do we, for equal bytes)."""
    packed: bytes = msgpack.packb(value, use_bin_type=False, unicode_errors="surrogateescape")
    return packed


def unpack(data: bytes | memoryview) -> Any:
    """Decode exactly one value; text stays bytes. Raises BadMessage."""
    limit = min(len(data), ENTRIES_MAX)
    try:
        return msgpack.unpackb(data, raw=True, strict_map_key=True, max_array_len=limit, max_map_len=limit)
    except (ValueError, TypeError, OverflowError, RecursionError, msgpack.UnpackException) as error:
        raise BadMessage(str(error)) from error


def unpack_first(data: bytes) -> tuple[Any, bytes]:
    """Decode one value and return the bytes after it. Raises BadMessage."""
    limit = min(len(data), ENTRIES_MAX)
    unpacker = msgpack.Unpacker(
        raw=True, strict_map_key=True, max_buffer_size=len(data), max_array_len=limit, max_map_len=limit
    )
    try:
        unpacker.feed(data)
        value = unpacker.unpack()
    except (ValueError, TypeError, OverflowError, RecursionError, msgpack.UnpackException) as error:
        raise BadMessage(str(error)) from error
    return value, data[unpacker.tell() :]


class Fields:
    """Fields of a map from a peer, each checked when it is read; what is absent or nil is zero, as in Go."""

    __slots__ = ("_map",)

    def __init__(self, value: Any) -> None:
        if not isinstance(value, dict):
            raise BadMessage(f"{type(value).__name__} instead of a map")
        self._map: Mapping[bytes, Any] = value

    def number(self, name: bytes, limit: int = U64_MAX) -> int:
        """An integer from 0 to `limit`."""
        value = self._map.get(name)
        if value is None:
            return 0
        if type(value) is not int or not 0 <= value <= limit:
            raise BadMessage(f"{name!r} is {value!r}"[:100])
        return value

    def data(self, name: bytes) -> bytes:
        """Bytes."""
        return as_bytes(self._map.get(name))

    def text(self, name: bytes) -> str:
        """A text."""
        return as_text(self._map.get(name))

    def flag(self, name: bytes) -> bool:
        """A truth value."""
        value = self._map.get(name)
        if value is not None and type(value) is not bool:
            raise BadMessage(f"{name!r} is no truth value")
        return bool(value)

    def real(self, name: bytes) -> float:
        """A number; it may be NaN."""
        value = self._map.get(name)
        if value is not None and type(value) not in (int, float):
            raise BadMessage(f"{name!r} is no number")
        return float(value or 0)

    def items(self, name: bytes) -> Sequence[Any]:
        """A list; its items are not checked."""
        value = self._map.get(name)
        if value is not None and not isinstance(value, list):
            raise BadMessage(f"{name!r} is no list")
        return value or []

    def table(self, name: bytes) -> Mapping[bytes, Any]:
        """A map; its values are not checked."""
        value = self._map.get(name)
        if value is not None and not isinstance(value, dict):
            raise BadMessage(f"{name!r} is no map")
        return value or {}


def as_bytes(value: Any) -> bytes:
    """A field that must be bytes. Raises BadMessage."""
    if value is None:
        return b""
    if not isinstance(value, bytes):
        raise BadMessage(f"{type(value).__name__} instead of bytes")
    return value


def as_text(value: Any) -> str:
    """A field that must be text. Raises BadMessage."""
    return as_bytes(value).decode("utf-8", "surrogateescape")
