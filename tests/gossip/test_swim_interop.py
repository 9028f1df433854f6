"""A real `serf agent` and two of ours in this process: joined, told, left and killed, plain and encrypted.

Larger mixed clusters of processes: tests/interop/serf.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
from collections.abc import AsyncIterator, Callable, Iterator

import pytest

from gossip.agent import Agent, AgentEvent
from gossip.delegate import Address, State
from gossip.serf.ports import UserEventSeen
from gossip.service import bind
from tests.gossip.test_agent_network import agent

KEY = b"k" * 32


class Stock:
    """A `serf agent` process."""

    def __init__(self, process: asyncio.subprocess.Process, address: str, rpc: str) -> None:
        self.process, self.address, self.rpc = process, address, rpc

    async def run(self, *arguments: str) -> str:
        """A command of the stock client; its output."""
        command, *rest = arguments
        asked = await asyncio.create_subprocess_exec(
            "serf", command, f"-rpc-addr={self.rpc}", *rest, stdout=asyncio.subprocess.PIPE
        )
        out, _ = await asked.communicate()
        return out.decode()

    async def members(self) -> dict[str, str]:
        try:
            listed = json.loads(await self.run("members", "-format=json"))
        except ValueError:  # it is not up yet
            return {}
        return {one["name"]: one["status"] for one in listed["members"]}


@contextlib.asynccontextmanager
async def stock(name: str, *flags: str) -> AsyncIterator[Stock]:
    with _free() as port, _free() as rpc_port:
        address, rpc = f"127.0.0.1:{port}", f"127.0.0.1:{rpc_port}"
    process = await asyncio.create_subprocess_exec(
        "serf", "agent", f"-node={name}", f"-bind={address}", f"-rpc-addr={rpc}", *flags,
        stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    made = Stock(process, address, rpc)
    try:
        await _until(made.members)
        yield made
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


@contextlib.contextmanager
def _free() -> Iterator[int]:
    sockets = bind(Address("127.0.0.1", 0))
    try:
        yield sockets.port
    finally:
        sockets.close()


async def _until(true: Callable[[], object], limit_s: float = 20.0) -> None:
    async with asyncio.timeout(limit_s):
        while True:
            found = true()
            if asyncio.iscoroutine(found):
                found = await found
            if found:
                return
            await asyncio.sleep(0.05)


def _states(one: Agent) -> dict[str, State]:
    return {member.name: member.state for member in one.membership.members()}


def _heard(events: list[AgentEvent], name: str) -> bool:
    return any(isinstance(event, UserEventSeen) and event.name == name for event in events)


@pytest.mark.parametrize("keys", [(), (KEY,)], ids=["plain", "encrypted"])
async def test_with_a_stock_agent(keys: tuple[bytes, ...]) -> None:
    flags = [f"-encrypt={base64.b64encode(key).decode()}" for key in keys]
    async with stock("stock", *flags) as serf, agent("a", keys=keys) as (a, heard):
        assert await a.join([serf.address]) == (1, "")
        async with agent("b", keys=keys) as (b, _):
            assert await b.join([serf.address]) == (1, "")
            everybody = dict.fromkeys(("stock", "a", "b"), "alive")

            async def complete() -> bool:
                return await serf.members() == everybody

            await _until(complete)
            await _until(lambda: _states(a) == _states(b) == dict.fromkeys(everybody, State.ALIVE))
            await serf.run("event", "-coalesce=false", "deploy", "now")
            await _until(lambda: _heard(heard, "deploy"))
            await b.leave()

        async def gone() -> bool:
            return (await serf.members())["b"] == "left"

        await _until(gone)
        serf.process.kill()
        await _until(lambda: _states(a)["stock"] is State.DEAD)
        assert a.membership.alive_count == 1
