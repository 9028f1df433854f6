"""A bare manager as a process of its own: a RaftBackend with registers on it, for clients at a Unix socket.

    python -m tests.control.processes.manager DIRECTORY NODE_ID LISTEN SOCKET PEERS

PEERS is JSON, addresses by node id. On standard output: "leading TERM", "following", "failed SENTENCE".
Clients send one JSON array a line, and get one back:

    ["read", key] -> ["ok", value]              ["write", key, value] -> ["ok", null]
    ["cas", key, expected, value] -> ["ok", whether]          ["status"] -> ["ok", {…}]
    or ["no", why]: it certainly did not happen; or ["unknown", why]
"""

import asyncio
import gc
import json
import sys
from pathlib import Path

from control.quorum.backend import Network, RaftBackend
from control.store.backend import Committed, Failed, Following, Guard, Leading, Proposal, Replaced
from control.store.errors import NotLeader, Refused, StoreError
from control.store.record import RowChange
from control.transport.service import listening

# Small, so that snapshots are made and segments change all the time, and a small disk is soon full.
LOG_LIMIT_BYTES = 256 * 1024
SEGMENT_BYTES = 1024 * 1024
PADDING = " " * 400  # of a row, as an object would have


class Registers:
    """What is agreed on, and, while leading, what is under way on top of it."""

    def __init__(self, backend: RaftBackend) -> None:
        self.backend = backend
        self.term = 0
        self.ended = asyncio.Event()

    async def open(self) -> None:
        image = await self.backend.load()
        self._replace(image)
        self.backend.watch(image.version, self._deliver)

    def _replace(self, image) -> None:
        self.version = image.version
        self.rows = {row.id: (row.version, int(row.blob)) for row in image.rows}
        self._reset()

    def _reset(self) -> None:
        self.head_version, self.head = self.version, {}

    def _deliver(self, delivery) -> None:
        match delivery:
            case Committed(version, changes):
                assert version == self.version + 1
                self.version = version
                for change in changes:
                    self.rows[change.id] = version, int(change.blob)
                if self.head_version < version:
                    self._reset()
            case Replaced(image):
                assert image.version > self.version
                self._replace(image)
            case Leading(term):
                self.term = term
                self._reset()
                print("leading", term, flush=True)
            case Following():
                self.term = 0
                self._reset()
                print("following", flush=True)
            case Failed(error):
                print("failed", error, flush=True)
                self.ended.set()

    def _at_head(self, key: str) -> tuple[int, int]:
        return self.head.get(key) or self.rows.get(key, (0, 0))

    async def write(self, key: str, value: int) -> None:
        if not self.term:
            raise NotLeader("not leading")
        version, expected = self.head_version + 1, self._at_head(key)[0]
        blob = f"{value}{PADDING}".encode()
        future = self.backend.commit(Proposal(version, (RowChange("r", key, expected, blob),)), Guard(self.term))
        self.head_version = version
        self.head[key] = version, value
        future.add_done_callback(lambda done: done.exception() is not None and self._reset())
        await asyncio.shield(future)
        if self.head.get(key) == (version, value):
            del self.head[key]

    async def cas(self, key: str, expected: int, value: int) -> bool:
        while self._at_head(key)[1] != expected or not self.term:
            if await self.read(key) != expected:
                return False
            if not self.term:
                raise NotLeader("not leading")
            await asyncio.sleep(0.001)
        await self.write(key, value)
        return True

    async def read(self, key: str) -> int:
        await self.backend.barrier()
        return self.rows.get(key, (0, 0))[1]

    def status(self) -> dict:
        status, quorum = self.backend.status(), self.backend.quorum()
        return {
            "role": status.role,
            "version": status.version,
            "digest": status.digest,
            "message": status.message,
            "late": quorum.late_ticks,
            "term": status.term,
        }

    async def call(self, request: list):
        match request:
            case ["read", key]:
                return await self.read(key)
            case ["write", key, value]:
                return await self.write(key, value)
            case ["cas", key, expected, value]:
                return await self.cas(key, expected, value)
            case ["status"]:
                return self.status()
        raise AssertionError(request)


async def serve(registers: Registers, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while line := await reader.readline():
        try:
            answer = ["ok", await registers.call(json.loads(line))]
        except (NotLeader, Refused) as error:
            answer = ["no", str(error)]
        except StoreError as error:
            answer = ["unknown", str(error)]
        writer.write(json.dumps(answer).encode() + b"\n")
    writer.close()


async def main(directory: str, node_id: str, listen: str, path: str, peers: str) -> None:
    host, _, port = listen.rpartition(":")
    backend = RaftBackend(
        Path(directory),
        "c1",
        node_id,
        network=Network(listening(host, int(port)), advertise=listen),
        peers=json.loads(peers),
        log_limit_bytes=LOG_LIMIT_BYTES,
        keep_entries=500,
        segment_bytes=SEGMENT_BYTES,
    )
    registers = Registers(backend)
    await registers.open()
    gc.freeze()
    Path(path).unlink(missing_ok=True)
    server = await asyncio.start_unix_server(lambda r, w: serve(registers, r, w), path)
    async with server:
        await registers.ended.wait()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
