"""Backups are whole or refused; what is restored is what was there, at a version that nobody has seen."""

import asyncio
import os

import pytest

from control.lifecycle import Writer
from control.model import Network, NetworkSpec
from control.store.aesgcm import AesGcmSealer, Keys
from control.store.backup import VERSION_JUMP, read_backup, restore, write_backup
from control.store.errors import BackendFailed, Damaged
from control.store.store import Store
from control.store.txn import Put
from tests.control.alone import alone

SEGMENT = 16 * 1024


def network(name: str) -> Network:
    return Network(id=name, spec=NetworkSpec(name=name))


async def opened(directory) -> Store:
    store = Store(await alone(directory, segment_bytes=SEGMENT), lambda: 7)
    await store.open()
    return store


@pytest.fixture(params=["plain", "sealed"])
def ring(request):
    return None if request.param == "plain" else Keys([AesGcmSealer("k", b"\1" * 32, os.urandom)])


async def test_what_is_restored_is_what_was_backed_up(tmp_path, ring):
    store = await opened(tmp_path / "store")
    await store.batch([Put(network(f"n{i}")) for i in range(700)], Writer.ORCHESTRATOR)
    view, term = store.view(), store.term
    path = tmp_path / "backup"
    size = await asyncio.to_thread(write_backup, path, "c1", term, view, ring)
    await store.commit([Put(network("later"))], Writer.ORCHESTRATOR)
    late = store.view().version
    await store.close()
    assert path.stat().st_size == size
    assert path.stat().st_mode & 0o777 == 0o600

    backup = await asyncio.to_thread(read_backup, path, ring)
    assert backup.cluster_id == "c1"
    with pytest.raises(BackendFailed, match="store exists: move it away"):
        await asyncio.to_thread(restore, backup, tmp_path / "store")
    await asyncio.to_thread(lambda: restore(backup, tmp_path / "again", segment_bytes=SEGMENT))
    again = await opened(tmp_path / "again")
    assert list(again.view().objects()) == list(view.objects())
    assert again.view().version == view.version + VERSION_JUMP > late
    assert again.term > term
    await again.commit([Put(network("new"))], Writer.ORCHESTRATOR)
    await again.close()
    again = await opened(tmp_path / "again")
    assert again.view().get(Network, "new").meta.version == view.version + VERSION_JUMP + 1
    await again.close()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["again", "backup", "store"]


async def test_a_damaged_backup_is_refused(tmp_path, ring):
    store = await opened(tmp_path / "store")
    await store.batch([Put(network(f"n{i}")) for i in range(30)], Writer.ORCHESTRATOR)
    path = tmp_path / "backup"
    await asyncio.to_thread(write_backup, path, "c1", 1, store.view(), ring)
    await store.close()
    data = path.read_bytes()
    for where in range(0, len(data), max(len(data) // 60, 1)):
        path.write_bytes(data[:where] + bytes([data[where] ^ 4]) + data[where + 1 :])
        with pytest.raises(Damaged):
            await asyncio.to_thread(read_backup, path, ring)
        path.write_bytes(data[:where])
        with pytest.raises(Damaged):
            await asyncio.to_thread(read_backup, path, ring)
    with pytest.raises(BackendFailed, match=r"cannot read the backup .*nothing: No such file"):
        await asyncio.to_thread(read_backup, tmp_path / "nothing", ring)
