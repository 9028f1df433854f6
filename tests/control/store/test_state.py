"""The two state machines of one kind: the one that is never changed, and the one that is changed in place."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from control.store.backend import Proposal
from control.store.errors import Damaged
from control.store.record import RowChange
from control.store.state import Ledger, State

IDS = st.sampled_from("abcdef")


@settings(max_examples=100, deadline=None)
@given(st.lists(st.dictionaries(IDS, st.one_of(st.none(), st.binary(max_size=5)), min_size=1), max_size=12))
def test_both_go_the_same_way(commits):
    state, ledger = State(), Ledger()
    for version, commit in enumerate(commits, 1):
        changes = []
        for id_, blob in commit.items():
            row = state.rows.get(("k", id_))
            if row is not None or blob is not None:
                changes.append(RowChange("k", id_, row.version if row is not None else 0, blob))
        proposal = Proposal(version, tuple(changes))
        state = state.apply(proposal)
        ledger.apply(proposal)
        assert ledger.digest == state.digest
        assert ledger.rows == dict(state.rows.items())
    frozen = ledger.freeze()
    assert Ledger.of(state.chunks()).digest == State.of(frozen.chunks()).digest == state.digest


def test_what_is_frozen_does_not_change():
    ledger = Ledger()
    ledger.apply(Proposal(1, (RowChange("k", "a", 0, b"1"),)))
    frozen = ledger.freeze()
    ledger.apply(Proposal(2, (RowChange("k", "a", 1, None),)))
    assert frozen.version == 1
    assert [row.id for row in State.of(frozen.chunks()).rows.values()] == ["a"]
    assert not ledger.rows


@pytest.mark.parametrize(
    "proposal",
    [
        Proposal(3, (RowChange("k", "b", 0, b""),)),
        Proposal(2, (RowChange("k", "a", 0, b""),)),
        Proposal(2, (RowChange("k", "b", 1, b""),)),
        Proposal(2, (RowChange("k", "b", 1, None),)),
    ],
)
def test_a_commit_that_was_made_for_another_state_is_refused(proposal):
    ledger = Ledger()
    ledger.apply(Proposal(1, (RowChange("k", "a", 0, b"1"),)))
    with pytest.raises(Damaged):
        ledger.apply(proposal)
