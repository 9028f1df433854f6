"""Nodes are asked to renew while the root is being changed, some at a time."""

from __future__ import annotations

import itertools

from control.ca import rotation
from control.ca.root import make_root, new_key
from control.dispatcher.renewals import BATCH_PERIOD_S, Renewals
from control.model import Authority, Meta, Node
from control.store.tables import Snapshot

NOW = 1_800_000_000.0
_numbers = itertools.count(1)


class _Store:
    """As much of a snapshot as is looked at."""

    def __init__(self, authority: Authority | None) -> None:
        self.authority = authority

    def all(self, cls: type[Authority]) -> list[Authority]:
        return [self.authority] if self.authority is not None else []


def a_cluster() -> tuple[Snapshot, Snapshot, str]:
    """Before the change and during it, and the digest of the old root."""
    serials = [next(_numbers).to_bytes(16, "big") for _ in range(3)]
    old, new = make_root("c1", new_key(), NOW, serials[0]), make_root("c1", new_key(), NOW, serials[1])
    settled = rotation.new_authority("c1", old)
    changing = rotation.begin(settled, new, NOW, serials[2])
    changing = Authority(**{f: getattr(changing, f) for f in changing.__struct_fields__} | {"meta": Meta(version=9)})
    return _Store(settled), _Store(changing), old.digest  # type: ignore[return-value]


def a_node(issuer: str, believes: int = 1) -> Node:
    return Node(id="n1", number=1, issuer=issuer, believes=believes)


def test_nobody_is_asked_while_nothing_changes() -> None:
    settled, _, old = a_cluster()
    renewals = Renewals()
    assert not renewals.ask(settled, a_node(old), 0.0)
    assert not renewals.ask(_Store(None), a_node(old), 0.0)  # type: ignore[arg-type]
    assert not renewals.ask(settled, None, 0.0)
    assert renewals.ask(settled, a_node(old, believes=2), 0.0), "it believes a root that is no more"


def test_during_a_change_those_of_the_old_root_are_asked_a_few_at_a_time() -> None:
    settled, changing, old = a_cluster()
    renewals = Renewals()
    assert not renewals.ask(settled, a_node(old), 0.0)
    assert sum(renewals.ask(changing, a_node(old), 10.0) for _ in range(1000)) == rotation.BATCH_MAX
    assert not renewals.ask(changing, a_node(old), 10.0 + BATCH_PERIOD_S - 0.1)
    assert renewals.ask(changing, a_node(old), 10.0 + BATCH_PERIOD_S)
    new = rotation.signer(next(iter(changing.all(Authority)))).digest
    assert not renewals.ask(changing, a_node(new), 100.0)
    assert not renewals.ask(changing, a_node(""), 100.0), "one without a certificate has nothing to renew"
