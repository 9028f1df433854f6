"""Unlock keys: what is one, and that nothing opens without the right one."""

import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from control.lock import (
    LockError,
    backup_key_id,
    backup_sealer,
    backup_version,
    lock,
    make_unlock_key,
    parse_unlock_key,
    unlock,
)
from control.store.sealing import SealBroken

KEY, OTHER = make_unlock_key(b"\1" * 32), make_unlock_key(b"\2" * 32)


@given(st.binary(min_size=32, max_size=32))
@settings(max_examples=50, deadline=None)
def test_a_key_is_what_was_made(raw):
    text = make_unlock_key(raw)
    assert len(text) == len("MSHKEY-1-") + 43
    assert parse_unlock_key(f" {text}\n") == raw


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "there must be an unlock key"),
        ("SWMKEY-1-" + "A" * 43, "it must begin with MSHKEY-1-"),
        (KEY[:-1], "copy all of it"),
        (KEY + "A", "copy all of it"),
        (KEY[:-3] + "é" + KEY[-2:], "copy all of it"),
        (KEY[:-1] + "B", "copy all of it"),  # bits that no byte needs are not 0
    ],
)
def test_what_is_none_is_said_without_repeating_it(text, said):
    with pytest.raises(LockError, match=said) as caught:
        parse_unlock_key(text)
    assert len(text) < 20 or text not in str(caught.value)


def test_only_the_key_in_its_place_opens():
    key = parse_unlock_key(KEY)
    data = lock(key, b"the data", "here", os.urandom)
    assert unlock(key, data, "here") == b"the data"
    for wrong in ((parse_unlock_key(OTHER), data, "here"), (key, data, "there"), (key, data[:-1] + b"\0", "here")):
        with pytest.raises(LockError, match="not the unlock key"):
            unlock(*wrong)
    with pytest.raises(LockError):
        unlock(key, b"", "here")


def test_each_backup_has_its_own_key():
    first, second = (backup_key_id(3, salt * 16) for salt in (b"a", b"b"))
    assert backup_version(first) == "3"
    assert backup_version("") == ""
    data = backup_sealer(KEY, first, os.urandom).seal(b"x", b"")
    assert backup_sealer(KEY, first, os.urandom).unseal(data, b"") == b"x"
    for key, name in ((OTHER, first), (KEY, second)):
        with pytest.raises(SealBroken):
            backup_sealer(key, name, os.urandom).unseal(data, b"")
    with pytest.raises(LockError, match="no backup of a cluster with autolock"):
        backup_sealer(KEY, "0123456789ab", os.urandom)
