"""A manager's disk, read by somebody who has no key to it: nothing of what the cluster holds is there in the clear."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from control.ca.root import key_pem, new_key
from control.home import DiskHome
from control.lifecycle import Writer
from control.manager import Manager
from control.model import Authority, Cluster, ClusterSpec, NodeDescription, ProcessSpec, Service, ServiceSpec, TaskSpec
from control.server.api import backup_ring
from control.store.backup import write_backup
from control.store.txn import Put
from control.vault import Vault
from mesh.daemon.locker import Locker
from mesh.daemon.papers import Papers

SERVICE, PASSWORD = "the-name-of-a-service", "a-password-that-somebody-gave"


def wall_ms() -> int:
    return time.time_ns() // 1_000_000


def wall_s() -> float:
    return time.time_ns() / 1e9


def holding(directory: Path, secrets: Iterable[str]) -> list[str]:
    """Files with any of them."""
    wanted = [secret.encode() for secret in secrets]
    files = [path for path in directory.rglob("*") if path.is_file()]
    assert files
    return sorted(path.name for path in files if any(secret in path.read_bytes() for secret in wanted))


@asynccontextmanager
async def managed(directory: Path, spec: ClusterSpec) -> AsyncIterator[tuple[Manager, Vault, Locker]]:
    """A manager as the daemon makes it, which leads, with a service."""
    vault, papers = Vault(directory / "vault.json", wall_s), Papers(directory, wall_ms)
    home = DiskHome(directory / "manager", "127.0.0.1:0", vault=vault)
    made = await Manager.bootstrap(
        home, spec=spec, description=NodeDescription(hostname="h1"), availability="active",
        data_address="192.0.2.1", address="127.0.0.1:1", wall_ms=wall_ms, csr=await papers.request(),
    )  # fmt: skip
    await papers.keep(made.chain, made.roots)
    seat = home.seat(made.cluster_id, made.node_id, "127.0.0.1")
    manager = await Manager.open(seat, listen="127.0.0.1:0", wall_ms=wall_ms)
    try:
        term = await manager.store.leading()
        task = TaskSpec(process=ProcessSpec(command=("serve",), env={"PASSWORD": PASSWORD}))
        service = Service(id="s1", spec=ServiceSpec(name=SERVICE, task=task))
        await manager.store.commit([Put(service)], Writer.ORCHESTRATOR, term=term)
        yield manager, vault, Locker(vault, papers)
    finally:
        await manager.close()


def secrets_of(manager: Manager) -> list[str]:
    view = manager.store.view()
    cluster, authority = view.cluster(), next(iter(view.all(Authority)))
    keys = authority.key.splitlines()[1:2]
    said = [SERVICE, PASSWORD, cluster.worker_token, cluster.manager_token, *cluster.gossip_keys, *keys]
    return [*said, *([cluster.unlock_key] if cluster.unlock_key else [])]


@pytest.mark.parametrize("autolock", [False, True])
async def test_nothing_is_in_log_snapshots_and_backup(tmp_path: Path, autolock: bool) -> None:
    async with managed(tmp_path, ClusterSpec(autolock=autolock)) as (manager, vault, locker):
        backend = manager.store._backend
        view = manager.store.view()
        if await locker.follow(view.cluster()):
            assert manager.renew_key is not None
            await manager.renew_key()
        backend._engine.snapshots.save()  # type: ignore[attr-defined]
        async with asyncio.timeout(30):
            while not list((tmp_path / "manager").glob("snapshot-" + "[0-9]" * 16)):
                await asyncio.sleep(0.02)
        secrets = secrets_of(manager)
        assert len(secrets) == 8 + autolock
        backup = tmp_path / "backup"
        await asyncio.to_thread(write_backup, backup, "c", 1, view, backup_ring(view.cluster()))
    written = holding(tmp_path, [*secrets, "PRIVATE KEY"])  # now that nothing is renamed any more
    if autolock:
        assert written == [], "not even the key of the node"
        assert Vault(tmp_path / "vault.json", wall_s).locked
    else:
        assert written == ["backup", "key.pem"], "for which there is no key that anybody has"
    readable = [path for path in tmp_path.rglob("*") if path.is_file() and path.stat().st_mode & 0o077]
    assert holding_none(readable, secrets)
    assert (tmp_path / "vault.json").stat().st_mode & 0o777 == 0o600
    assert vault.current().key_id


def holding_none(files: Iterable[Path], secrets: Iterable[str]) -> bool:
    return not any(secret.encode() in path.read_bytes() for path in files for secret in secrets)


async def test_a_lock_that_is_changed_changes_what_is_written_with(tmp_path: Path) -> None:
    async with managed(tmp_path, ClusterSpec(autolock=True)) as (manager, vault, locker):
        cluster = manager.store.view().cluster()
        seen = [vault.current().key_id]
        for version in (1, 2):
            changed = Cluster(id=cluster.id, unlock_key=cluster.unlock_key, unlock_version=version)
            assert await locker.follow(changed)
            assert not await locker.follow(changed), "once"
            assert manager.renew_key is not None
            await manager.renew_key()
            assert manager.store._backend._journal.key_id == vault.current().key_id  # type: ignore[attr-defined]
            seen.append(vault.current().key_id)
        assert len(set(seen)) == 3
        assert not await locker.follow(Cluster(id=cluster.id, unlock_version=3))
        assert (tmp_path / "tls/key.pem").exists()
        assert vault.version == 0


def test_requests_are_made_with_the_key_that_is_in_no_file(tmp_path: Path) -> None:
    """A renewal of a locked manager's certificate is for the key that it has."""

    async def run() -> None:
        papers = Papers(tmp_path, wall_ms)
        key = key_pem(new_key())
        before = await papers.request()
        await papers.hide_key(key)
        assert await papers.request() != before
        assert not (tmp_path / "tls/key.pem").exists()
        await papers.show_key(key)
        assert (tmp_path / "tls/key.pem").read_bytes() == key

    asyncio.run(run())
