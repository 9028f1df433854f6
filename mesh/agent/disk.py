"""The node's copy of its assignments on disk, so that it serves its networks without any manager.

One file, written whole: to a temporary name, synced, renamed. A file that cannot be read is worth nothing more than
no file; it is reported and ignored, and the next message of a manager replaces it.
"""

from __future__ import annotations

import logging
from pathlib import Path

import msgspec

from control.assignment import RecordKind, decode, encode
from control.ca.disk import replace_file
from mesh.agent.view import Assignments

log = logging.getLogger(__name__)


class _Row(msgspec.Struct, array_like=True):
    kind: RecordKind
    value: bytes


def load(path: Path) -> Assignments:
    """The saved records, with sequence 0 (a new session starts over)."""
    try:
        rows = msgspec.msgpack.decode(path.read_bytes(), type=list[_Row])
        records = [decode(row.kind, row.value) for row in rows]
    except FileNotFoundError:
        return Assignments()
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError) as error:
        log.warning("ignoring the saved assignments", extra={"path": str(path), "error": str(error)})
        return Assignments()
    return Assignments().updated(0, 0, records, ())


def save(path: Path, assignments: Assignments) -> None:
    """Write the records. Raises OSError; what was there before is then still there."""
    rows = [_Row(kind, encode(record)) for (kind, _), record in assignments.records.items()]
    # They hold gossip's keys, and what tasks are started with: not for others, whatever the directory's mode.
    replace_file(path, msgspec.msgpack.encode(rows))
