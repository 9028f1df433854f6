"""Serf's RPC against a node on its own: our client, the real `serf` command, and bytes that are no client's."""

from __future__ import annotations

import asyncio
import contextlib
import random
import secrets
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import TypeVar

import pytest

from gossip import rpc
from gossip.agent import Agent, AgentSettings
from gossip.delegate import Address, Change, MemberEvent
from gossip.rpc_server import STREAMS_MAX, UNREAD_MAX
from gossip.serf_client import SerfClient, SerfConnectionError, SerfError
from tests.gossip.network import lone
from tests.gossip.serf.membership import member
from tests.ports import free_port

X = TypeVar("X")
GOLDEN_HANDSHAKE = bytes.fromhex("82a7436f6d6d616e64a968616e647368616b65a353657101 81a756657273696f6e01")
GOLDEN_REPLY = bytes.fromhex("82a54572726f72a0a353657101")


@pytest.fixture
async def agent() -> AsyncIterator[Agent]:
    settings = AgentSettings("me", Address("127.0.0.1", 7946), tags={"role": "web"}, keys=[b"k" * 32])
    made = Agent(settings, lone, source=random.Random(1), nonce=secrets.token_bytes)
    await made.start()
    yield made
    await made.close()


@pytest.fixture
async def address(agent: Agent) -> str:
    place = f"127.0.0.1:{free_port()}"
    await agent.serve_rpc(place)
    return place


async def client(address: str, do: Callable[[SerfClient], X], auth_key: str = "") -> X:
    """Run a blocking client beside the loop."""

    def work() -> X:
        with SerfClient(address, auth_key) as connected:
            return do(connected)

    return await asyncio.to_thread(work)


async def serf(address: str, *words: str) -> tuple[int, str]:
    """Run the real command."""
    command = ("serf", words[0], f"-rpc-addr={address}", *words[1:])
    process = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    async with asyncio.timeout(30):
        out, _ = await process.communicate()
    assert process.returncode is not None
    return process.returncode, out.decode()


async def raw(address: str, data: bytes, size: int = 1 << 16) -> bytes:
    host, _, port = address.partition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(data)
    async with asyncio.timeout(5):
        got = await reader.read(size)
    writer.close()
    return got


async def test_golden_handshake(address: str) -> None:
    assert await raw(address, GOLDEN_HANDSHAKE) == GOLDEN_REPLY
    assert rpc.encode({"Command": "handshake", "Seq": 1}, {"Version": 1}) == GOLDEN_HANDSHAKE


async def test_commands_of_our_client(agent: Agent, address: str) -> None:
    (me,) = await client(address, lambda c: c.members())
    assert (me.name, me.address, me.port, me.tags, me.status) == ("me", "127.0.0.1", 7946, {"role": "web"}, "alive")
    await client(address, lambda c: c.event("deploy", b"v1"))
    assert agent.core.event_clock.time == 2
    await client(address, lambda c: c.tags({"a": "b"}, ["role"]))
    assert agent.core.tags == {"a": "b"}
    assert await client(address, lambda c: len(c.members_filtered({"a": "b"}, "al.*", "m."))) == 1
    assert await client(address, lambda c: c.members_filtered(name="m")) == []
    assert (await client(address, lambda c: c.stats()))["serf"]["members"] == "1"
    assert (await client(address, lambda c: c.get_coordinate("me")))["Height"] > 0  # type: ignore[index]
    assert await client(address, lambda c: c.get_coordinate("you")) is None
    await client(address, lambda c: c.force_leave("you"))
    assert await client(address, lambda c: list(c.query("q", ack=True, timeout_s=0.2))) == [("ack", "me", b"")]


async def test_keys(agent: Agent, address: str) -> None:
    new = "bm5ubm5ubm5ubm5ubm5ubm5ubm5ubm5ubm5ubm5ubm4="
    assert (await client(address, lambda c: c.install_key(new))).error == ""
    assert (await client(address, lambda c: c.use_key(new))).error == ""
    listed = await client(address, lambda c: c.list_keys())
    assert listed.keys[new] == 1
    assert len(listed.keys) == 2
    refused = await client(address, lambda c: c.remove_key(new))
    assert refused.error == "1/1 nodes reported failure"
    assert "primary" in refused.messages["me"]
    assert "base64" in (await client(address, lambda c: c.install_key("?"))).error
    assert agent.ring.keys[0] == b"n" * 32


