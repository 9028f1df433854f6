"""What backends keep: opaque rows, and changes of them. Only `rows` knows what is in a blob."""

from __future__ import annotations

import msgspec


class Row(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One object as the backend keeps it."""

    kind: str
    id: str
    version: int  # of the commit that wrote it
    blob: bytes


class RowChange(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One write. `expected` is the row's version before it; 0: there is none."""

    kind: str
    id: str
    expected: int
    blob: bytes | None  # None: delete
