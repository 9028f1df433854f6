"""A change of root: believed by everybody at every moment, done when those who are there are, replaceable."""

from __future__ import annotations

import itertools

import msgspec
import pytest

from control.ca import rotation
from control.ca.names import Holder
from control.ca.root import CaError, Root, digest, issue, make_root, new_key
from control.ca.verify import verify_holder, verify_manager
from control.model import Authority, Node, NodeState, NodeStatus

NOW = 1_800_000_000.0
CLUSTER = "c" * 25
_numbers = itertools.count(1)


def serial() -> bytes:
    return next(_numbers).to_bytes(16, "big")


def a_root() -> Root:
    return make_root(CLUSTER, new_key(), NOW, serial())


def a_node(name: str, issuer: str, state: NodeState = "ready") -> Node:
    return Node(id=name, number=int(name[1:]), issuer=issuer, status=NodeStatus(state=state))


def begun() -> tuple[Authority, Authority]:
    settled = rotation.new_authority(CLUSTER, a_root())
    return settled, rotation.begin(settled, a_root(), NOW, serial())


def test_the_signer_is_read_from_the_record() -> None:
    root = a_root()
    authority = msgspec.msgpack.decode(msgspec.msgpack.encode(rotation.new_authority(CLUSTER, root)), type=Authority)
    assert rotation.signer(authority).digest == root.digest
    assert not rotation.is_changing(authority)
    assert [digest(c) for c in rotation.believed(authority)] == [root.digest]


def test_at_every_moment_old_and_new_nodes_believe_each_other() -> None:
    """Who has renewed and who has not, manager and worker, before, in the middle and after."""
    settled, changing = begun()
    for speaker, listener in ((settled, changing), (changing, settled), (changing, changing)):
        root = rotation.signer(speaker)
        leaf = issue(root, Holder(CLUSTER, "manager", "n1"), new_key().public_key(), NOW, serial())
        chain = [root.crossed] if root.crossed is not None else []
        assert verify_manager(leaf, chain, rotation.believed(listener), NOW).id == "n1"
    done = rotation.finish(changing)
    root = rotation.signer(done)
    leaf = issue(root, Holder(CLUSTER, "manager", "n1"), new_key().public_key(), NOW, serial())
    assert root.crossed is not None
    verify_manager(leaf, [root.crossed], rotation.believed(settled), NOW)  # a node that was away the whole time


def test_after_the_end_the_old_root_is_believed_no_more() -> None:
    settled, changing = begun()
    leaf = issue(rotation.signer(settled), Holder(CLUSTER, "worker", "n1"), new_key().public_key(), NOW, serial())
    verify_holder(leaf, [], rotation.believed(changing), NOW)
    with pytest.raises(CaError):
        verify_holder(leaf, [], rotation.believed(rotation.finish(changing)), NOW)
    assert not rotation.finish(changing).old_key


def test_nodes_that_are_down_are_counted_but_not_waited_for() -> None:
    settled, changing = begun()
    old, new = rotation.signer(settled).digest, rotation.signer(changing).digest
    nodes = [a_node("n1", new), a_node("n2", old), a_node("n3", old, "down")]
    found = rotation.progress(changing, nodes)
    assert (found.done, found.total, found.away, found.digest) == (1, 3, 1, new)
    assert not rotation.is_done(found)
    assert rotation.to_renew(changing, nodes) == ["n2"]
    assert rotation.is_done(rotation.progress(changing, [nodes[0], a_node("n2", new), nodes[2]]))
    assert not rotation.is_done(rotation.progress(settled, []))


def test_nodes_are_asked_some_at_a_time() -> None:
    settled, changing = begun()
    nodes = [a_node(f"n{i}", rotation.signer(settled).digest) for i in range(1000)]
    batches = 0
    while to_ask := set(rotation.to_renew(changing, nodes)):
        assert len(to_ask) <= rotation.BATCH_MAX
        nodes = [a_node(n.id, rotation.signer(changing).digest) if n.id in to_ask else n for n in nodes]
        batches += 1
    assert batches == 34


def test_a_second_change_replaces_the_first() -> None:
    settled, first = begun()
    second = rotation.begin(first, a_root(), NOW, serial())
    for speaker in (settled, first, second):
        leaf = issue(rotation.signer(speaker), Holder(CLUSTER, "worker", "n1"), new_key().public_key(), NOW, serial())
        verify_holder(leaf, [], rotation.believed(second), NOW)
    root = rotation.signer(second)
    leaf = issue(root, Holder(CLUSTER, "manager", "n1"), new_key().public_key(), NOW, serial())
    assert root.crossed is not None
    verify_manager(leaf, [root.crossed], rotation.believed(settled), NOW)
    assert len(rotation.believed(rotation.finish(second))) == 1


def test_changes_that_never_end_are_refused() -> None:
    _, authority = begun()
    for _ in range(2):
        authority = rotation.begin(authority, a_root(), NOW, serial())
    with pytest.raises(CaError, match="wait"):
        rotation.begin(authority, a_root(), NOW, serial())


def test_a_root_that_is_believed_already_is_no_change() -> None:
    root = a_root()
    with pytest.raises(CaError, match="already"):
        rotation.begin(rotation.new_authority(CLUSTER, root), root, NOW, serial())