async def test_a25_key_commands_without_encryption() -> None:
    made = Agent(
        AgentSettings("me", Address("127.0.0.1", 7946)), lone, source=random.Random(1), nonce=secrets.token_bytes
    )
    await made.start()
    place = f"127.0.0.1:{free_port()}"
    await made.serve_rpc(place)
    try:
        report = await client(place, lambda c: c.install_key("bm5ubm5ubm5ubm5ubm5ubm5ubm5ubm5ubm5ubm5ubm4="))
        assert report.messages == {"me": "No keyring to modify (encryption not enabled)"}
        assert report.error == "1/1 nodes reported failure"
    finally:
        await made.close()


async def test_a25_auth_comes_first(agent: Agent) -> None:
    place = f"127.0.0.1:{free_port()}"
    await agent.serve_rpc(place, "secret")
    with pytest.raises(SerfError, match="Authentication required"):
        await client(place, lambda c: c.members())
    with pytest.raises(SerfError, match="Invalid authentication token"):
        await client(place, lambda c: c.members(), "wrong")
    assert len(await client(place, lambda c: c.members(), "secret")) == 1


async def test_handshake_comes_first_and_once(address: str) -> None:
    head = rpc.encode({"Command": "members", "Seq": 3})
    assert b"Handshake required" in await raw(address, head)
    assert b"Unsupported IPC version" in await raw(
        address, rpc.encode({"Command": "handshake", "Seq": 0}, {"Version": 9})
    )

    def twice(connected: SerfClient) -> None:
        connected.handshake()

    with pytest.raises(SerfError, match="Handshake already performed"):
        await client(address, twice)


async def test_an_unknown_command_ends_the_connection(address: str) -> None:
    host, _, port = address.partition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(GOLDEN_HANDSHAKE + rpc.encode({"Command": "dance", "Seq": 2}))
    async with asyncio.timeout(5):
        got = await reader.read(-1)
    assert b"Unsupported command" in got
    writer.close()


@pytest.mark.parametrize(
    "junk",
    [
        b"\xc1",
        b"GET / HTTP/1.1\r\n\r\n",
        b"\xdf\xff\xff\xff\xff",
        b"\x82\xa7Command\xdb\xff\xff\xff\xff" + b"x" * 100,
        b"\x91" * 5000,
        b"\x81\xa7Command\x01",
    ],
)
async def test_junk_ends_the_connection_and_nothing_else(address: str, junk: bytes) -> None:
    with contextlib.suppress(TimeoutError, ConnectionResetError):
        async with asyncio.timeout(0.3):
            await raw(address, junk)
    assert len(await client(address, lambda c: c.members())) == 1


async def test_an_object_that_never_ends_is_refused(address: str) -> None:
    host, _, port = address.partition(":")
    _, writer = await asyncio.open_connection(host, int(port))
    writer.write(b"\xdb\x7f\xff\xff\xff")

    async def flood() -> None:
        for _ in range(200):
            writer.write(b"x" * (64 << 10))
            await writer.drain()
            await asyncio.sleep(0)

    with pytest.raises((ConnectionResetError, BrokenPipeError)):
        await flood()
    writer.close()


async def test_streams(agent: Agent, address: str) -> None:
    loop = asyncio.get_running_loop()
    opened = asyncio.Event()

    def read(connected: SerfClient) -> list[str]:
        records = connected.stream("user:deploy,member-join,query")
        loop.call_soon_threadsafe(opened.set)
        found = []
        for record in records:
            found.append(record["Event"])
            if record["Event"] == "query":
                connected.respond(record["ID"], b"pong")
                return found
        return found

    async with asyncio.TaskGroup() as tasks:
        reading = tasks.create_task(client(address, read))
        await opened.wait()
        agent.user_event("other", b"")
        agent.user_event("deploy", b"x")
        agent.core.member_changed(MemberEvent(Change.JOINED, member("a"), None), 0.0)
        await asyncio.sleep(0.05)
        answers = await client(address, lambda c: list(c.query("ping", timeout_s=0.5)))
    assert reading.result() == ["user", "member-join", "query"]
    assert answers == [("response", "me", b"pong")]


async def test_streams_are_bounded_and_named(address: str) -> None:
    def many(connected: SerfClient) -> None:
        for _ in range(STREAMS_MAX + 1):
            connected.stream("user")

    with pytest.raises(SerfError, match="Too many streams"):
        await client(address, many)
    with pytest.raises(SerfError, match="Invalid event filter"):
        await client(address, lambda c: c.stream("nonsense"))


