"""Expressions of peers: what Python's engine says, but never slowly."""

from __future__ import annotations

import contextlib
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gossip.serf.pattern import SOURCE_MAX, PatternError, compile_pattern


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("^web-[0-9]+$", "web-12"),
        ("^web-[0-9]+$", "web-x"),
        ("a|b|cd", "xxcd"),
        ("x{2,3}?y", "axxy"),
        ("(?:ab|c)*d$", "ababcd"),
        ("[^a-c]", "abc"),
        ("[]a]", "]"),
        ("[a-]", "-"),
        (r"[\d\-x]", "-"),
        (r"\bfoo\b", "a foo b"),
        (r"\bfoo\b", "afoob"),
        (r"\w+\s\S", "ab c"),
        (r"a\.b", "axb"),
        ("(?i)WEB", "my web"),
        ("a{,2}", "a{,2}"),
        ("", ""),
        ("a||b", "q"),
        (".", "\n"),
        ("(?P<n>a)b", "ab"),
    ],
)
def test_as_python(source: str, text: str) -> None:
    assert compile_pattern(source).search(text) == bool(re.search(source, text))
    if "{,2}" not in source:
        assert compile_pattern(source).fullmatch(text) == bool(re.fullmatch(source, text))


ATOMS = st.sampled_from(["a", "b", ".", "[ab]", "[^a]", r"\d", "1", "^", "$", r"\b"])

REPEATS = st.sampled_from(["*", "+", "?", "{2}", "{1,2}", "{1,}"])


@st.composite
def sources(draw: st.DrawFn) -> str:
    tree = st.recursive(
        ATOMS,
        lambda inner: st.one_of(
            st.tuples(inner, inner).map("".join),
            st.tuples(inner, inner).map("|".join),
            inner.map(lambda s: f"(?:{s})"),
            st.tuples(inner, st.sampled_from(["*", "+", "?", "{2}", "{1,2}", "{1,}"])).map(
                lambda p: f"(?:{p[0]}){p[1]}"
            ),
        ),
        max_leaves=6,
    )
    return draw(tree)


@given(sources(), st.text("ab1 ", max_size=8))
@settings(max_examples=100, deadline=None)
def test_as_python_whatever_it_is(source: str, text: str) -> None:
    assert compile_pattern(source).search(text) == bool(re.search(source, text)), (source, text)


@pytest.mark.parametrize("source", ["(a*)*b", "(a|a)*b", "(a+)+$", ".*.*.*.*.*=x"])
def test_what_takes_others_for_ever_takes_no_time(source: str) -> None:
    compile_pattern(source).search("a" * 500 + "!")


@pytest.mark.parametrize(
    "source",
    [
        "(",
        ")",
        "a)",
        "[",
        "[b-a]",
        "*a",
        r"\1",
        "(?=a)",
        "(?P<a",
        "a{1001}",
        "a{3,2}",
        "(" * 40 + ")" * 40,
        "\\",
        "((a{1000}){1000}){1000}",
        "[[:alpha:]]",
        "a" * (SOURCE_MAX + 1),
    ],
)
def test_what_cannot_be_used_is_refused(source: str) -> None:
    with pytest.raises(PatternError):
        compile_pattern(source)


@given(st.text(max_size=20))
@settings(max_examples=100, deadline=None)
def test_any_text_is_an_expression_or_refused(source: str) -> None:
    with contextlib.suppress(PatternError):
        compile_pattern(source).search("some text")
