"""The requests that the backend makes: built here, sent elsewhere. A core."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from control.etcd import etcd_pb2 as pb
from control.etcd.mirror import RowAt
from control.etcd.sealed import BlobSeal
from control.etcd.wire import (
    Commit,
    Head,
    Keys,
    RowKey,
    StoredRow,
    encode,
    end_of,
    part_keys,
    pieces,
    record_of,
    to_spill,
)

# etcd takes 128 operations in a transaction, counted along each path through nested ones and not over all of them; so
# a commit of 200 changes goes as a few nested transactions, each with this many. Tried with a real one in the tests.
OPS_PER_NEST = 100
# One transaction: commits that wait while the one before is under way go together. It takes etcd some 10 ms.
GROUP_CHANGES = 400


@dataclass(frozen=True, slots=True)
class Fence:
    """What must still be so: our candidacy, from whose creation we lead, and the head we build upon."""

    lease: int
    term: int
    head_revision: int


@dataclass(frozen=True, slots=True)
class Write:
    """The requests for one group of commits. `parts` go first, one after the other."""

    parts: tuple[pb.TxnRequest, ...]
    commit: pb.TxnRequest


def group_size(commits: Sequence[Commit], inline_max: int) -> int:
    """How many of the commits, at least one, can go in one transaction: no row twice, not too many, not too large."""
    seen: set[RowKey] = set()
    changes = size = 0
    for count, commit in enumerate(commits):
        keys = {(c.kind, c.id) for c in commit.changes}
        changes += len(commit.changes)
        size += sum(len(c.blob) for c in commit.changes if c.blob is not None)
        if count and (changes > GROUP_CHANGES or size > inline_max or not keys.isdisjoint(seen)):
            return count
        seen |= keys
    return len(commits)


def write(keys: Keys, seal: BlobSeal, commits: Sequence[Commit], fence: Fence, index: Mapping[RowKey, RowAt]) -> Write:
    """The requests for a group. `index` is the state before it: parts of rows that are written over go."""
    operations: list[pb.RequestOp] = []
    parts: list[pb.RequestOp] = []
    for commit in commits:
        spilled = to_spill(commit.changes)
        for number, change in enumerate(commit.changes):
            key = keys.row(change.kind, change.id)
            before = index.get((change.kind, change.id))
            if before is not None:
                operations += map(_delete, part_keys(before.part_key, before.parts))
            if change.blob is None:
                operations.append(_delete(key))
                continue
            key_id, blob = seal.seal(change.kind, change.id, commit.version, change.blob)
            row = StoredRow(commit.version, blob, key_id=key_id)
            if number in spilled:
                part_key = keys.part_key(fence.term, commit.version, number)
                cut = list(pieces(blob))
                parts += map(_put, part_keys(part_key, len(cut)), cut)
                row = StoredRow(commit.version, None, part_key, len(cut), key_id)
            operations.append(_put(key, encode(row)))
    head = Head(commits[-1].version, fence.term, tuple(map(record_of, commits)))
    operations.append(_put(keys.head, encode(head)))
    return Write(tuple(_fenced(keys, fence, [part]) for part in parts), _fenced(keys, fence, _nested(operations)))


def sweep(keys: Keys, fence: Fence, orphans: Sequence[bytes]) -> list[pb.TxnRequest]:
    """Remove parts that belong to nothing."""
    groups = (orphans[at : at + OPS_PER_NEST] for at in range(0, len(orphans), OPS_PER_NEST))
    return [_fenced(keys, fence, list(map(_delete, group))) for group in groups]


def _fenced(keys: Keys, fence: Fence, operations: Sequence[pb.RequestOp]) -> pb.TxnRequest:
    """The operations if the fence holds; otherwise, what it has run into."""
    run = keys.run(fence.lease)
    return pb.TxnRequest(
        compare=[
            pb.Compare(target=pb.Compare.CREATE, key=run, create_revision=fence.term),
            pb.Compare(target=pb.Compare.MOD, key=keys.head, mod_revision=fence.head_revision),
        ],
        success=operations,
        failure=[get(run), get(keys.head)],
    )


def candidacy(keys: Keys, lease: int, node_id: str) -> pb.TxnRequest:
    """Stand for leader, once."""
    run = keys.run(lease)
    put = pb.RequestOp(request_put=pb.PutRequest(key=run, value=node_id.encode(), lease=lease))
    return pb.TxnRequest(compare=[pb.Compare(target=pb.Compare.CREATE, key=run, create_revision=0)], success=[put])


def first(keys: Keys, meta: bytes) -> pb.TxnRequest:
    """Say whose keys these are, or get who did."""
    return pb.TxnRequest(
        compare=[
            pb.Compare(target=pb.Compare.CREATE, key=keys.meta, create_revision=0),
            pb.Compare(target=pb.Compare.CREATE, key=keys.head, create_revision=0),
        ],
        success=[_put(keys.meta, meta), _put(keys.head, encode(Head(0, 0, ())))],
        failure=[get(keys.meta)],
    )


def page(prefix: bytes, start: bytes, revision: int, limit: int) -> pb.RangeRequest:
    """The keys below `prefix` from `start` on."""
    return pb.RangeRequest(key=start, range_end=end_of(prefix), revision=revision, limit=limit)


def get(key: bytes) -> pb.RequestOp:
    """Read one key within a transaction."""
    return pb.RequestOp(request_range=pb.RangeRequest(key=key))


def _put(key: bytes, value: bytes) -> pb.RequestOp:
    return pb.RequestOp(request_put=pb.PutRequest(key=key, value=value))


def _delete(key: bytes) -> pb.RequestOp:
    return pb.RequestOp(request_delete_range=pb.DeleteRangeRequest(key=key))


def _nested(operations: Sequence[pb.RequestOp]) -> Sequence[pb.RequestOp]:
    if len(operations) <= OPS_PER_NEST:
        return operations
    nests = (operations[at : at + OPS_PER_NEST] for at in range(0, len(operations), OPS_PER_NEST))
    return [pb.RequestOp(request_txn=pb.TxnRequest(success=nest)) for nest in nests]
