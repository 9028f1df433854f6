"""`meshd restore` and `meshd recover` on real state directories."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path

import pytest

from control.home import DiskHome
from control.lock import make_unlock_key
from control.manager import Bootstrapped, Manager
from control.model import ClusterSpec, Node, NodeDescription
from control.quorum.seat import read_seat
from control.server.api import backup_ring
from control.store.backup import write_backup
from control.store.disk import RealDisk
from control.store.store import Store
from control.vault import Vault
from mesh import machine
from mesh.config import Config
from mesh.daemon import identity as identities
from mesh.daemon import offline
from mesh.daemon.identity import Identity
from mesh.daemon.papers import Papers


def wall_ms() -> int:
    return time.time_ns() // 1_000_000


@pytest.fixture(autouse=True)
def one_address(monkeypatch: pytest.MonkeyPatch) -> None:
    """This machine has one address, whatever it has."""
    monkeypatch.setattr(machine, "choose_address", lambda asked, _: ip_address(asked or "192.0.2.7"))


def config(directory: Path, **fields: str) -> Config:
    directory.mkdir(exist_ok=True)
    return replace(Config(), state_dir=str(directory), node_name="h1", **fields)  # type: ignore[arg-type]


def home_of(settings: Config, unlock_key: str = "") -> DiskHome:
    """As the daemon has it."""
    directory = Path(settings.state_dir)
    vault = Vault(directory / "vault.json", lambda: wall_ms() / 1000)
    if vault.locked:
        vault.unlock(unlock_key)
    return DiskHome(directory / "manager", "127.0.0.1:0", vault=vault)


async def _begin(settings: Config, autolock: bool) -> Bootstrapped:
    directory = Path(settings.state_dir)
    papers = Papers(directory, wall_ms)
    made = await Manager.bootstrap(
        home_of(settings),
        spec=ClusterSpec(autolock=autolock),
        description=NodeDescription(hostname="h1"),
        availability="active",
        data_address="192.0.2.1",
        address="192.0.2.1:7377",
        wall_ms=wall_ms,
        csr=await papers.request(),
    )
    await papers.keep(made.chain, made.roots)
    return made


def begin(settings: Config, autolock: bool = False) -> Bootstrapped:
    """A manager as `mesh init` leaves it."""
    made = asyncio.run(_begin(settings, autolock))
    identity = Identity(
        node_id=made.node_id, node_number=1, secret=made.secret, cluster_id=made.cluster_id, role="manager",
        data_address="192.0.2.1", managers=("192.0.2.1:7377",), address="192.0.2.1:7377",
    )  # fmt: skip
    identities.save(Path(settings.state_dir), identity)
    return made


async def _opened(settings: Config, unlock_key: str = "") -> list[Node]:
    identity = identities.load(Path(settings.state_dir))
    assert identity is not None
    home = home_of(settings, unlock_key)
    store = Store(home.seat(identity.cluster_id, identity.node_id, "127.0.0.1").backend, wall_ms)
    await store.open()
    async with asyncio.timeout(10):
        await store.leading()
    nodes = list(store.view().all(Node))
    await store.close()
    return nodes


async def _backup(settings: Config, made: Bootstrapped, file: Path) -> None:
    home = home_of(settings)
    store = Store(home.seat(made.cluster_id, made.node_id, "127.0.0.1").backend, wall_ms)
    await store.open()
    ring = backup_ring(store.view().cluster())
    await asyncio.to_thread(write_backup, file, made.cluster_id, store.status().term, store.view(), ring)
    await store.close()


def never() -> str:
    raise AssertionError("no key is needed")


def run(settings: Config, *argv: str, ask: Callable[[], str] = never) -> list[str]:
    parsed, rest = offline.split(argv)
    assert rest == []
    return offline.run(parsed, settings, ask)


def test_a_backup_becomes_a_cluster_on_another_machine(tmp_path: Path) -> None:
    old, new = config(tmp_path / "old"), config(tmp_path / "new", advertise_address="192.0.2.9:7000")
    made = begin(old)
    asyncio.run(_backup(old, made, tmp_path / "backup"))
    said = run(new, "restore", str(tmp_path / "backup"))
    assert said[1] == 'This machine is node "h1", the only manager, at 192.0.2.9:7000.'
    (node,) = asyncio.run(_opened(new))
    identity = identities.load(tmp_path / "new")
    assert identity is not None
    assert (node.id, identity.node_id, node.control_address) == (made.node_id, made.node_id, "192.0.2.9:7000")
    assert identity.secret != made.secret
    papers = Papers(tmp_path / "new", wall_ms)  # the cluster's own authority has certified it
    assert papers.credentials().roots == Papers(tmp_path / "old", wall_ms).credentials().roots
    assert papers.holder is not None
    assert (papers.holder.id, papers.holder.role) == (made.node_id, "manager")


def test_a_backup_of_a_locked_cluster_needs_the_key_and_makes_a_locked_manager(tmp_path: Path) -> None:
    old, new = config(tmp_path / "old"), config(tmp_path / "new")
    made = begin(old, autolock=True)
    file = tmp_path / "backup"
    asyncio.run(_backup(old, made, file))
    for secret in (made.manager_token, made.unlock_key, "PRIVATE KEY"):
        assert secret.encode() not in file.read_bytes()
    with pytest.raises(offline.OfflineError, match="made under number 1"):
        run(new, "restore", str(file), ask=lambda: make_unlock_key(bytes(32)))
    with pytest.raises(offline.OfflineError, match="must begin with MSHKEY-1-"):
        run(new, "restore", str(file), ask=lambda: "secret\n")
    assert not (tmp_path / "new/manager").exists()
    run(new, "restore", str(file), ask=lambda: made.unlock_key + "\n")
    assert not (tmp_path / "new/tls/key.pem").exists()
    assert Vault(tmp_path / "new/vault.json", lambda: wall_ms() / 1000).locked
    (node,) = asyncio.run(_opened(new, made.unlock_key))
    assert node.id == made.node_id
    # The only manager, whose quorum is then "lost": its state is behind the same key.
    with pytest.raises(offline.OfflineError, match="not the unlock key of this manager"):
        run(new, "recover", ask=lambda: make_unlock_key(bytes(32)))
    assert "goes on alone" in run(new, "recover", ask=lambda: made.unlock_key)[0]
    (node,) = asyncio.run(_opened(new, made.unlock_key))
    assert node.id == made.node_id


def test_what_restore_refuses(tmp_path: Path) -> None:
    old, other = config(tmp_path / "old"), config(tmp_path / "other")
    made = begin(old)
    asyncio.run(_backup(old, made, tmp_path / "backup"))
    with pytest.raises(offline.OfflineError, match="exists: move it away"):
        run(old, "restore", str(tmp_path / "backup"))
    begin(other)
    with pytest.raises(offline.OfflineError, match="this machine is in cluster"):
        run(other, "restore", str(tmp_path / "backup"))
    stranger = replace(config(tmp_path / "new"), node_name="h9")
    with pytest.raises(offline.OfflineError, match='no single node "h9": say with --node which of h1'):
        run(stranger, "restore", str(tmp_path / "backup"))
    with pytest.raises(offline.OfflineError, match="cannot read the backup"):
        run(stranger, "restore", str(tmp_path / "none"))
    (tmp_path / "junk").write_bytes(b"junk" * 100)
    with pytest.raises(offline.OfflineError, match="is no backup of meshd"):
        run(stranger, "restore", str(tmp_path / "junk"))
    assert not (tmp_path / "new" / "identity.json").exists()


def test_recover_opens_another_epoch(tmp_path: Path) -> None:
    settings = config(tmp_path / "one")
    made = begin(settings)
    before = read_seat(RealDisk(tmp_path / "one/manager"))
    assert run(settings, "recover")[0].startswith("This manager goes on alone, from commit ")
    after = read_seat(RealDisk(tmp_path / "one/manager"))
    assert before is not None
    assert after is not None
    assert after.epoch > before.epoch
    assert (tmp_path / "one/manager.before-recovery").is_dir()
    assert [node.id for node in asyncio.run(_opened(settings))] == [made.node_id]


def test_what_recover_refuses(tmp_path: Path) -> None:
    with pytest.raises(offline.OfflineError, match="this machine is no manager"):
        run(config(tmp_path / "none"), "recover")
    with pytest.raises(offline.OfflineError, match="is in etcd"):
        run(config(tmp_path / "none", store="etcd://127.0.0.1/mesh"), "recover")
