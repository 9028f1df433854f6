"""The plugin of a daemon: its socket, and while the node is a member the book, the driver, and who follows the engine.

The socket answers as long as the daemon lives, so that an engine never waits for one that is not there. On a node in no
cluster every call but the first is refused with a sentence.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from control.rpc import control_pb2 as pb
from mesh.agent.agent import Agent
from mesh.executor.docker.engine import Engine
from mesh.executor.protocol import ExecutorError
from mesh.plugin.book import BookError
from mesh.plugin.driver import Driver, DriverError
from mesh.plugin.follow import Follower
from mesh.plugin.keeper import Keeper
from mesh.plugin.labels import LabelError, read_labels
from mesh.plugin.server import serve_plugin

log = logging.getLogger(__name__)

BOOK_FILE = "containers.json"
# A daemon that starts is a member of its cluster long before; an engine waits 30 s for an answer.
MEMBER_WAIT_S = 20.0
CAPABILITIES: dict[str, Mapping[str, Any]] = {
    "/Plugin.Activate": {"Implements": ["NetworkDriver", "IpamDriver"]},
    "/NetworkDriver.GetCapabilities": {"Scope": "local", "ConnectivityScope": "global"},
    "/IpamDriver.GetCapabilities": {"RequiresMACAddress": False, "RequiresRequestReplay": False},
    "/IpamDriver.GetDefaultAddressSpaces": {
        "LocalDefaultAddressSpace": "mesh-local",
        "GlobalDefaultAddressSpace": "mesh-global",
    },
}


class AttachError(Exception):
    """A container cannot be attached or detached. One sentence for the user."""


class Plugin:
    """See the module."""

    def __init__(self, path: Path, engine: Engine, state_dir: Path, wall_ms: Callable[[], int]) -> None:
        self._path, self._engine = path, engine
        self._book, self._wall_ms = state_dir / BOOK_FILE, wall_ms
        self._driver: Driver | None = None
        self.follower: Follower | None = None
        self._ready = asyncio.Event()
        self.expected: Callable[[], bool] = lambda: False  # whether the node is, or is about to be, a member

    async def serve(self) -> None:
        """Answer the engine until cancelled. A socket that cannot be had is no reason not to run tasks."""
        try:
            await serve_plugin(self._path, self.call)
        except OSError as error:
            log.warning("cannot serve as a plugin of Docker", extra={"path": str(self._path), "error": str(error)})

    @asynccontextmanager
    async def member(self, agent: Agent) -> AsyncIterator[Follower]:
        """While the node is a member. Nothing is kept of a cluster that the node has left (`forget`)."""
        keeper = Keeper(agent, self._book, self._wall_ms)
        self._driver = Driver(keeper)
        self.follower = Follower(keeper, self._engine)
        self._ready.set()
        try:
            yield self.follower
        finally:
            self._ready.clear()
            self._driver = self.follower = None

    async def run(self, agent: Agent) -> None:
        """Follow the engine while the node is a member."""
        async with self.member(agent) as follower:
            await follower.run()

    async def attach(self, request: pb.AttachRequest) -> list[str]:
        """Attach or detach a container: the networks and addresses. Raises AttachError."""
        if self.follower is None:
            raise AttachError("this node is in no cluster")
        try:
            if request.detach:
                entries = self.follower.detach(request.container, request.network)
            else:
                labels = read_labels(dict(request.labels))
                entries = [await self.follower.attach(request.container, request.network, labels)]
        except (DriverError, BookError, LabelError, ExecutorError) as error:
            raise AttachError(str(error)) from error
        except OSError as error:
            raise AttachError(f"cannot write the state of this node: {error.strerror}") from error
        return [self.follower.describe(entry) for entry in entries]

    def forget(self) -> None:
        """The node has left its cluster."""
        self._book.unlink(missing_ok=True)

    async def call(self, method: str, body: bytes) -> Mapping[str, Any]:
        """One call of the engine. Raises DriverError and WireError."""
        if self.expected():
            try:
                async with asyncio.timeout(MEMBER_WAIT_S):
                    await self._ready.wait()
            except TimeoutError as error:
                raise DriverError("meshd is not ready yet") from error
        if method in CAPABILITIES:
            return CAPABILITIES[method]
        driver = self._driver
        if driver is None:
            if method.endswith((".Leave", ".DeleteEndpoint", ".ReleaseAddress", ".ReleasePool", ".DeleteNetwork")):
                return {}  # of a cluster that this node has left
            raise DriverError('this node is in no cluster: start one with "mesh init", or enter one with "mesh join"')
        return await driver.call(method, body)
