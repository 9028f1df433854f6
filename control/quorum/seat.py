"""A manager's seat: the small file beside its journal that says which member it is, and how a seat is made. Offline.

    found      a new cluster: one voter
    enrol      a node that joins one: a member id that the leader gave away, an empty log
    recover    a new cluster of one out of what an old one has left here, in a new epoch: see below
    sit        at each start: what the seat is; a store that was restored from a backup becomes a cluster of one by the
               way

The member id is not in the log, since a member exists before its log does; without it a node that was removed, or lost
its disk, could vote as who it was. It is written last, so a directory with a seat is complete.

**Epochs.** Whoever recovers a cluster that has lost its quorum cannot know that the others are dead. So the new one has
another epoch, which every connection of managers begins with: the old ones are not heard, and do not hear. The number
has a random part, since two might be recovered out of the same one. Versions jump, too: what the old one may have
acknowledged above what is here is never numbered again.
"""

from __future__ import annotations

import asyncio
import os
import random
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from control.raft.configuration import (
    Configuration,
    Member,
    Reset,
    apply_change,
    decode_change,
    decode_configuration,
    encode,
    first_configuration,
    node_of,
)
from control.raft.ready import Kind, bootstrap
from control.store.backend import Proposal
from control.store.backup import Backup, restore
from control.store.disk import Disk, RealDisk, sync_directory
from control.store.errors import BackendFailed, Damaged, WrongCluster
from control.store.journal import Journal
from control.store.record import Entry, HardState, SnapshotMeta
from control.store.sealing import KeyRing
from control.store.segments import SEGMENT_BYTES, recorded_cluster
from control.store.state import State, decode_commit

SEAT_NAME = "member"
BEFORE_RECOVERY = ".before-recovery"  # behind the directory's name: what it was
_EPOCH_BITS = 24  # random ones below the count: two recoveries of one cluster meet once in 16 million


class Seat(msgspec.Struct, frozen=True):
    """Which member of which epoch this directory is. `peers`: where others were when it joined, by node id."""

    member_id: str
    epoch: int
    peers: dict[str, str] = {}


@dataclass(frozen=True, slots=True)
class Recovery:
    """What `recover` has made, for people."""

    seat: Seat
    version: int  # the last commit that is there; what was acknowledged above it is lost
    lost: tuple[str, ...]  # node ids of those who do not belong to the cluster any more


# --- the file ---------------------------------------------------------------------------------------------------------


def read_seat(disk: Disk) -> Seat | None:
    """None if there is none. Blocks. Raises BackendFailed."""
    path = disk.path(SEAT_NAME)
    try:
        return msgspec.json.decode(disk.read(SEAT_NAME), type=Seat)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise BackendFailed(f"cannot read {path}: {error.strerror}") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Damaged(f"{path} is damaged: {error}; remove this manager and join it anew") from error


def write_seat(disk: Disk, seat: Seat) -> None:
    """Durable, all or nothing. Blocks. Raises OSError."""
    handle = disk.open(SEAT_NAME + ".new", create=True)
    try:
        disk.write(handle, msgspec.json.encode(seat), 0)
        disk.sync(handle)
    finally:
        disk.close(handle)
    disk.rename(SEAT_NAME + ".new", SEAT_NAME)
    disk.sync_directory()


def next_epoch(epoch: int, rng: random.Random) -> int:
    """One above, whatever the random part."""
    return ((epoch >> _EPOCH_BITS) + 1) << _EPOCH_BITS | rng.getrandbits(_EPOCH_BITS)


def count_of(epoch: int) -> int:
    """How many recoveries it took: for people."""
    return epoch >> _EPOCH_BITS


# --- making seats -----------------------------------------------------------------------------------------------------


