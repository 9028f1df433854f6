"""Flags and files of the agent."""

from __future__ import annotations

import pytest

from gossip.agent_config import AgentConfig, AgentConfigError, check, help_text, parse_file, parse_flags
from gossip.delegate import Address

KEY = "a2tra2tra2tra2tra2tra2tra2tra2tra2tra2tra2s="


def test_flags_in_every_spelling() -> None:
    words = f"-node n1 -bind=127.0.0.1:7001 --profile local -encrypt {KEY} -tag a=1 -tag b=2=3 -role web -rejoin"
    config = parse_flags([*words.split(), "-join", "127.0.0.1", "-join=[::1]:9", "-replay=false", "-rpc-auth", ""])
    assert config.node == "n1"
    assert config.bind == Address("127.0.0.1", 7001)
    assert config.profile == "local"
    assert config.encrypt == b"k" * 32
    assert config.tags == {"a": "1", "b": "2=3", "role": "web"}
    assert config.join == ("127.0.0.1", "[::1]:9")
    assert config.rejoin is True
    assert config.replay is False


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("127.0.0.1", ("127.0.0.1", 7946)),
        ("127.0.0.1:1", ("127.0.0.1", 1)),
        ("[::1]", ("::1", 7946)),
        ("[::1]:1", ("::1", 1)),
        ("::1", ("::1", 7946)),
    ],
)
def test_places(text: str, place: tuple[str, int]) -> None:
    assert parse_flags(["-bind", text]).bind == place


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["-bind", "here"], '-bind must be ADDRESS or ADDRESS:PORT, not "here"'),
        (["-bind", "1.2.3.4:70000"], "-bind cannot have port 70000"),
        (["-nodes", "x"], '-nodes is not known; did you mean "node"?'),
        (["x"], '"x" is no flag'),
        (["-node"], "-node needs a value"),
        (["-node", ""], "-node must be a name of 1 to 128 bytes"),
        (["-profile", "moon"], '-profile must be lan, wan or local, not "moon"'),
        (["-encrypt", "?"], "-encrypt must be a key in base64"),
        (["-encrypt", "YQ=="], "-encrypt must be a key of 16, 24 or 32 bytes, not 1"),
        (["-tag", "x"], '-tag must be NAME=VALUE, not "x"'),
        (["-event-handler", "x.sh"], "-event-handler is not supported: read the events"),
        (["-log-level", "loud"], "-log-level must be one of TRACE"),
        (["-retry-interval", "soon"], "-retry-interval must be a time"),
        (["-retry-max", "-1"], "-retry-max must be a number"),
        (["-protocol", "1"], "-protocol must be 4 or 5"),
    ],
)
def test_mistakes_are_told_in_a_sentence(words: list[str], sentence: str) -> None:
    with pytest.raises(AgentConfigError) as told:
        parse_flags(words)
    assert str(told.value).startswith(sentence)


def test_files_and_flags_over_them() -> None:
    text = (
        f'{{"node_name": "f", "role": "db", "tags": {{"a": "1"}}, "start_join": ["1.2.3.4"], "encrypt_key": "{KEY}", '
    )
    text += '"retry_interval": "1m30s", "leave_on_terminate": true, "protocol": 5, "bind": "127.0.0.1"}'
    config = parse_flags(["-node", "n", "-tag", "b=2", "-join", "1.2.3.5"], parse_file(text, "x.json", AgentConfig()))
    assert config.node == "n"
    assert config.tags == {"role": "db", "a": "1", "b": "2"}
    assert config.join == ("1.2.3.4", "1.2.3.5")
    assert config.retry_interval_s == 90
    assert config.leave_on_terminate


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("{", "x.json is no JSON"),
        ("[]", "x.json must hold one JSON object"),
        ('{"nod_name": "x"}', 'x.json: "nod_name" is not known; did you mean "node_name"?'),
        ('{"tags": {"a": 1}}', 'x.json: "tags" must be a text'),
        ('{"replay_on_join": 3}', 'x.json: "replay_on_join" must be true or false'),
        ('{"mdns": {}}', 'x.json: "mdns" is not supported'),
    ],
)
def test_mistakes_in_files(text: str, sentence: str) -> None:
    with pytest.raises(AgentConfigError) as told:
        parse_file(text, "x.json", AgentConfig())
    assert str(told.value).startswith(sentence)


def test_what_excludes_each_other() -> None:
    with pytest.raises(AgentConfigError, match="exclude each other"):
        check(AgentConfig(node="n", encrypt=b"k" * 16, keyring_file="x"))
    with pytest.raises(AgentConfigError, match="more than 512 bytes"):
        check(AgentConfig(node="n", tags={"a": "x" * 512}))
    with pytest.raises(AgentConfigError, match="-node"):
        check(AgentConfig())


def test_help_names_all_flags_of_the_issue() -> None:
    for flag in (
        "node",
        "bind",
        "advertise",
        "rpc-addr",
        "rpc-auth",
        "join",
        "profile",
        "encrypt",
        "tag",
        "config-file",
    ):
        assert f"  -{flag} " in help_text()
