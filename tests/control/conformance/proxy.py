import asyncio
import contextlib


class Proxy:
    """A TCP connection that can be cut in the middle: half-dead, as when a cable is pulled, or for good."""

    def __init__(self, target: tuple[str, int]) -> None:
        self.target = target
        self.through = asyncio.Event()
        self.through.set()
        self.writers: set[asyncio.StreamWriter] = set()

    async def start(self) -> str:
        self.server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.address = f"127.0.0.1:{self.server.sockets[0].getsockname()[1]}"
        return self.address

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.writers.add(writer)
        with contextlib.suppress(OSError):
            there_reader, there = await asyncio.open_connection(*self.target)
            self.writers.add(there)
            async with asyncio.TaskGroup() as group:
                group.create_task(self._pump(reader, there))
                group.create_task(self._pump(there_reader, writer))
            self.writers.discard(there)
        writer.close()
        self.writers.discard(writer)

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65_536):
                await self.through.wait()
                writer.write(data)
                await writer.drain()
        writer.close()

    def cut(self) -> None:
        """Nothing gets through any more, and nobody is told."""
        self.through.clear()

    def heal(self) -> None:
        """What is under way arrives late."""
        self.through.set()

    def drop(self) -> None:
        """The connections are gone, and new ones get no answer."""
        for writer in tuple(self.writers):
            writer.transport.abort()

    async def stop(self) -> None:
        self.through.set()
        self.server.close()
        self.drop()
        await asyncio.sleep(0)
