"""Objects ⇄ rows: the one place that knows both the model and the opaque rows that backends keep.

A row's blob is the object in MessagePack, its `meta` included. Fields that a newer version added are skipped when an
older one reads them, and missing ones take their defaults (the law at the top of `control.model`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import msgspec

from control.model import KIND_OF, KINDS, Object
from control.store.errors import BackendFailed, Unreadable
from control.store.record import Row, RowChange
from control.store.tables import Event
from control.store.txn import Change, Put, name_of
from control.store.wal import UNREADABLE

# Limits of one commit, SwarmKit's numbers: one log entry must stay small enough to be sent, synced and applied well
# under a heartbeat, and etcd, the other backend, takes no more than 1.5 MiB in one request.
MAX_CHANGES = 200
MAX_BYTES = 1_536 * 1024
META_BYTES = 64  # what stamping may add to an object: three integers and their names

_encoder = msgspec.msgpack.Encoder()
_decoders: dict[str, msgspec.msgpack.Decoder[Any]] = {k: msgspec.msgpack.Decoder(cls) for k, cls in KINDS.items()}


def encode(obj: Object) -> bytes:
    """The object as a blob."""
    return _encoder.encode(obj)


def decode(kind: str, blob: bytes) -> Object:
    """Inverse of `encode`. Raises BackendFailed: a store that cannot read its own rows must not go on."""
    decoder = _decoders.get(kind)
    if decoder is None:
        raise BackendFailed(f'the store holds a "{kind}", which this version of meshd does not know: install a newer')
    try:
        obj: Object = decoder.decode(blob)
    except UNREADABLE as error:
        raise BackendFailed(f"the store holds a {kind} that this version of meshd cannot read: {error}") from error
    return obj


def row_of(obj: Object) -> Row:
    """The row of an object that has been written."""
    return Row(KIND_OF[type(obj)], obj.id, obj.meta.version, encode(obj))


def change_of(event: Event) -> RowChange:
    """An event, stamped, as the backend takes it. Raises Unreadable."""
    before, after = event.before, event.after
    expected = before.meta.version if before is not None else 0
    if after is None:
        return RowChange(KIND_OF[type(event.object)], event.object.id, expected, None)
    kind = KIND_OF[type(after)]
    blob = _encoder.encode(after)
    try:
        # Constructors check no types. What was written and cannot be read would stop every manager for good, so a
        # microsecond is spent here to see that it can.
        _decoders[kind].decode(blob)
    except UNREADABLE as error:
        raise Unreadable(f"{name_of(after)} cannot be stored: {error}") from error
    return RowChange(kind, after.id, expected, blob)


def split(changes: Iterable[Change]) -> Iterator[list[Change]]:
    """The changes in order, in parts that each fit into one commit. A single one that does not fit is left to it."""
    part: list[Change] = []
    size = 0
    for change in changes:
        more = len(encode(change.obj)) + META_BYTES if isinstance(change, Put) else 0
        if part and (len(part) == MAX_CHANGES or size + more > MAX_BYTES):
            yield part
            part, size = [], 0
        part.append(change)
        size += more
    if part:
        yield part
