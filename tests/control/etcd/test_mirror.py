"""The core: what is in a revision, and what is not ours."""

import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from control.etcd import txns
from control.etcd.mirror import Gap, KeyChange, Listing, Mirror
from control.etcd.sealed import BlobSeal
from control.etcd.txns import Fence
from control.etcd.wire import INLINE_MAX, PART_BYTES, TXN_BYTES, Commit, Head, Keys, encode, to_spill
from control.store.errors import BackendFailed
from control.store.record import Row, RowChange
from control.store.sealing import PlainRing

KEYS = Keys("/t")
SEAL = BlobSeal(PlainRing(), "c1")


class Fake:
    """etcd's keys, as far as our transactions use them."""

    def __init__(self) -> None:
        self.revision = 1
        self.data: dict[bytes, tuple[bytes, int, int]] = {KEYS.head: (encode(Head(0, 0, ())), 1, 1)}

    def run(self, request) -> list[KeyChange]:
        """Do it, whatever it compares; the changes, as a watch shows them."""
        self.revision += 1
        return list(self._do(request.success))

    def _do(self, operations):
        for op in operations:
            match op.WhichOneof("request"):
                case "request_txn":
                    yield from self._do(op.request_txn.success)
                case "request_put":
                    key = op.request_put.key
                    created = self.data[key][1] if key in self.data else self.revision
                    self.data[key] = op.request_put.value, created, self.revision
                    yield KeyChange(key, op.request_put.value, created)
                case "request_delete_range":
                    key = op.request_delete_range.key
                    if self.data.pop(key, None) is not None:
                        yield KeyChange(key, None, 0)

    def listing(self) -> Listing:
        def below(prefix):
            return [KeyChange(k, v, c) for k, (v, c, _) in sorted(self.data.items()) if k.startswith(prefix)]

        head, _, head_revision = self.data[KEYS.head]
        return Listing(self.revision, head, head_revision, below(KEYS.rows), below(KEYS.parts), below(KEYS.runs))

    def mirror(self) -> tuple[Mirror, tuple[Row, ...]]:
        mirror = Mirror(KEYS, SEAL)
        return mirror, mirror.load(self.listing())


def fence(mirror: Mirror) -> Fence:
    return Fence(7, 3, mirror.head_revision)


def commit(etcd: Fake, mirror: Mirror, *proposals: Commit) -> list[Commit]:
    write = txns.write(KEYS, SEAL, proposals, fence(mirror), mirror.index)
    committed = []
    for request in (*write.parts, write.commit):
        committed += mirror.apply(etcd.revision + 1, etcd.run(request))
    return committed


def put(id_, blob=b"x", expected=0):
    return RowChange("k", id_, expected, blob)


def test_a_group_of_commits_comes_out_one_by_one():
    etcd = Fake()
    mirror, _ = etcd.mirror()
    proposals = [Commit(1, (put("a"), put("b"))), Commit(2, (put("c"),)), Commit(3, ())]
    assert commit(etcd, mirror, *proposals) == [Commit(p.version, p.changes) for p in proposals]
    assert mirror.version == 3
    assert etcd.mirror()[1] == (Row("k", "a", 1, b"x"), Row("k", "b", 1, b"x"), Row("k", "c", 2, b"x"))


sizes = st.sampled_from([0, 1, 1000, 20_000, INLINE_MAX, INLINE_MAX + 1, PART_BYTES, PART_BYTES + 1, 1_500_000])
commits = st.lists(st.dictionaries(st.sampled_from("abcdef"), st.none() | sizes, max_size=6), max_size=12)


@given(script=commits, groups=st.lists(st.integers(1, 4), min_size=12, max_size=12))
@settings(max_examples=50, deadline=None)
def test_whatever_is_written_a_watch_and_a_load_see_the_same(script, groups):
    """Blobs of all sizes, inline and in parts, written over and deleted; no part is left behind."""
    etcd = Fake()
    writer, _ = etcd.mirror()
    rows: dict[str, Row] = {}
    proposals = []
    for version, wanted in enumerate(script, start=1):
        changes = []
        for id_, size in wanted.items():
            expected = rows[id_].version if id_ in rows else 0
            if size is None and not expected:
                continue
            blob = None if size is None else bytes([version % 256]) * size
            changes.append(RowChange("k", id_, expected, blob))
            if blob is None:
                del rows[id_]
            else:
                rows[id_] = Row("k", id_, version, blob)
        proposals.append(Commit(version, tuple(changes)))
    seen = []
    while proposals:
        waiting = proposals[: groups[len(seen) % 12]]
        group = [proposals.pop(0) for _ in range(txns.group_size(waiting, TXN_BYTES))]
        expected = [Commit(p.version, p.changes) for p in group]
        assert commit(etcd, writer, *group) == expected
        seen += expected
    mirror, found = etcd.mirror()
    assert sorted(found, key=lambda row: row.id) == sorted(rows.values(), key=lambda row: row.id)
    assert (mirror.index, mirror.version) == (writer.index, writer.version)
    used = sum(at.parts for at in mirror.index.values())
    assert sum(key.startswith(KEYS.parts) for key in etcd.data) == used


