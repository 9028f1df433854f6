"""The life of a node's WireGuard keys, and their file."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest

from overlay.keys import (
    FILE,
    LIFE_S,
    LINGER_S,
    OVERLAP_MAX_S,
    OVERLAP_MIN_S,
    KeyFile,
    OwnKey,
    advanced,
    generate,
    public_of,
    told,
)
from overlay.plan import PublicKey, is_key

_numbers = itertools.count()


def make() -> tuple[str, str]:
    number = next(_numbers)
    return f"private{number}", f"public{number}"


def key(slot: int, made_s: float, retired_s: float = 0.0) -> OwnKey:
    return OwnKey(slot, f"private of {slot}", f"public of {slot}", made_s, retired_s)


def step(*keys: OwnKey, now_s: float, replaced: bool = False) -> tuple[OwnKey, ...]:
    return advanced(keys, replaced=replaced, now_s=now_s, make=make)


def test_the_first_key_is_made_at_once_and_kept_for_its_life() -> None:
    (first,) = step(now_s=7.0)
    assert (first.slot, first.made_s, first.retired_s) == (0, 7.0, 0.0)
    assert step(first, now_s=7.0 + LIFE_S - 1) == (first,)


@pytest.mark.parametrize("slot", [0, 1])
def test_at_the_end_of_its_life_another_stands_beside_it_in_the_other_slot(slot: int) -> None:
    old, new = step(key(slot, 0.0), now_s=LIFE_S)
    assert (old, new.slot, new.made_s) == (key(slot, 0.0), 1 - slot, LIFE_S)


def test_the_old_key_is_retired_when_all_have_met_the_new_one_but_not_before_all_could_hear() -> None:
    both = (key(0, 0.0), key(1, 1000.0))
    assert step(*both, now_s=1000.0 + OVERLAP_MIN_S, replaced=False) == both
    assert step(*both, now_s=999.0 + OVERLAP_MIN_S, replaced=True) == both
    at_s = 1000.0 + OVERLAP_MIN_S
    assert step(*both, now_s=at_s, replaced=True) == (key(0, 0.0, at_s), key(1, 1000.0))


def test_nodes_that_never_answer_do_not_keep_an_old_key_for_ever() -> None:
    both = (key(0, 0.0), key(1, 1000.0))
    assert step(*both, now_s=999.0 + OVERLAP_MAX_S) == both
    assert step(*both, now_s=1000.0 + OVERLAP_MAX_S)[0].retired_s


def test_a_retired_key_is_told_no_more_receives_for_a_while_and_is_gone() -> None:
    both = (key(0, 0.0, 5000.0), key(1, 1000.0))
    assert told(both) == (PublicKey(1, "public of 1"),)
    assert step(*both, now_s=4999.0 + LINGER_S) == both
    assert step(*both, now_s=5000.0 + LINGER_S) == (key(1, 1000.0),)


def test_a_life_of_many_keys_never_has_more_than_two_and_never_none() -> None:
    keys: tuple[OwnKey, ...] = ()
    for hour in range(24 * 100):
        keys = step(*keys, now_s=hour * 3600.0, replaced=hour % 3 == 0)
        assert 1 <= len(keys) <= 2
        assert len({one.slot for one in keys}) == len(keys)
        assert told(keys)


def test_keys_are_of_curve_25519() -> None:
    private, public = generate()
    assert is_key(private)
    assert public_of(private) == public
    # RFC 7748, section 6.1, Alice's
    alice = "dwdtCnMYpX08FsFyUbJmRd9ML4frwJkqsXf7pR25LCo="
    assert public_of(alice) == "hSDwCYkwp1R0i33ctD73Wg2/Og0mOBr066SpjqqbTmo="


def test_the_file_is_for_root_alone_and_gives_the_same_keys_again(tmp_path: Path) -> None:
    file = KeyFile(tmp_path / "state", lambda: 1000.0)
    keys = file.load()
    assert len(keys) == 1
    assert KeyFile(tmp_path / "state", lambda: 2000.0).load() == keys
    assert (tmp_path / "state" / FILE).stat().st_mode & 0o777 == 0o600
    assert list((tmp_path / "state").iterdir()) == [tmp_path / "state" / FILE]


def test_the_file_follows_the_life_of_its_keys(tmp_path: Path) -> None:
    now_s = [0.0]
    file = KeyFile(tmp_path, lambda: now_s[0])
    (first,) = file.advance(replaced=False)
    now_s[0] = LIFE_S
    first_again, second = file.advance(replaced=False)
    assert first_again == first
    now_s[0] += OVERLAP_MIN_S
    assert file.advance(replaced=True)[0].retired_s == now_s[0]
    now_s[0] += LINGER_S
    assert file.advance(replaced=True) == (second,) == file.load()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        '{"keys": [{}]}',
        '{"keys": [{"slot": 2, "private": "x"}]}',
        '{"keys": [{"slot": 0, "private": "x"}]}',
    ],
)
def test_a_file_that_holds_no_keys_is_an_error_and_no_reason_for_new_ones(tmp_path: Path, text: str) -> None:
    (tmp_path / FILE).write_text(text)
    with pytest.raises(OSError, match=r"wireguard\.json holds no keys"):
        KeyFile(tmp_path, lambda: 0.0).load()
    assert (tmp_path / FILE).read_text() == text


def test_an_unfinished_write_of_an_earlier_process_does_not_matter(tmp_path: Path) -> None:
    (tmp_path / "wireguard.new").write_text("half")
    assert len(KeyFile(tmp_path, lambda: 0.0).load()) == 1
    assert len(json.loads((tmp_path / FILE).read_text())["keys"]) == 1
