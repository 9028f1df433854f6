"""The persistent map against a dict."""

from hypothesis import given, settings
from hypothesis import strategies as st

from control.store import sortedmap
from control.store.sortedmap import LEAF_MAX, SortedMap

keys = st.integers(0, 400).map(lambda i: f"{i:03d}")
edits = st.lists(st.lists(st.tuples(keys, st.none() | st.integers()), max_size=60), max_size=12)


def check(found: SortedMap[str, int], model: dict[str, int]) -> None:
    assert len(found) == len(model)
    assert list(found.items()) == sorted(model.items())
    assert list(found) == sorted(model)
    assert list(found.values()) == [model[k] for k in sorted(model)]
    assert len(found.values()) == len(model)


@given(edits, st.lists(st.tuples(keys, keys), max_size=5))
@settings(max_examples=100, deadline=None)
def test_equals_a_dict_and_old_versions_stay(edits, ranges):
    largest = sortedmap.LEAF_MAX, sortedmap.BRANCH_MAX
    sortedmap.LEAF_MAX, sortedmap.BRANCH_MAX = 8, 8  # so that a few hundred keys split and merge
    try:
        versions = [(SortedMap[str, int](), {})]
        for edit in edits:
            found, model = versions[-1]
            editor, model = found.edit(), dict(model)
            for key, value in edit:
                if value is None:
                    assert editor.delete(key) == (model.pop(key, None) is not None)
                else:
                    editor.set(key, value)
                    model[key] = value
            versions.append((editor.done(), model))
        for found, model in versions:
            check(found, model)
        found, model = versions[-1]
        for low, high in ranges:
            assert found.keys_between(low, high) == [k for k in sorted(model) if low <= k < high]
            assert found.values_between(low, None) == [model[k] for k in sorted(model) if low <= k]
            assert found.get(low) == model.get(low)
        assert all(0 < len(leaf.keys) <= 8 for leaf in found._leaves() if found)
        assert all(0 < len(branch.keys) <= 8 for branch in found._root.values)
    finally:
        sortedmap.LEAF_MAX, sortedmap.BRANCH_MAX = largest


def test_a_small_edit_of_a_large_map_shares_all_else():
    editor = SortedMap[str, int]().edit()
    for i in range(20_000):
        editor.set(f"{i:06d}", i)
    big = editor.done()
    edited = big.edit()
    edited.set("010000", -1)
    after = edited.done()
    assert len({id(leaf) for leaf in after._leaves()} - {id(leaf) for leaf in big._leaves()}) == 1
    assert len({id(node) for node in after._root.values} - {id(node) for node in big._root.values}) == 1
    assert big.get("010000") == 10_000
    assert after.get("010000") == -1
    # Keys that came in order fill their leaves, and these their branches.
    leaves = 20_000 // LEAF_MAX + 1
    assert len(list(big._leaves())) <= leaves
    assert len(big._root.values) <= leaves // sortedmap.BRANCH_MAX + 1


def test_emptied_and_filled_again():
    editor = SortedMap[str, int]().edit()
    for i in range(1000):
        editor.set(f"{i:04d}", i)
    full = editor.done()
    editor = full.edit()
    for i in range(1000):
        assert editor.delete(f"{i:04d}")
    assert not editor.delete("0000")
    empty = editor.done()
    check(empty, {})
    assert empty.get("0001") is None
    assert empty.keys_between("", None) == []
    editor = empty.edit()
    editor.set("b", 1)
    editor.set("a", 2)
    check(editor.done(), {"a": 2, "b": 1})
    assert len(full) == 1000


def test_values_view_contains():
    editor = SortedMap[str, int]().edit()
    editor.set("a", 7)
    assert 7 in editor.done().values()
    assert 8 not in SortedMap[str, int]().values()
