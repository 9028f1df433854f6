"""A message, its codec, and a manager that notes what it is told."""

import asyncio
import random
from pathlib import Path

import msgspec

from control.transport.codec import StructCodec
from control.transport.seam import Identity
from control.transport.service import Transport, listening
from control.transport.spool import Spool

PATIENCE_S = 20.0


class Note(msgspec.Struct, frozen=True, array_like=True):
    """What a Raft message is to the transport."""

    sender: str
    receiver: str
    number: int
    data: bytes = b""
    urgent: bool = False


def note_codec() -> StructCodec[Note]:
    return StructCodec(
        Note,
        ends=lambda note: (note.sender, note.receiver),
        size_bytes=lambda note: 40 + len(note.data),
        urgent=lambda note: note.urgent,
    )


class Manager:
    """A transport, and what it was told."""

    def __init__(self, directory: Path, node_id: str, *, cluster="c1", epoch=1, tls=None, sock=None, **options) -> None:
        self.node_id, self.directory = node_id, directory / node_id
        self.sock = sock or listening("127.0.0.1", 0)
        self.address = f"127.0.0.1:{self.sock.getsockname()[1]}"
        self.notes: list[Note] = []
        self.unreachable: list[str] = []
        self.sent_snapshots: list[tuple[str, bool]] = []
        self.snapshots: list[tuple[str, Note, Path]] = []
        self.learned: list[tuple[str, str]] = []
        self.news = asyncio.Event()
        self.transport = Transport(
            Identity(cluster, epoch, node_id),
            self.sock,
            note_codec(),
            self,
            Spool(self.directory),
            rng=random.Random(1),
            tls=tls,
            **options,
        )
        self.task = asyncio.get_running_loop().create_task(self.transport.run())

    # --- the handler

    def received(self, sender, messages):
        assert all(n.sender == sender for n in messages)
        self.notes += messages
        self.news.set()

    def report_unreachable(self, node_id):
        self.unreachable.append(node_id)
        self.news.set()

    def report_snapshot(self, node_id, ok):
        self.sent_snapshots.append((node_id, ok))
        self.news.set()

    def snapshot_received(self, sender, message, snapshot):
        self.snapshots.append((sender, message, snapshot))
        self.news.set()

    def address_learned(self, node_id, address):
        self.learned.append((node_id, address))
        self.news.set()

    # --- what tests do

    def note(self, to: str, number: int = 0, data: bytes = b"", *, urgent: bool = False) -> bool:
        return self.transport.send(to, Note(self.node_id, to, number, data, urgent))

    async def until(self, condition) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while not condition():
                self.news.clear()
                await self.news.wait()

    async def connected(self, *peers: str) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while {s.node_id for s in self.transport.status() if s.connected} < set(peers):
                await asyncio.sleep(0.005)

    def problem(self, peer: str) -> str:
        return next(s.problem for s in self.transport.status() if s.node_id == peer)

    def refused(self) -> dict[str, int]:
        return dict(self.transport.counters.refused)

    async def stop(self) -> None:
        self.task.cancel()
        await asyncio.wait([self.task])
        self.sock.close()
        if not self.task.cancelled():
            self.task.result()