async def test_a_client_that_does_not_read_loses_records_and_harms_nobody(agent: Agent, address: str) -> None:
    host, _, port = address.partition(":")
    reader, writer = await asyncio.open_connection(host, int(port), limit=1)
    writer.write(GOLDEN_HANDSHAKE + rpc.encode({"Command": "stream", "Seq": 2}, {"Type": "user"}))
    await asyncio.sleep(0.05)
    assert agent.rpc is not None
    for turn in range(30_000):
        agent.user_event("e", b"x" * 400)
        if turn % 500 == 0:
            await asyncio.sleep(0)
            if agent.rpc.counts["records_dropped"]:
                break
    assert agent.rpc.counts["records_dropped"]
    (stuck,) = agent.rpc._clients
    assert stuck.writer.transport.get_write_buffer_size() < UNREAD_MAX + 4096
    assert len(await client(address, lambda c: c.members())) == 1
    del reader
    writer.transport.abort()


async def test_monitor_shows_old_and_new_lines(agent: Agent, address: str) -> None:
    agent.log("DEBUG", "not shown")
    agent.log("WARN", "before")

    def read(connected: SerfClient) -> list[str]:
        lines = connected.monitor("warn")
        first = next(lines)
        agent._loop.call_soon_threadsafe(agent.log, "ERR", "after")
        return [first, next(lines)]

    assert await client(address, read) == ["before", "after"]
    with pytest.raises(SerfError, match="Unknown log level: LOUD"):
        await client(address, lambda c: c.monitor("loud"))


async def test_leave_ends_the_agent(agent: Agent, address: str) -> None:
    await client(address, lambda c: c.leave())
    assert agent.stopped.is_set()
    with pytest.raises(SerfError, match="leaving"):
        await client(address, lambda c: c.event("x"))


async def test_a_unix_socket_is_for_its_owner(agent: Agent, tmp_path: Path) -> None:
    place = tmp_path / "rpc.sock"
    place.touch()  # one of before
    await agent.serve_rpc(str(place))
    assert place.stat().st_mode & 0o777 == 0o600
    assert len(await client(str(place), lambda c: c.members())) == 1


async def test_nobody_there_is_said_in_a_sentence() -> None:
    port = free_port()
    with pytest.raises(SerfConnectionError, match=f"cannot reach the gossip agent at 127.0.0.1:{port}"):
        await client(f"127.0.0.1:{port}", lambda c: c.members())


# The real command: each of its subcommands that speaks to an agent


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        (["members"], "127.0.0.1:7946  alive  role=web"),
        (["members", "-status=alive", "-name=m.", "-tag=role=w.b", "-format=json"], '"status": "alive"'),
        (["members", "-detailed"], "Protocol Version: 5"),
        (["event", "deploy", "v1"], "Event 'deploy' dispatched"),
        (["tags", "-set", "a=b", "-delete", "role"], "Successfully updated agent tags"),
        (["info"], "members = 1"),
        (["rtt", "me", "me"], "Estimated me <-> me rtt"),
        (["reachability"], "Successfully contacted all live nodes"),
        (["query", "-timeout=300ms", "load"], "Total Acks: 1"),
        (["force-leave", "gone"], ""),
        (["keys", "-list"], "a2tra2tra2tra2tra2tra2tra2tra2tra2tra2tra2s=  [1/1]"),
        (["keys", "-install", "bm5ubm5ubm5ubm5ubm5ubm5ubm5ubm5ubm5ubm5ubm4="], "Successfully installed key"),
        (["keys", "-use", "a2tra2tra2tra2tra2tra2tra2tra2tra2tra2tra2s="], "Successfully changed primary key"),
        (["keys", "-remove", "bm5ubm5ubm5ubm5ubm5ubm5ubm5ubm5ubm5ubm5ubm4="], "Successfully removed key"),
        (["leave"], "Graceful leave complete"),
    ],
    ids=lambda words: " ".join(words) if isinstance(words, list) else "",
)
async def test_the_serf_command(address: str, words: list[str], shown: str) -> None:
    code, out = await serf(address, *words)
    assert code == 0, out
    assert shown in out


async def test_the_serf_command_when_a_join_fails(agent: Agent, address: str) -> None:
    code, out = await serf(address, "join", "nonsense.invalid")
    assert code == 1
    assert "nonsense.invalid" in out


async def test_serf_monitor(agent: Agent, address: str) -> None:
    process = await asyncio.create_subprocess_exec(
        "serf", "monitor", f"-rpc-addr={address}", stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    seen = b""
    assert process.stdout is not None
    try:
        async with asyncio.timeout(10):
            while b"User event" not in seen and b"Event Info" not in seen:
                agent.user_event("deploy", secrets.token_bytes(4))
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(0.2):
                        seen += await process.stdout.read(4096)
    finally:
        process.kill()
        await process.wait()
    assert b"deploy" in seen
