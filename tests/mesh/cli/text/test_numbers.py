"""Durations and sizes."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mesh.cli.text import TextError
from mesh.cli.text.duration import format_duration, human_duration, parse_duration
from mesh.cli.text.size import format_size, parse_size


@pytest.mark.parametrize(
    ("text", "seconds", "shown"),
    [
        ("0", 0.0, "0s"),
        ("0s", 0.0, "0s"),
        ("10s", 10.0, "10s"),
        ("1m30s", 90.0, "1m30s"),
        ("500ms", 0.5, "500ms"),
        (".5s", 0.5, "500ms"),
        ("1.5h", 5400.0, "1h30m0s"),
        ("90m", 5400.0, "1h30m0s"),
        ("1h1ms", 3600.001, "1h0m0.001s"),
        ("100us", 0.0001, "100us"),
        ("100µs", 0.0001, "100us"),
        ("5ns", 5e-9, "5ns"),
        ("2160h", 7776000.0, "2160h0m0s"),
        ("60s", 60.0, "1m0s"),
    ],
)
def test_durations(text: str, seconds: float, shown: str) -> None:
    assert parse_duration(text) == pytest.approx(seconds)
    assert format_duration(seconds) == shown


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("10", '"10" is not a duration: write 10s for seconds'),
        ("", '"" is not a duration: such as 10s, 1m30s, 500ms'),
        ("-1s", '"-1s" is not a duration: such as 10s, 1m30s, 500ms'),
        ("1x", '"1x" is not a duration: such as 10s, 1m30s, 500ms'),
        ("1s 2s", '"1s 2s" is not a duration: such as 10s, 1m30s, 500ms'),
        ("s", '"s" is not a duration: such as 10s, 1m30s, 500ms'),
        ("1s1", '"1s1" is not a duration: such as 10s, 1m30s, 500ms'),
        ("9999999h", '"9999999h" is too long for a duration'),
    ],
)
def test_bad_durations(text: str, sentence: str) -> None:
    with pytest.raises(TextError) as caught:
        parse_duration(text)
    assert str(caught.value) == sentence


@given(st.integers(0, 10**15))
@settings(max_examples=100, deadline=None)
def test_durations_read_back_exactly(microseconds: int) -> None:
    assert parse_duration(format_duration(microseconds / 1e6)) == pytest.approx(microseconds / 1e6, abs=1e-6)


@given(st.text(max_size=20))
@settings(max_examples=100, deadline=None)
def test_any_text_is_read_or_refused(text: str) -> None:
    for parse in (parse_duration, parse_size):
        with contextlib.suppress(TextError):
            assert parse(text) >= 0


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.0, "Less than a second"),
        (0.99, "Less than a second"),
        (1.2, "1 second"),
        (59.9, "59 seconds"),
        (60, "About a minute"),
        (120, "2 minutes"),
        (59 * 60, "59 minutes"),
        (3600, "About an hour"),
        (3600 * 1.5, "2 hours"),
        (3600 * 47, "47 hours"),
        (3600 * 48, "2 days"),
        (86400 * 14, "2 weeks"),
        (86400 * 60, "2 months"),
        (86400 * 730, "2 years"),
        (-5, "Less than a second"),
    ],
)
def test_words_for_durations_are_those_of_docker(seconds: float, words: str) -> None:
    assert human_duration(seconds) == words


@pytest.mark.parametrize(
    ("text", "size", "shown"),
    [
        ("100", 100, "100B"),
        ("100b", 100, "100B"),
        ("64M", 64 << 20, "64MiB"),
        ("64mb", 64 << 20, "64MiB"),
        ("64MiB", 64 << 20, "64MiB"),
        ("1.5g", 3 << 29, "1.5GiB"),
        ("512 k", 512 << 10, "512KiB"),
        ("2T", 2 << 40, "2TiB"),
        ("1p", 1 << 50, "1PiB"),
        ("0", 0, "0B"),
    ],
)
def test_sizes(text: str, size: int, shown: str) -> None:
    assert parse_size(text) == size
    assert format_size(size) == shown


@pytest.mark.parametrize("text", ["", "M", "-1M", "1x", "1.M", "1e3", "0x10", "64 MB extra"])
def test_bad_sizes(text: str) -> None:
    with pytest.raises(TextError) as caught:
        parse_size(text)
    assert str(caught.value) == f'"{text}" is not a size: such as 64M, 1.5G, 512K'
