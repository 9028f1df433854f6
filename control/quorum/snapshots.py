"""Snapshots of a manager: its own, when its log has grown, those it sends, and those it gets.

Threads pack and unpack, and the journal's writes; the core hears of each when that is done.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

from control.quorum.pipeline import Pipeline
from control.quorum.shipment import KEY_BYTES, Parcel, Shipment, Wire, is_key, unpack
from control.raft.configuration import Configuration, encode, node_of
from control.raft.core import Core
from control.raft.messages import InstallSnapshot, entries_bytes
from control.store.errors import Damaged, Refused, StoreError
from control.store.journal import Journal
from control.store.record import Entry, SnapshotMeta
from control.store.state import Ledger
from control.transport.service import Transport

log = logging.getLogger(__name__)

# Entries of more than this, and of more than the snapshot before them, are compacted: replaying 16 MiB takes a second,
# and with the second limit no more than twice the state is ever written.
LOG_LIMIT_BYTES = 16 * 1024 * 1024
# Of the entries that a snapshot holds, so many stay for members that are a little behind: a restart's worth.
KEEP_ENTRIES, KEEP_BYTES = 10_000, 8 * 1024 * 1024

NO_CONFIGURATION = encode(Configuration())


def for_core(meta: SnapshotMeta) -> SnapshotMeta:
    """As the core knows it: what is restored from a backup has no configuration."""
    return meta if meta.data else SnapshotMeta(meta.index, meta.term, NO_CONFIGURATION)


def on_disk(meta: SnapshotMeta) -> SnapshotMeta:
    """Inverse."""
    return meta if meta.data != NO_CONFIGURATION else SnapshotMeta(meta.index, meta.term)


class Snapshots:
    """See the module. `inside` goes around calls of the core."""

    def __init__(
        self, core: Core, journal: Journal, pipeline: Pipeline, log_limit_bytes: int, keep_entries: int
    ) -> None:
        self._core, self._journal, self._pipeline = core, journal, pipeline
        self._log_limit_bytes, self._keep_entries = log_limit_bytes, keep_entries
        self._log_bytes = 0  # of the entries behind the newest snapshot
        self._bytes = 0  # of that
        self._compact_at_bytes = log_limit_bytes
        self._saving = False
        self._packing: set[str] = set()  # members
        self._stopped = False
        self.transport: Transport[Wire] | None = None
        self.message = ""

    def stop(self) -> None:
        """Nothing is done with what threads end from now on."""
        self._stopped = True

    # --- own ----------------------------------------------------------------------------------------------------------

    def loaded(self, size_bytes: int) -> None:
        """The one that the state was made of."""
        self._bytes = size_bytes
        self._compact_at_bytes = max(self._log_limit_bytes, size_bytes)

    def applied(self, entries: Sequence[Entry]) -> None:
        """They are in the state now; `entries` are all that the core has given out."""
        self._log_bytes += entries_bytes(tuple(entries))
        if self._log_bytes > self._compact_at_bytes:
            self.save()

    def replaced(self) -> None:
        """The log begins anew."""
        self._log_bytes = 0

    def save(self) -> None:
        """Make one of the state as it is, unless one is being made or there is nothing new."""
        meta, newest = self._core.snapshot_meta(), self._journal.snapshot
        if self._saving or self._stopped or (newest is not None and newest.index >= meta.index):
            return
        self._saving = True
        log_bytes, state, size = self._log_bytes, self._pipeline.ledger.freeze(), 0

        def measured() -> Iterator[bytes]:
            nonlocal size
            for chunk in state.chunks():
                size += len(chunk)
                yield chunk

        def saved(done: asyncio.Future[None]) -> None:
            self._saving = False
            error = done.exception()
            if self._stopped:
                return
            if isinstance(error, Refused):  # the log just goes on, until it has grown some more
                self.message = "the log is not compacted: no space left on the disk of the state directory"
                self._compact_at_bytes = self._log_bytes + self._log_limit_bytes // 4
            elif error is None:
                self.message = ""
                self.loaded(size)
                self._log_bytes = max(self._log_bytes - log_bytes, 0)
                self._core.snapshot_saved(meta)
                self._compact(meta.index)

        self._journal.save_snapshot(meta, measured()).add_done_callback(saved)

    def _compact(self, index: int) -> None:
        """Forget what is in the snapshot, but the last of it."""
        first = max(self._journal.first_index, index - self._keep_entries + 1)
        size = 0
        if first <= index:
            for entry in reversed(self._journal.entries(first, index + 1)):
                size += len(entry.data)
                if size > KEEP_BYTES:
                    break
                index = entry.index - 1
        if index >= self._core.first_index:
            self._core.compact(index)
            self._journal.compact(index)

    # --- sent ---------------------------------------------------------------------------------------------------------

    def send(self, message: InstallSnapshot) -> None:
        """Pack it, in a thread, and send it."""
        member = message.receiver
        if member in self._packing or self._stopped or self.transport is None:
            return
        self._packing.add(member)
        key, meta = os.urandom(KEY_BYTES), on_disk(message.snapshot)
        chunks = partial(self._journal.snapshot_chunks, meta)
        shipment = Shipment(message.sender, message.receiver, message.term, message.snapshot, key)

        def packed(done: asyncio.Future[Parcel]) -> None:
            self._packing.discard(member)
            if self._stopped or self.transport is None:
                return
            error = done.exception()
            if error is not None and not isinstance(error, Damaged):
                raise error
            if error is not None or not self.transport.send_snapshot(node_of(member), shipment, done.result()):
                log.warning(
                    "a snapshot cannot be sent", extra={"member": member, "error": str(error or "no such peer")}
                )
                self._core.report_snapshot(member, ok=False)

        asyncio.get_running_loop().run_in_executor(None, Parcel.of, chunks, key).add_done_callback(packed)

    # --- received -----------------------------------------------------------------------------------------------------

    def receive(self, message: Wire, path: Path, then: Callable[[InstallSnapshot, Ledger], None]) -> None:
        """A file has come whole: unpack it in a thread, and remove it."""
        if not isinstance(message, Shipment) or not is_key(message.key):
            path.unlink(missing_ok=True)
            return

        def unpacked(done: asyncio.Future[Ledger]) -> None:
            error = done.exception()
            if error is None:
                then(message.install(), done.result())
            elif isinstance(error, StoreError):
                log.warning("a snapshot cannot be used", extra={"sender": message.sender, "error": str(error)})
            else:
                raise error

        asyncio.get_running_loop().run_in_executor(None, _take, path, message).add_done_callback(unpacked)


def _take(path: Path, shipment: Shipment) -> Ledger:
    try:
        return unpack(path, shipment)
    finally:
        path.unlink(missing_ok=True)
