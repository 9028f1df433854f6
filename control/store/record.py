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


# --- the log under the rows: what an agreement keeps ----------------------------------------------------------------


class Entry(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One place of the replicated log. `kind` and `data` are opaque to the journal."""

    index: int
    term: int
    kind: int
    data: bytes


class HardState(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What a member must never forget: the term it is in, whom it voted for in it, what it knows to be committed."""

    term: int = 0
    vote: str = ""  # "" nobody
    commit: int = 0


class SnapshotMeta(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Which state a snapshot holds: that after entry `index` of `term`. `data` is opaque (members and the like)."""

    index: int
    term: int
    data: bytes = b""
