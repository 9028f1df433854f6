"""Join tokens and secrets."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from control.token import (
    JoinToken,
    TokenError,
    base36,
    make_id,
    make_token,
    parse_token,
    same,
    secret_digest,
    with_digest,
)

SECRET = bytes(range(16))
DIGEST, OTHER = "d" * 50, "e" * 50


def test_a_token_names_its_cluster_and_carries_its_secret() -> None:
    token = make_token(DIGEST, SECRET)
    assert token.startswith("MTKN-1-")
    assert parse_token(token) == JoinToken(DIGEST, make_id(SECRET))
    assert str(parse_token(f"  {token}\n")) == token, "pasted with blanks around it"
    assert with_digest(token, OTHER) == make_token(OTHER, SECRET)
    assert [len(part) for part in token.split("-")] == [4, 1, 50, 25]


@settings(deadline=None, max_examples=100)
@given(st.binary(min_size=16, max_size=16), st.binary(min_size=16, max_size=16))
def test_different_secrets_make_different_tokens(one: bytes, other: bytes) -> None:
    assert (make_token(DIGEST, one) == make_token(DIGEST, other)) == (one == other)
    parse_token(make_token(DIGEST, one))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "SWMTKN-1-abc-def",
        "MTKN-2-" + "0" * 50 + "-" + "0" * 25,
        "MTKN-1-" + "0" * 49 + "-" + "0" * 25,
        "MTKN-1-" + "0" * 50 + "-" + "0" * 24,
        "MTKN-1-" + "0" * 50 + "-" + "0" * 25 + "-x",
        "MTKN-1-" + "A" * 50 + "-" + "0" * 25,
        "MTKN-1-" + "é" * 50 + "-" + "0" * 25,
        "MTKN-1-" + "٣" * 50 + "-" + "0" * 25,
    ],
)
def test_what_is_no_token_is_refused_with_what_to_do(text: str) -> None:
    with pytest.raises(TokenError, match="mesh join-token"):
        parse_token(text)


@settings(deadline=None, max_examples=100)
@given(st.text(max_size=120))
def test_no_text_crashes_the_parser(text: str) -> None:
    with contextlib.suppress(TokenError):
        assert str(parse_token(text)) == text.strip()


def test_same_compares_secrets() -> None:
    assert same("abc", "abc")
    assert not same("abc", "abd")
    assert not same("abc", "abcd")
    assert not same("", ""), "an empty secret opens nothing"
    assert not same("é", "e")


def test_base36() -> None:
    assert base36(b"\x00", 3) == "000"
    assert base36(b"\x23", 1) == "z"
    assert base36(b"\x24", 2) == "10"
    assert base36(b"\xff" * 16, 25) == "f5lxx1zz5pnorynqglhzmsp33"
    assert len(make_id(b"\xff" * 16)) == len(make_id(b"\x00" * 16)) == 25


def test_secret_digest_is_sha256() -> None:
    assert secret_digest("abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
