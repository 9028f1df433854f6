"""Where managers keep their state: what a configuration may name, and what is refused."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path

import msgspec
import pytest

from control.home import DiskHome, EtcdHome, HomeError, home_of
from control.lifecycle import Writer
from control.model import Network, NetworkSpec
from control.quorum.seat import Seat
from control.store.backend import Backend
from control.store.errors import BackendFailed
from control.store.store import Store
from control.store.txn import Put
from control.vault import Vault


def test_the_directory_unless_something_is_said(tmp_path: Path) -> None:
    assert isinstance(home_of("", tmp_path, "127.0.0.1:1"), DiskHome)
    assert isinstance(home_of("etcd://127.0.0.1/mesh", tmp_path, "127.0.0.1:1"), EtcdHome)


def test_a_url_in_a_file_is_not_on_the_command_line(tmp_path: Path) -> None:
    file = tmp_path / "url"
    file.write_text("etcd://127.0.0.1/mesh\n")
    assert home_of(f"file:{file}", tmp_path, "127.0.0.1:1").kind == "etcd"
    for text, sentence in (("", "one line"), ("a\nb", "one line"), ("etcd://x", "needs a prefix")):
        file.write_text(text)
        with pytest.raises(HomeError, match=sentence):
            home_of(f"file:{file}", tmp_path, "127.0.0.1:1")
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(HomeError, match="it is not text"):
        home_of(f"file:{file}", tmp_path, "127.0.0.1:1")
    with pytest.raises(HomeError, match="No such file"):
        home_of(f"file:{tmp_path}/none", tmp_path, "127.0.0.1:1")


async def test_a_place_that_cannot_be_read_leaves_nothing(tmp_path: Path) -> None:
    home = DiskHome(tmp_path / "manager", "127.0.0.1:0")
    with pytest.raises(HomeError, match="a place that it cannot read"):
        await home.enrol("c", b"\xc1")
    assert not (tmp_path / "manager").exists()


async def test_another_place_replaces_the_one_before(tmp_path: Path) -> None:
    home = DiskHome(tmp_path / "manager", "127.0.0.1:0")
    for number in (1, 2):
        await home.enrol("c", msgspec.msgpack.encode(Seat(f"n.{number}", 0)))
        assert msgspec.json.decode((tmp_path / "manager/member").read_bytes())["member_id"] == f"n.{number}"
    home.remove()
    assert await asyncio.to_thread(lambda: list(tmp_path.iterdir())) == []


async def test_a_directory_from_before_there_were_keys_is_taken_over(tmp_path: Path) -> None:
    """It is read as it is, and what is written from then on is encrypted."""

    def now_s() -> float:
        return 1000.0

    async def networks(backend: Backend, *more: str) -> list[str]:
        store = Store(backend, lambda: 7)
        await store.open()
        term = await store.leading()
        for name in more:
            await store.commit([Put(Network(id=name, spec=NetworkSpec(name=name)))], Writer.ORCHESTRATOR, term=term)
        found = sorted(network.id for network in store.view().all(Network))
        await store.close()
        return found

    def files(pattern: str) -> list[bytes]:
        return [path.read_bytes() for path in (tmp_path / "manager").rglob(pattern) if path.is_file()]

    directory = tmp_path / "manager"
    before = DiskHome(directory, "127.0.0.1:0")
    await before.create("c", "n", lambda backend: fill(backend, "plaintext"))
    assert any(b"plaintext" in data for data in files("wal-*"))
    home = DiskHome(directory, "127.0.0.1:0", vault=Vault(tmp_path / "vault.json", now_s))
    assert await networks(home.seat("c", "n", "127.0.0.1").backend, "sealed") == ["plaintext", "sealed"]
    assert not any(b"sealed" in data for data in files("*"))
    again = DiskHome(directory, "127.0.0.1:0", vault=Vault(tmp_path / "vault.json", now_s))
    assert await networks(again.seat("c", "n", "127.0.0.1").backend) == ["plaintext", "sealed"]
    with pytest.raises(BackendFailed, match="which this manager does not have"):
        await networks(before.seat("c", "n", "127.0.0.1").backend)


async def fill(backend: Backend, name: str) -> None:
    store = Store(backend, lambda: 7)
    await store.open()
    await store.commit([Put(Network(id=name, spec=NetworkSpec(name=name)))], Writer.ORCHESTRATOR)
    await store.close()


async def test_a_port_in_use(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(HomeError, match=f"cannot listen on 127.0.0.1:{port} for other managers"):
            DiskHome(tmp_path / "manager", f"127.0.0.1:{port}").seat("c", "n", "127.0.0.1")


async def test_the_wrong_etcd_is_refused_before_it_is_used() -> None:
    with pytest.raises(HomeError, match=r"cannot use etcd at 127\.0\.0\.1:1"):
        await EtcdHome("etcd://127.0.0.1:1/mesh").enrol("c", b"")
