"""Where the key of a node lies while the lock changes: never nowhere, and in the end in one place."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from control.ca.contexts import Locked
from control.ca.names import Holder
from control.ca.requests import key_of_request
from control.ca.root import issue, make_root, new_key, pem
from control.lock import make_unlock_key
from control.model import Cluster
from control.vault import Vault
from mesh.daemon.identity import Identity
from mesh.daemon.locker import Locker, LockerError, open_vault
from mesh.daemon.papers import Papers

KEY, OTHER = make_unlock_key(b"\1" * 32), make_unlock_key(b"\2" * 32)
LOCKED = Cluster(id="c1", unlock_key=KEY, unlock_version=1)
MANAGER = Identity(
    node_id="n1",
    node_number=1,
    secret="s",
    cluster_id="c1",
    role="manager",
    data_address="192.0.2.1",
    managers=("m:1",),
)
WORKER = Identity(
    node_id="n1", node_number=1, secret="s", cluster_id="c1", role="worker", data_address="192.0.2.1", managers=("m:1",)
)


def wall_ms() -> int:
    return time.time_ns() // 1_000_000


def wall_s() -> float:
    return time.time_ns() / 1e9


async def member(directory: Path) -> Papers:
    """With a certificate."""
    papers = Papers(directory, wall_ms)
    root = make_root("c1", new_key(), wall_s(), bytes(16))
    key = key_of_request(await papers.request())
    leaf = issue(root, Holder("c1", "manager", "n1"), key, wall_s(), b"\1" * 16)
    await papers.keep(pem(leaf), pem(root.certificate))
    return papers


def started(directory: Path, identity: Identity = MANAGER) -> tuple[Vault, Papers, Locker]:
    """As the daemon does."""
    vault = open_vault(directory, identity, wall_s)
    papers = Papers(directory, wall_ms, locked=vault.locked)
    return vault, papers, Locker(vault, papers)


async def locked(directory: Path) -> bytes:
    """A manager that was locked and ended; its key."""
    papers = await member(directory)
    vault = open_vault(directory, MANAGER, wall_s)
    vault.prepare(plain=False)
    key = papers.credentials().key
    assert await Locker(vault, papers).follow(LOCKED)
    assert not (directory / "tls/key.pem").exists()
    assert papers.credentials().key == key, "this process goes on"
    return key


async def test_a_locked_node_is_somebody_who_cannot_speak(tmp_path: Path) -> None:
    key = await locked(tmp_path)
    _, papers, locker = started(tmp_path)
    assert papers.exist
    assert locker.locked
    with pytest.raises(Locked):
        papers.credentials()
    ran: list[str] = []

    async def run() -> None:
        ran.append("run")

    with pytest.raises(LockerError, match="not the unlock key of this manager"):
        await locker.unlock(OTHER)
    assert locker.locked
    await locker.unlock(KEY + "\n")
    await locker.once_open(run)
    assert ran == ["run"]
    assert papers.credentials().key == key
    assert not (tmp_path / "tls/key.pem").exists()


async def test_a_crash_while_it_is_locked_leaves_the_key_in_both_places(tmp_path: Path) -> None:
    key = await locked(tmp_path)
    (tmp_path / "tls/key.pem").touch(0o600)
    (tmp_path / "tls/key.pem").write_bytes(key)
    _, papers, locker = started(tmp_path)
    assert locker.locked, "the vault counts"
    await locker.unlock(KEY)
    assert papers.credentials().key == key
    assert not (tmp_path / "tls/key.pem").exists()


async def test_a_crash_while_it_becomes_a_worker_leaves_no_lock(tmp_path: Path) -> None:
    key = await locked(tmp_path)
    _, _, locker = started(tmp_path, WORKER)
    assert locker.locked, "its key is nowhere else yet"
    (tmp_path / "tls/key.pem").touch(0o600)
    (tmp_path / "tls/key.pem").write_bytes(key)
    vault, papers, locker = started(tmp_path, WORKER)
    assert not locker.locked
    assert not (tmp_path / "vault.json").exists()
    assert papers.credentials().key == key
    assert vault.version == 0


async def test_a_lock_that_is_taken_off_puts_the_key_back(tmp_path: Path) -> None:
    key = await locked(tmp_path)
    vault, _, locker = started(tmp_path)
    await locker.unlock(KEY)
    assert not await locker.follow(Cluster(id="c1", unlock_version=2)), "the data key stays"
    assert (tmp_path / "tls/key.pem").read_bytes() == key
    assert vault.version == 0
    _, papers, locker = started(tmp_path)
    assert not locker.locked
    assert papers.credentials().key == key
    await locker.release()
    assert not (tmp_path / "vault.json").exists()
    assert (tmp_path / "tls/key.pem").read_bytes() == key


async def test_a_damaged_key_of_the_cluster_changes_nothing(tmp_path: Path) -> None:
    papers = await member(tmp_path)
    vault = open_vault(tmp_path, MANAGER, wall_s)
    vault.prepare(plain=False)
    with pytest.raises(LockerError, match="cannot change the lock"):
        await Locker(vault, papers).follow(Cluster(id="c1", unlock_key="damaged", unlock_version=1))
    assert vault.version == 0
    assert (tmp_path / "tls/key.pem").exists()


async def test_a_data_key_is_renewed_when_it_is_time(tmp_path: Path) -> None:
    now_s = 1000.0
    papers = await member(tmp_path)
    vault = Vault(tmp_path / "vault.json", lambda: now_s)
    locker = Locker(vault, papers)
    assert not await locker.renew()
    vault.prepare(plain=False)
    assert not await locker.renew()
    now_s += 29 * 86400.0
    assert await locker.renew()
    assert not await locker.renew()