def test_a_request_stays_below_what_etcd_takes():
    changes = [
        tuple(put(f"{i}", os.urandom(size)) for i in range(count)) for count, size in [(200, 7864), (1, 1_572_864)]
    ]
    changes.append((*(put(f"{i}", os.urandom(60_000)) for i in range(20)), put("z", os.urandom(300_000))))
    for change in changes:
        write = txns.write(KEYS, SEAL, [Commit(1, change)], Fence(7, 3, 1), {})
        assert all(request.ByteSize() < 1_400_000 for request in (*write.parts, write.commit))
        nested = [op.request_txn.success for op in write.commit.success if op.HasField("request_txn")]
        assert len(write.commit.success) + max(map(len, nested), default=0) <= 128


def test_the_largest_go_into_parts_first():
    changes = [
        put("a", bytes(50_000)),
        put("big", bytes(INLINE_MAX + 1)),
        *(put(f"{i}", bytes(40_000)) for i in range(26)),
    ]
    spilled = to_spill(changes)
    assert {changes[i].id for i in spilled} >= {"a", "big"}
    assert sum(len(c.blob) for i, c in enumerate(changes) if i not in spilled) <= TXN_BYTES


def test_groups_have_no_row_twice_and_are_bounded():
    a, b, a2 = Commit(1, (put("a"),)), Commit(2, (put("b"),)), Commit(3, (put("a", expected=1),))
    assert txns.group_size([a, b, a2], TXN_BYTES) == 2
    assert txns.group_size([a, b], 1) == 1
    many = [Commit(i, tuple(put(f"{i}-{j}") for j in range(150))) for i in range(1, 9)]
    assert txns.group_size(many, TXN_BYTES) == txns.GROUP_CHANGES // 150


def test_parts_of_what_never_came_to_pass_are_swept():
    etcd = Fake()
    mirror, _ = etcd.mirror()
    write = txns.write(KEYS, SEAL, [Commit(1, (put("a", bytes(PART_BYTES * 2)),))], fence(mirror), {})
    for request in write.parts:
        mirror.apply(etcd.revision + 1, etcd.run(request))
    late, _ = etcd.mirror()  # also by one that finds them there
    assert set(mirror.orphans()) == set(late.orphans()) == {k for k in etcd.data if k.startswith(KEYS.parts)}
    for request in txns.sweep(KEYS, fence(late), late.orphans()):
        late.apply(etcd.revision + 1, etcd.run(request))
    assert not late.orphans()
    assert not [k for k in etcd.data if k.startswith(KEYS.parts)]


def test_revisions_come_once():
    etcd = Fake()
    mirror, _ = etcd.mirror()
    changes = etcd.run(txns.write(KEYS, SEAL, [Commit(1, (put("a"),))], fence(mirror), {}).commit)
    assert len(mirror.apply(2, changes)) == 1
    assert mirror.apply(2, changes) == ()
    assert mirror.apply(1, changes) == ()


def test_a_missing_revision_is_a_gap():
    etcd = Fake()
    writer, _ = etcd.mirror()
    late, _ = etcd.mirror()
    commit(etcd, writer, Commit(1, (put("a"),)))
    write = txns.write(KEYS, SEAL, [Commit(2, (put("b"),))], fence(writer), writer.index)
    with pytest.raises(Gap):
        late.apply(3, etcd.run(write.commit))


def test_a_missing_part_is_a_gap():
    etcd = Fake()
    mirror, _ = etcd.mirror()
    write = txns.write(KEYS, SEAL, [Commit(1, (put("a", bytes(PART_BYTES * 2)),))], fence(mirror), {})
    mirror.apply(2, etcd.run(write.parts[0]))
    etcd.run(write.parts[1])
    with pytest.raises(Gap):
        mirror.apply(4, etcd.run(write.commit))


@pytest.mark.parametrize(
    "change",
    [
        KeyChange(KEYS.row("k", "a"), b"\x92\x01\xc4\x01x", 1),
        KeyChange(KEYS.row("k", "a"), None, 0),
        KeyChange(KEYS.head, None, 0),
        KeyChange(KEYS.meta, b"", 1),
        KeyChange(KEYS.root + b"other", b"", 1),
        KeyChange(KEYS.runs + b"nonsense", b"", 1),
        KeyChange(KEYS.head, b"nonsense", 1),
        KeyChange(KEYS.head, encode(Head(5, 1, ())), 1),
    ],
    ids=str,
)
def test_what_others_write_there_is_noticed(change):
    etcd = Fake()
    mirror, _ = etcd.mirror()
    commit(etcd, mirror, Commit(1, (put("a"),)))
    with pytest.raises(BackendFailed) as caught:
        mirror.apply(etcd.revision + 1, [change])
    assert "\n" not in str(caught.value)


def test_the_oldest_candidate_leads():
    mirror, _ = Fake().mirror()
    assert mirror.leader() is None
    mirror.apply(2, [KeyChange(KEYS.run(0x99), b"n1", 2)])
    mirror.apply(3, [KeyChange(KEYS.run(0x11), b"n2", 3)])
    assert (mirror.leader().node_id, mirror.leader().create_revision) == ("n1", 2)
    mirror.apply(4, [KeyChange(KEYS.run(0x99), None, 0)])
    assert (mirror.leader().node_id, mirror.leader().create_revision) == ("n2", 3)
