"""Our client and `mesh gossip` with a real `serf agent`."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from gossip.serf_client import SerfClient, SerfConnectionError, SerfError
from mesh.cli.errors import ExitCode
from mesh.cli.main import run
from tests.ports import free_port, free_ports

KEY = "a2tra2tra2tra2tra2tra2tra2tra2tra2tra2tra2s="
OTHER = "bm5ubm5ubm5ubm5ubm5ubm5ubm5ubm5ubm5ubm5ubm4="


@dataclass(frozen=True)
class RealAgent:
    """Where one is."""

    rpc: str
    bind: str


@pytest.fixture(scope="module")
def real() -> Iterator[RealAgent]:
    bind, rpc = (f"127.0.0.1:{port}" for port in free_ports(2))
    command = ["serf", "agent", "-node=real", f"-bind={bind}", f"-rpc-addr={rpc}", f"-encrypt={KEY}", "-tag=role=web"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(200):
            try:
                SerfClient(rpc).connect()
                break
            except SerfConnectionError:
                time.sleep(0.05)
        yield RealAgent(rpc, bind)
    finally:
        process.kill()
        process.wait()


@pytest.fixture
def client(real: RealAgent) -> Iterator[SerfClient]:
    with SerfClient(real.rpc) as connected:
        yield connected


def test_members(client: SerfClient, real: RealAgent) -> None:
    (me,) = client.members()
    assert (me.name, f"{me.address}:{me.port}", me.tags["role"], me.status) == ("real", real.bind, "web", "alive")
    assert me.protocol == (1, 5, 2)
    assert client.members_filtered({"role": "w.*"}, "alive", "real") == [me]
    assert client.members_filtered(status="failed") == []


def test_tags(client: SerfClient) -> None:
    client.tags({"a": "1", "b": "2"})
    client.tags({"b": "3"}, ["a"])
    assert client.members()[0].tags == {"role": "web", "b": "3"}


def test_events_and_queries_by_stream(client: SerfClient, real: RealAgent) -> None:
    with SerfClient(real.rpc) as other:
        records = other.stream("user:deploy,query:ping")
        client.event("other", b"", coalesce=False)
        client.event("deploy", b"\x00\xff", coalesce=False)  # others are held back for a while
        record = next(records)
        assert (record["Event"], record["Name"], record["Payload"]) == ("user", "deploy", b"\x00\xff")
        answers = client.query("ping", b"?", ack=True, timeout_s=5.0)  # asked for until then
        record = next(records)
        other.respond(record["ID"], b"pong")
        assert sorted(answers) == [("ack", "real", b""), ("response", "real", b"pong")]  # as they happen to come


def test_a_query_for_somebody_else_is_over_in_time(client: SerfClient) -> None:
    assert list(client.query("ping", nodes=["nobody"], ack=True, timeout_s=0.2)) == []


def test_keys(client: SerfClient) -> None:
    assert client.install_key(OTHER).error == ""
    assert client.use_key(OTHER).error == ""
    assert client.remove_key(KEY).error == ""
    assert client.list_keys().keys == {OTHER: 1}
    assert "1/1 nodes reported failure" in client.use_key(KEY).error


def test_errors_are_the_agents(client: SerfClient) -> None:
    with pytest.raises(SerfError, match="Failed to join"):
        client.join(["127.0.0.1:1"])
    with pytest.raises(SerfError, match="limit of 512 bytes"):
        client.event("x", b"y" * 600)
    with pytest.raises(SerfError, match="No pending queries"):
        client.respond(77, b"")
    client.force_leave("nobody")


def test_monitor(client: SerfClient, real: RealAgent) -> None:
    with SerfClient(real.rpc) as other:
        lines = other.monitor("debug")
        assert "agent" in next(lines)


def test_stats_and_coordinate(client: SerfClient) -> None:
    assert client.stats()["serf"]["members"] == "1"
    place = client.get_coordinate("real")
    assert place is not None
    assert len(place["Vec"]) == 8
    assert client.get_coordinate("nobody") is None


# The command


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        (["members"], "real"),
        (["members", "--status", "alive", "--tag", "role=web", "--format", "json"], '"name": "real"'),
        (["event", "deploy", "v1"], ""),
        (["query", "load", "--timeout", "200ms"], "ack from real"),
        (["query", "load", "--timeout", "200ms", "--node", "real", "--format", "json"], '"type": "ack"'),
        (["keys", "ls"], "1/1"),
        (["keys", "generate"], "="),
        (["rtt", "real", "real"], "Estimated real <-> real rtt: 0.0"),
        (["rtt", "real"], "Estimated real <-> real rtt: 0.0"),
        (["stats"], "members = 1"),
        (["stats", "--format", "json"], '"serf"'),
    ],
    ids=lambda words: " ".join(words) if isinstance(words, list) else "",
)
def test_mesh_gossip(real: RealAgent, capsys: pytest.CaptureFixture[str], words: list[str], shown: str) -> None:
    options = [] if words == ["keys", "generate"] else ["--rpc-addr", real.rpc]
    assert run(["gossip", *words, *options]) == ExitCode.OK
    out = capsys.readouterr().out
    assert shown in out
    if "json" in words and words[0] != "query":
        json.loads(out)


def test_mesh_gossip_when_it_fails(real: RealAgent, capsys: pytest.CaptureFixture[str]) -> None:
    port = free_port()
    assert run(["gossip", "members", "--rpc-addr", f"127.0.0.1:{port}"]) == ExitCode.UNAVAILABLE
    assert "cannot reach the gossip agent" in capsys.readouterr().err
    assert run(["gossip", "rtt", "nobody", "--rpc-addr", real.rpc]) == ExitCode.NOT_FOUND
    assert run(["gossip", "members", "--tag", "x", "--rpc-addr", real.rpc]) == ExitCode.USAGE
    assert run(["gossip", "keys", "use", "Zm9v", "--rpc-addr", real.rpc]) == ExitCode.FAILED