async def found(
    directory: Path,
    cluster_id: str,
    node_id: str,
    *,
    address: str = "",
    ring: KeyRing | None = None,
    segment_bytes: int = SEGMENT_BYTES,
) -> Seat:
    """Make the store of a new cluster, with this node as its only manager; it listens at `address`, host:port.

    Raises BackendFailed.
    """
    disk = RealDisk(directory)
    journal, old = await Journal.open(disk, cluster_id, ring, segment_bytes=segment_bytes)
    try:
        if old.log.last_index or old.snapshot is not None:
            raise BackendFailed(f"{directory} holds the store of a manager already")
        begin = bootstrap(first_configuration(node_id, address))
        await journal.append(begin.hard_state, begin.entries)
        seat = Seat(f"{node_id}.1", 0)
        await _in_thread(disk, write_seat, seat)
    finally:
        await journal.close()
    return seat


async def enrol(
    directory: Path, cluster_id: str, seat: Seat, *, ring: KeyRing | None = None, segment_bytes: int = SEGMENT_BYTES
) -> None:
    """Make the empty store of a manager that joins, with what `RaftBackend.add_learner` of the leader gave.

    What an earlier life of this node has left there is to be removed before. Raises BackendFailed.
    """
    disk = RealDisk(directory)
    journal, old = await Journal.open(disk, cluster_id, ring, segment_bytes=segment_bytes)
    try:
        earlier = await asyncio.to_thread(read_seat, disk)
        if old.log.last_index or old.snapshot is not None or earlier not in (None, seat):
            raise BackendFailed(f"{directory} holds the store of a manager already: move it away before joining anew")
        await _in_thread(disk, write_seat, seat)
    finally:
        await journal.close()


async def sit(journal: Journal, disk: Disk, node_id: str, *, address: str = "") -> Seat:
    """The seat of an open store; see the module. Raises BackendFailed."""
    seat = await asyncio.to_thread(read_seat, disk)
    if seat is None:
        if not journal.last_index and journal.snapshot is None:
            raise BackendFailed(f"{disk.path('.')} holds no manager: it was not made by mesh init or mesh join")
        configuration = last_configuration(journal)
        if not configuration.members:
            configuration = first_configuration(node_id, address)
            index, term = (
                journal.last_index + 1,
                max(journal.hard_state.term, journal.term(journal.last_index) or 0) + 1,
            )
            reset = Entry(index, term, int(Kind.CHANGE), encode(Reset(configuration)))
            await journal.append(HardState(term, "", index), (reset,))
        member = configuration.of_node(node_id)
        if member is None:
            others = ", ".join(node_of(m.id) for m in configuration.members)
            raise WrongCluster(f"{disk.path('.')} holds the store of other managers ({others}), not of node {node_id}")
        seat = Seat(member.id, configuration.epoch)
        await _in_thread(disk, write_seat, seat)
    if node_of(seat.member_id) != node_id:
        raise WrongCluster(f"{disk.path('.')} is the store of manager {node_of(seat.member_id)}, not of node {node_id}")
    return seat


async def _in_thread(disk: Disk, write: Any, seat: Seat) -> None:
    try:
        await asyncio.to_thread(write, disk, seat)
    except OSError as error:
        raise BackendFailed(f"cannot write {disk.path(SEAT_NAME)}: {error.strerror}") from error


def configuration_of(meta: SnapshotMeta | None) -> Configuration:
    """That of a snapshot. What is restored from a backup has none."""
    return decode_configuration(meta.data) if meta is not None and meta.data else Configuration()


def last_configuration(journal: Journal) -> Configuration:
    """With every change in the log, agreed on or not."""
    meta = journal.snapshot
    configuration = configuration_of(meta)
    first = max(meta.index if meta is not None else 0, journal.first_index - 1) + 1
    for entry in journal.entries(first, journal.last_index + 1):
        if entry.kind == Kind.CHANGE:
            configuration = apply_change(configuration, decode_change(entry.data))
    return configuration


# --- recovery ---------------------------------------------------------------------------------------------------------


