import asyncio
import contextlib

import pytest

from tests.control.transport.certificates import authority
from tests.control.transport.twins import Manager


@pytest.fixture
async def make(tmp_path):
    """Managers that are stopped at the end."""
    made = []

    def one(node_id: str, **options) -> Manager:
        made.append(Manager(tmp_path, node_id, **options))
        return made[-1]

    yield one
    for manager in made:
        await manager.stop()


class Middle:
    """A TCP relay that can hold what goes through, break, or change a byte."""

    def __init__(self, target: str) -> None:
        host, _, port = target.rpartition(":")
        self.target = host, int(port)
        self.passed = 0
        self.break_after: int | None = None  # bytes
        self.flip_at: int | None = None
        self.open = asyncio.Event()
        self.open.set()
        self.writers = []

    async def start(self) -> "Middle":
        self.server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.address = f"127.0.0.1:{self.server.sockets[0].getsockname()[1]}"
        return self

    async def _serve(self, reader, writer):
        self.writers.append(writer)
        with contextlib.suppress(OSError):
            there_reader, there = await asyncio.open_connection(*self.target)
            self.writers.append(there)
            async with asyncio.TaskGroup() as group:
                group.create_task(self._pump(reader, there, counted=True))
                group.create_task(self._pump(there_reader, writer, counted=False))

    async def _pump(self, reader, writer, *, counted):
        with contextlib.suppress(OSError):
            while data := await reader.read(65_536):
                await self.open.wait()
                if counted:
                    if self.flip_at is not None and self.passed <= self.flip_at < self.passed + len(data):
                        at = self.flip_at - self.passed
                        data = data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]
                        self.flip_at = None
                    self.passed += len(data)
                    if self.break_after is not None and self.passed > self.break_after:
                        self.break_after = None
                        self.cut()
                        return
                writer.write(data)
                await writer.drain()
        writer.close()

    def cut(self):
        for writer in self.writers:
            writer.transport.abort()
        self.writers.clear()

    async def stop(self):
        self.open.set()
        self.server.close()
        self.cut()
        await asyncio.sleep(0)


@pytest.fixture
async def middle():
    made = []

    async def one(target: str) -> Middle:
        made.append(await Middle(target).start())
        return made[-1]

    yield one
    for relay in made:
        await relay.stop()


@pytest.fixture(scope="module")
def tls_of(tmp_path_factory):
    return authority(tmp_path_factory.mktemp("tls"))
