"""The agent as a process: flags, files, signals, exit codes. Nobody else is there."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from gossip.agent_config import AgentConfig
from gossip.agent_main import _own_address, load
from gossip.delegate import Address
from gossip.serf_client import SerfClient, SerfConnectionError
from tests.ports import free_port

ROOT = Path(__file__).parents[2]
SCRIPT = "import sys; from gossip.agent_main import main; from tests.gossip.network import lone; "
COMMAND = (sys.executable, "-c", SCRIPT + "sys.exit(main(sys.argv[1:], lone))")


@contextmanager
def running(*flags: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    rpc = f"127.0.0.1:{free_port()}"
    words = (*COMMAND, "-node=me", "-bind=127.0.0.1:7946", f"-rpc-addr={rpc}", *flags)
    process = subprocess.Popen(words, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    try:
        for _ in range(200):
            try:
                with SerfClient(rpc):
                    break
            except SerfConnectionError:
                time.sleep(0.05)
        yield process, rpc
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_end_it(number: signal.Signals) -> None:
    with running() as (process, _):
        process.send_signal(number)
        _, log = process.communicate(timeout=10)
        assert process.returncode == 0
        assert ("agent: leaving" in log) == (number is signal.SIGINT)
        assert "Traceback" not in log


def test_the_rpcs_leave_ends_it() -> None:
    with running() as (process, rpc):
        with SerfClient(rpc) as client:
            client.leave()
        assert process.wait(10) == 0


def test_keys_and_tags_are_kept(tmp_path: Path) -> None:
    keys, tags = tmp_path / "keys.json", tmp_path / "tags.json"
    first, second = "a2tra2tra2tra2tra2tra2tra2tra2tra2tra2tra2s=", "bm5ubm5ubm5ubm5ubm5ubm5ubm5ubm5ubm5ubm5ubm4="
    keys.write_text(json.dumps([first]))
    flags = (f"-keyring-file={keys}", f"-tags-file={tags}")
    with running(*flags) as (_, rpc), SerfClient(rpc) as client:
        assert client.install_key(second).error == ""
        assert client.use_key(second).error == ""
        client.tags({"a": "b"})
    assert json.loads(keys.read_text()) == [second, first]
    assert keys.stat().st_mode & 0o777 == 0o600
    with running(*flags) as (_, rpc), SerfClient(rpc) as client:
        assert client.members()[0].tags == {"a": "b"}
        assert len(client.list_keys().keys) == 2


@pytest.mark.parametrize(
    ("flags", "code", "sentence"),
    [
        (["-nodes", "x"], 2, "-nodes is not known"),
        (["-config-file", "/nonexistent"], 2, "cannot read /nonexistent"),
        (["-node", "x", "-rpc-addr", "192.0.2.1:1"], 1, "cannot serve the RPC on 192.0.2.1:1"),
        (["-node", "x", "-rpc-addr", "", "-join", "nonsense.invalid"], 1, 'Failed to resolve "nonsense.invalid"'),
    ],
)
def test_what_cannot_be_is_said_in_a_sentence(flags: list[str], code: int, sentence: str) -> None:
    ended = subprocess.run((*COMMAND, *flags), cwd=ROOT, capture_output=True, text=True, timeout=30, check=False)
    assert ended.returncode == code
    assert sentence in ended.stderr
    assert "Traceback" not in ended.stderr


def test_help() -> None:
    ended = subprocess.run((*COMMAND, "-h"), cwd=ROOT, capture_output=True, text=True, timeout=30, check=True)
    assert "  -rpc-addr " in ended.stdout


def test_files_under_flags(tmp_path: Path) -> None:
    file = tmp_path / "agent.json"
    file.write_text('{"node_name": "f", "start_join": ["1.2.3.4"], "profile": "wan"}')
    config = load(["-config-file", str(file), "-profile", "local", "-join", "1.2.3.5"])
    assert (config.node, config.profile, config.join) == ("f", "local", ("1.2.3.4", "1.2.3.5"))
    assert load([]).node, "the host name"


def test_who_listens_everywhere_tells_an_address() -> None:
    assert _own_address(Address("127.0.0.1", 1)) is None
    told = _own_address(AgentConfig().bind)
    assert told is not None
    assert told.host != "0.0.0.0"
    assert told.port == 7946
