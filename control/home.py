"""Where a manager keeps its state: on its own disk, or in an etcd that somebody runs. A home makes backends.

`create` begins a cluster there, all of it or nothing; `backend` is for every later start. No tasks.
"""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Literal, Protocol

from control.etcd.backend import cluster_of, from_url
from control.etcd.url import BadStoreUrl, parse_url
from control.store.backend import Backend
from control.store.errors import StoreError
from control.store.logfile import LogFile

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

    def backend(self, cluster_id: str, node_id: str) -> Backend:
        """That of a cluster that was begun, for one `Store`. Raises HomeError."""

    def remove(self) -> None:
        """Forget what this machine has of it. Blocks."""


class DiskHome:
    """A directory of this machine."""

    kind: HomeKind = "disk"

    def __init__(self, directory: Path) -> None:
        self._directory = directory

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
            await fill(LogFile(unfinished, cluster_id, node_id))
            await asyncio.to_thread(_publish, unfinished, self._directory)
        except (OSError, StoreError) as error:
            await asyncio.to_thread(shutil.rmtree, unfinished, ignore_errors=True)
            raise HomeError(f"cannot make the state of the cluster in {self._directory}: {error}") from error

    def backend(self, cluster_id: str, node_id: str) -> Backend:
        """See Home."""
        return LogFile(self._directory, cluster_id, node_id)

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
            await fill(self.backend(cluster_id, node_id))
        except StoreError as error:
            raise HomeError(f"cannot make the state of the cluster: {error}") from error

    def backend(self, cluster_id: str, node_id: str) -> Backend:
        """See Home."""
        return from_url(self._url, cluster_id=cluster_id, node_id=node_id)

    def remove(self) -> None:
        """See Home: what is in etcd belongs to all managers."""


def home_of(store: str, directory: Path) -> Home:
    """The home that a configuration names: "" the directory, a URL of etcd, or file:/PATH of a file with one.

    Raises HomeError.
    """
    if store.startswith("file:"):
        store = _read_url(Path(store.removeprefix("file:")))
    return EtcdHome(store) if store else DiskHome(directory)


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