def recover(
    directory: Path,
    node_id: str,
    rng: random.Random,
    *,
    address: str = "",
    ring: KeyRing | None = None,
    segment_bytes: int = SEGMENT_BYTES,
) -> Recovery:
    """Make a cluster of one out of this manager's store, in a new epoch; the old store stays beside it.

    For when a majority of the managers is lost for good. Everything in the log counts, agreed on or not: it may have
    been acknowledged. Run again after a crash, it goes on. Blocks; meshd must not run. Raises BackendFailed.
    """
    old = directory.with_name(directory.name + BEFORE_RECOVERY)
    new = directory.with_name(directory.name + ".recovered")
    try:
        if directory.exists():
            if old.exists():
                raise BackendFailed(f"{old} exists, from an earlier recovery: move it away first")
            shutil.rmtree(new, ignore_errors=True)
            _renew(directory, new, node_id, rng, address, ring, segment_bytes)
            os.rename(directory, old)
        elif read_seat(RealDisk(new)) is None:
            raise BackendFailed(f"{directory} does not exist: there is nothing to recover")
        os.rename(new, directory)
        sync_directory(directory.parent)
        return asyncio.run(_report(directory, old, ring, segment_bytes))
    except OSError as error:
        raise BackendFailed(f"cannot recover the store in {directory}: {error.strerror}") from error


def _renew(
    directory: Path,
    new: Path,
    node_id: str,
    rng: random.Random,
    address: str,
    ring: KeyRing | None,
    segment_bytes: int,
) -> None:
    backup, configuration = asyncio.run(_read(directory, ring, segment_bytes))
    if configuration.members and configuration.of_node(node_id) is None:
        raise WrongCluster(f"{directory} is not the store of node {node_id}")
    joined = configuration.joined + 1
    seat = Seat(f"{node_id}.{joined}", next_epoch(configuration.epoch, rng))
    alone = Configuration((Member(seat.member_id, voter=True, address=address),), joined, seat.epoch)
    restore(backup, new, members=encode(alone), ring=ring, segment_bytes=segment_bytes)
    write_seat(RealDisk(new), seat)


async def _read(directory: Path, ring: KeyRing | None, segment_bytes: int) -> tuple[Backup, Configuration]:
    disk = RealDisk(directory)
    cluster_id = await asyncio.to_thread(recorded_cluster, disk)
    if cluster_id is None:
        raise BackendFailed(f"{directory} holds no manager: there is nothing to recover")
    journal, opened = await Journal.open(disk, cluster_id, ring, segment_bytes=segment_bytes)
    try:
        state = State() if opened.snapshot is None else State.of(journal.snapshot_chunks(opened.snapshot))
        first = (opened.snapshot.index if opened.snapshot is not None else 0) + 1
        for entry in journal.entries(first, journal.last_index + 1):
            if entry.kind == Kind.DATA:
                state = applied(state, decode_commit(entry.data))
        term = max(journal.hard_state.term, journal.term(journal.last_index) or 0)
        return Backup(cluster_id, term, state), last_configuration(journal)
    finally:
        await journal.close()


async def _report(directory: Path, old: Path, ring: KeyRing | None, segment_bytes: int) -> Recovery:
    backup, configuration = await _read(old, ring, segment_bytes)
    seat = await asyncio.to_thread(read_seat, RealDisk(directory))
    assert seat is not None
    mine = node_of(seat.member_id)
    lost = tuple(node_of(member.id) for member in configuration.members if node_of(member.id) != mine)
    return Recovery(seat, backup.state.version, lost)


def applied(state: State, commit: Proposal) -> State:
    """The state after a commit that was agreed on. Raises Damaged if it was not made for this state."""
    if commit.version != state.version + 1:
        raise Damaged(f"commit {commit.version} does not go on top of commit {state.version}")
    if (misfit := state.misfit(commit)) is not None:
        raise Damaged(f"commit {commit.version} was not made for the {misfit.kind} {misfit.id} that is here")
    return state.apply(commit)
