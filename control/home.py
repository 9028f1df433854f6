"""Where a manager keeps its state: on its own disk, or in an etcd that somebody runs. A home makes backends.

`create` begins a cluster there, all of it or nothing; `enrol` gives a manager that joins its place, and `seat` is for
every start. No tasks.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import msgspec

from control.etcd.backend import cluster_of, from_url
from control.etcd.url import BadStoreUrl, parse_url
from control.quorum.backend import Network, RaftBackend
from control.quorum.seat import BEFORE_RECOVERY, Seat, enrol, found
from control.roll import Electorate
from control.store.backend import Backend
from control.store.errors import StoreError
from control.transport.seam import Tls
from control.vault import Vault

HomeKind = Literal["disk", "etcd"]
# A URL of a store is a line; a file that is larger is some other file.
URL_FILE_MAX_BYTES = 4096

Fill = Callable[[Backend], Awaitable[None]]


class HomeError(Exception):
    """The state cannot be kept there. One sentence."""


class Home(Protocol):
    """See the module."""

    kind: HomeKind

    def occupied(self) -> str:
        """Why no cluster can begin on this machine, as a sentence; "" if it can. Looks at this machine only."""

    async def create(self, cluster_id: str, node_id: str, fill: Fill) -> None:
        """Begin a cluster: `fill` opens the backend, writes what belongs there, and closes it. Raises HomeError."""

    async def enrol(self, cluster_id: str, seat: bytes) -> None:
        """Take the place that the leader gave (EnlistReply.seat). Raises HomeError."""

    def seat(self, cluster_id: str, node_id: str, host: str) -> Seating:
        """For one start of the manager; other managers reach this one at `host`. Raises HomeError."""

    def quorum_address(self, host: str) -> str:
        """host:port where the managers agree; "" where something else does that for them."""

    def remove(self) -> None:
        """Forget what this machine has of it. Blocks."""


@dataclass(frozen=True, slots=True)
class Seating:
    """What a manager is opened with. `electorate` is the backend itself if its managers vote."""

    node_id: str
    kind: HomeKind
    backend: Backend
    electorate: Electorate | None = None
    quorum_address: str = ""  # where others reach it to agree
    newcomer: bool = False  # it may have to get its state from the others first
    renew_key: Callable[[], Awaitable[None]] | None = None  # go on with another key, where this machine keeps the state


class DiskHome:
    """A directory of this machine: the managers agree among themselves, at `listen`, host:port (port 0: any)."""

    kind: HomeKind = "disk"

    def __init__(self, directory: Path, listen: str, tls: Tls | None = None, vault: Vault | None = None) -> None:
        """`vault` has the keys of what is kept; None, in tests: it is not encrypted."""
        self._directory, self._listen, self._tls, self._vault = directory, listen, tls, vault

    def occupied(self) -> str:
        """See Home."""
        return f"{self._directory} exists: it holds the state of a cluster already" if self._directory.exists() else ""

    async def create(self, cluster_id: str, node_id: str, fill: Fill) -> None:
        """See Home: the directory appears complete."""
        if self.occupied():
            raise HomeError(self.occupied())
        unfinished = self._directory.with_name(self._directory.name + ".new")
        try:
            await asyncio.to_thread(shutil.rmtree, unfinished, ignore_errors=True)
            await self._prepare()
            await found(unfinished, cluster_id, node_id, ring=self._vault)
            await fill(RaftBackend(unfinished, cluster_id, node_id, ring=self._vault))
            await asyncio.to_thread(_publish, unfinished, self._directory)
        except (OSError, StoreError) as error:
            await asyncio.to_thread(shutil.rmtree, unfinished, ignore_errors=True)
            raise HomeError(f"cannot make the state of the cluster in {self._directory}: {error}") from error

    async def enrol(self, cluster_id: str, seat: bytes) -> None:
        """See Home: what an earlier life of this manager has left there goes."""
        unfinished = self._directory.with_name(self._directory.name + ".new")
        try:
            place = msgspec.msgpack.decode(seat, type=Seat)
            await asyncio.to_thread(shutil.rmtree, unfinished, ignore_errors=True)
            await self._prepare()
            await enrol(unfinished, cluster_id, place, ring=self._vault)
            await asyncio.to_thread(shutil.rmtree, self._directory, ignore_errors=True)
            await asyncio.to_thread(_publish, unfinished, self._directory)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise HomeError(f"the leader gave this manager a place that it cannot read: {error}") from error
        except (OSError, StoreError) as error:
            raise HomeError(f"cannot make the state of this manager in {self._directory}: {error}") from error

    def seat(self, cluster_id: str, node_id: str, host: str) -> Seating:
        """See Home."""
        address, _, port = self._listen.rpartition(":")
        vault = self._vault
        try:
            if vault is not None:
                vault.prepare(plain=True)  # unless it has keys, this is a directory from before there were any
        except OSError as error:
            raise HomeError(f"cannot keep the keys of this manager: {error.strerror}") from error
        try:
            sock = socket.create_server(
                (address.strip("[]"), int(port)), family=socket.AF_INET6 if ":" in address else socket.AF_INET
            )
        except OSError as error:
            raise HomeError(f"cannot listen on {self._listen} for other managers: {error.strerror}") from error
        advertise = _join(host, sock.getsockname()[1])
        network = Network(sock, advertise, self._tls)
        # What `meshd recover` has left beside it is to stay readable.
        kept = self._directory.with_name(self._directory.name + BEFORE_RECOVERY).exists()
        forget = vault.keep_only if vault is not None and not kept else None
        backend = RaftBackend(self._directory, cluster_id, node_id, network=network, ring=vault, keys_needed=forget)
        return Seating(node_id, self.kind, backend, backend, advertise, newcomer=True, renew_key=backend.renew_key)

    async def _prepare(self) -> None:
        """Have keys for a new directory. Raises OSError."""
        if self._vault is not None:
            await asyncio.to_thread(self._vault.prepare, plain=False)

    def quorum_address(self, host: str) -> str:
        """See Home."""
        return _join(host, int(self._listen.rpartition(":")[2]))

    def remove(self) -> None:
        """See Home."""
        shutil.rmtree(self._directory, ignore_errors=True)


class EtcdHome:
    """A prefix in etcd."""

    kind: HomeKind = "etcd"

    def __init__(self, url: str) -> None:
        """Raises HomeError if the URL is none."""
        try:
            self._options = parse_url(url)
        except BadStoreUrl as error:
            raise HomeError(str(error)) from error
        self._url = url

    def occupied(self) -> str:
        """See Home: nothing of it is on this machine."""
        return ""

    async def create(self, cluster_id: str, node_id: str, fill: Fill) -> None:
        """See Home. The first to write its name there has the prefix."""
        try:
            found = await cluster_of(self._options)
            if found is not None:
                raise HomeError(
                    f'the store under "{self._options.prefix}" in etcd holds the cluster {found} already: '
                    'enter that with "mesh join", or use another prefix'
                )
            await fill(self._backend(cluster_id, node_id))
        except StoreError as error:
            raise HomeError(f"cannot make the state of the cluster: {error}") from error

    async def enrol(self, cluster_id: str, seat: bytes) -> None:
        """See Home: only that this is the store of that cluster."""
        try:
            found = await cluster_of(self._options)
        except StoreError as error:
            raise HomeError(str(error)) from error
        if found != cluster_id:
            what = f"the cluster {found}" if found else "no cluster"
            raise HomeError(f'the store under "{self._options.prefix}" in etcd holds {what}, not {cluster_id}')

    def seat(self, cluster_id: str, node_id: str, host: str) -> Seating:
        """See Home."""
        return Seating(node_id, self.kind, self._backend(cluster_id, node_id))

    def _backend(self, cluster_id: str, node_id: str) -> Backend:
        return from_url(self._url, cluster_id=cluster_id, node_id=node_id)

    def quorum_address(self, host: str) -> str:
        """See Home."""
        return ""

    def remove(self) -> None:
        """See Home: what is in etcd belongs to all managers."""


def home_of(store: str, directory: Path, listen: str, tls: Tls | None = None, vault: Vault | None = None) -> Home:
    """The home that a configuration names: "" the directory, a URL of etcd, or file:/PATH of a file with one.

    `tls` is for managers that agree among themselves, `vault` for what is on this disk. Raises HomeError.
    """
    if store.startswith("file:"):
        store = _read_url(Path(store.removeprefix("file:")))
    return EtcdHome(store) if store else DiskHome(directory, listen, tls, vault)


def _read_url(path: Path) -> str:
    try:
        with path.open("rb") as file:
            data = file.read(URL_FILE_MAX_BYTES + 1)
        text = data.decode().strip()
    except OSError as error:
        raise HomeError(f"cannot read the URL of the store from {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise HomeError(f"{path} holds no URL of a store: it is not text") from error
    if not text or len(data) > URL_FILE_MAX_BYTES or "\n" in text:
        raise HomeError(f"{path} must hold the URL of the store, one line like etcd://host:2379/meshd")
    return text


def _publish(unfinished: Path, directory: Path) -> None:
    """Give the directory its name, durably."""
    os.rename(unfinished, directory)
    parent = os.open(directory.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(parent)
    finally:
        os.close(parent)


def _join(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
