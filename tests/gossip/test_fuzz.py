"""A few thousand hostile inputs into the whole stack and into each parser; more by `python -m tests.fuzz.gossip.run`
and `python -m tests.fuzz.gossip.parsers`."""

from __future__ import annotations

import pytest

from gossip.agent_config import AgentConfig, AgentConfigError, parse_file
from gossip.serf.messages import decode_filter
from gossip.serf.pack import BadMessage
from tests.fuzz.gossip.parsers import PARSERS, fuzz_parser
from tests.fuzz.gossip.run import ROUND, fuzz


def test_hostile_inputs_break_nothing() -> None:
    kinds = fuzz(seed=1, first=0, count=8)
    kinds.pop("slow", None)
    assert sum(kinds.values()) == 8 * ROUND


@pytest.mark.parametrize("parser", PARSERS)
def test_a_parser_gives_a_value_or_its_own_error(parser: str) -> None:
    fuzz_parser(parser, seed=1, number=0, count=500)


def test_an_empty_filter_is_refused() -> None:
    """Found by the fuzzer."""
    with pytest.raises(BadMessage):
        decode_filter(b"")


@pytest.mark.parametrize("text", ['{"node_name": "\\ud800"}', '{"role": "\\ud800"}', '{"profile": []}'])
def test_settings_that_are_no_text_are_told_in_a_sentence(text: str) -> None:
    """Found by the fuzzer, or on the way to what it found."""
    with pytest.raises(AgentConfigError, match="must be a text"):
        parse_file(text, "file", AgentConfig())
