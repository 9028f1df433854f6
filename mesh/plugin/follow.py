"""Follows this machine's engine: names and labels of containers, those that labels attach, networks, health.

Events only say that something has changed; what, is looked up: everything, at once for all events of a moment, and
every 30 seconds besides. Once the stream of events is open all is looked at, so nothing is missed in between.
Tasks (asyncio), in one TaskGroup that `run` owns: the loop that looks, and one per container with a check. The stream
of events is read by a thread that ends with the process.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time

from msgspec.structs import replace

from control.model import HealthCheck
from mesh.executor import netns
from mesh.executor.docker.engine import Engine
from mesh.executor.probe import probe
from mesh.executor.protocol import ExecutorError
from mesh.plugin.book import Book, BookError, Entry
from mesh.plugin.driver import DriverError
from mesh.plugin.keeper import LEASE_WAIT_S, Keeper
from mesh.plugin.labels import LabelError, Labels, read_labels
from mesh.plugin.wanted import Box, boxes, nets, network_body

log = logging.getLogger(__name__)

RESYNC_S = 30.0
# Events of one moment (a Compose file that starts) are looked at together.
DEBOUNCE_S = 0.05
# An engine that is away is asked again after this.
AWAY_S = 1.0
SAID_MAX = 1000  # sentences that are not logged twice


class Follower:
    """One membership's."""

    def __init__(self, keeper: Keeper, engine: Engine) -> None:
        self._keeper, self._engine = keeper, engine
        self._news = asyncio.Event()
        self._over = False
        self._said: dict[str, None] = {}
        self._probed: set[str] = set()
        self._missing: frozenset[str] = frozenset()  # without a namespace, at the last look that found no engine
        self._catalogue: tuple[str, ...] = ()
        keeper.agent.followers.append(self._heard)

    async def run(self) -> None:
        """Follow until cancelled."""
        loop = asyncio.get_running_loop()
        threading.Thread(target=self._listen, args=(loop,), name="docker-events", daemon=True).start()
        try:
            async with asyncio.TaskGroup() as group:
                while True:
                    await self.look(group)
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(RESYNC_S):
                            await self._news.wait()
                    await asyncio.sleep(DEBOUNCE_S)
                    self._news.clear()
        finally:
            self._over = True

    async def look(self, group: asyncio.TaskGroup) -> None:
        """Bring the book up to date with the engine, and the engine with the cluster."""
        try:
            found = boxes(await self._engine.running())
            self._missing = frozenset()
            self._note(found)
            for box in found:
                await self._follow_labels(box)
            await self._follow_networks()
        except ExecutorError as error:
            log.debug("cannot look at the engine", extra={"error": str(error)})
            self._sweep()
        except (DriverError, BookError, OSError) as error:
            self._say(str(error))
        self._start_probes(group)

    # --- attach and detach --------------------------------------------------------------------------------------------

    async def attach(self, reference: str, network: str, said: Labels) -> Entry:
        """Put a container that runs on a network. Raises DriverError, BookError, ExecutorError, OSError."""
        keeper = self._keeper
        found = keeper.network(network)
        if found is None:
            raise DriverError(f'no network "{network}"')
        box = await self._engine.container(reference)
        if box is None or not (box.get("State") or {}).get("Running"):
            raise DriverError(f'no container "{reference}" runs on this node')
        settings = box.get("NetworkSettings") or {}
        name, sandbox = str(box.get("Name", "")).lstrip("/"), str(settings.get("SandboxKey") or "")
        mode = str((box.get("HostConfig") or {}).get("NetworkMode", ""))
        if not sandbox or mode == "host" or mode.startswith("container:"):
            raise DriverError(f'container "{name}" has no network of its own: it cannot be attached')
        entry_id = _adopted_id(str(box["Id"]), found.id)
        if any(e.network_id == found.id and e.sandbox == sandbox and e.id != entry_id for e in self._entries()):
            raise DriverError(f'container "{name}" is on network "{found.spec.name}" already')
        before = keeper.book.entries.get(entry_id)
        if before is None:
            await keeper.until(lambda: self._free(found.id), LEASE_WAIT_S)
            book, address = keeper.book.request(found.id, keeper.leases(), "", keeper.now_ms())
        else:
            book, address = keeper.book, before.address
        entry = Entry(
            id=entry_id, network_id=found.id, address=address, sandbox=sandbox, container=str(box["Id"]), name=name,
            options=said, labels=self._labels(name, (box.get("Config") or {}).get("Labels") or {}),
            adopted=True, default_route=mode == "none",
        )  # fmt: skip
        book = replace(book, detached=tuple(d for d in book.detached if d != f"{entry.container} {found.id}"))
        keeper.change(book.create(entry, keeper.now_ms()).put(entry))
        if not await keeper.until_placed(entry.id):
            keeper.change(keeper.book.delete(entry.id, keeper.now_ms()))
            raise DriverError(
                f'container "{name}" gets no interface on network "{found.spec.name}": see the log of meshd'
            )
        self._news.set()
        return entry

    def detach(self, reference: str, network: str) -> list[Entry]:
        """Take a container off a network, or off all that it was attached to. Raises DriverError, OSError."""
        keeper, wanted = self._keeper, self._keeper.network(network) if network else None
        if network and wanted is None:
            raise DriverError(f'no network "{network}"')
        found = [
            e
            for e in self._entries()
            if e.adopted
            and (e.name == reference or (reference and e.container.startswith(reference)))
            and (wanted is None or e.network_id == wanted.id)
        ]
        if not found:
            raise DriverError(
                f'no container "{reference}" was attached on this node' + " to that network" * bool(network)
            )
        book = keeper.book
        for entry in found:
            book = book.delete(entry.id, keeper.now_ms())
            book = replace(book, detached=(*book.detached, f"{entry.container} {entry.network_id}"))
        keeper.change(book)
        return found

    def describe(self, entry: Entry) -> str:
        """An endpoint for a user: network and address."""
        network = self._keeper.network(entry.network_id)
        return f"{network.spec.name if network is not None else entry.network_id} {entry.address}"

    def _free(self, network_id: str) -> bool:
        try:
            self._keeper.book.request(network_id, self._keeper.leases(), "", 0)
        except BookError:
            return False
        return True

    # --- containers ---------------------------------------------------------------------------------------------------

    def _entries(self) -> list[Entry]:
        return list(self._keeper.book.entries.values())

    def _note(self, found: list[Box]) -> None:
        """Names and labels of those that the engine has put on networks; those that are gone."""
        keeper, book = self._keeper, self._keeper.book
        of_endpoint = {endpoint: box for box in found for endpoint in box.endpoints}
        running = {box.id: box for box in found}
        for entry in self._entries():
            box = running.get(entry.container) if entry.adopted else of_endpoint.get(entry.id)
            if box is not None:
                book = self._described(book, entry, box)
            elif entry.adopted:
                book = book.delete(entry.id, keeper.now_ms())
        detached = tuple(d for d in book.detached if d.partition(" ")[0] in running)
        book = replace(book.swept({*of_endpoint, *running}, keeper.now_ms()), detached=detached)
        keeper.change(book)

    def _sweep(self) -> None:
        """The engine does not answer: who has no namespace has ended.

        One that the engine is just starting has none yet: it has until the next look, half a minute later.
        """
        keeper, book = self._keeper, self._keeper.book
        gone = {e.id: e for e in self._entries() if e.sandbox and not netns.exists(e.sandbox)}
        for entry in gone.values():
            if entry.adopted:
                book = book.delete(entry.id, keeper.now_ms())
            elif entry.id in self._missing:
                book = book.change(entry.id, sandbox="")
        self._missing = frozenset(gone)
        try:
            keeper.change(book)
        except OSError as error:
            self._say(f"cannot keep which containers have ended: {error.strerror}")

    def _described(self, book: Book, entry: Entry, box: Box) -> Book:
        said = self._labels(box.name, box.labels)
        check = entry.options.over(said).check
        ready = box.ready and (entry.ready if check is not None and entry.id in self._probed else check is None)
        return book.change(entry.id, container=box.id, name=box.name, labels=said, ready=ready)

    def _labels(self, name: str, labels: object) -> Labels:
        pairs = {str(k): str(v) for k, v in labels.items()} if isinstance(labels, dict) else {}
        try:
            return read_labels(pairs)
        except LabelError as error:
            self._say(f'container "{name}": {error}')
            return Labels()

    async def _follow_labels(self, box: Box) -> None:
        """Attach a container whose labels ask for it."""
        said = self._labels(box.name, box.labels)
        network = self._keeper.network(said.network) if said.network else None
        if said.network and network is None:
            self._say(f'container "{box.name}" asks for network "{said.network}", which the cluster does not have')
        if network is None or f"{box.id} {network.id}" in self._keeper.book.detached:
            return
        if any(e.container == box.id and e.network_id == network.id for e in self._entries()):
            return
        try:
            await self.attach(box.id, network.id, Labels())
        except (DriverError, BookError) as error:
            self._say(f'cannot attach container "{box.name}": {error}')

    # --- networks -----------------------------------------------------------------------------------------------------

    async def _follow_networks(self) -> None:
        keeper = self._keeper
        complete = keeper.agent.session.connected
        plan = nets(keeper.networks(), await self._engine.networks(), keeper.book.networks, complete=complete)
        wishes = {id_: wish for id_, wish in plan.wishes.items() if id_ in keeper.book.networks}
        keeper.change(replace(keeper.book, networks=wishes))
        for sentence in plan.clashes:
            self._say(sentence)
        for id_ in plan.remove:
            await self._engine.remove_network(id_)
        for network in plan.create:
            await self._engine.create_network(network.spec.name, network_body(network))

    # --- health -------------------------------------------------------------------------------------------------------

    def _start_probes(self, group: asyncio.TaskGroup) -> None:
        for entry in self._entries():
            check = entry.options.over(entry.labels).check
            if entry.sandbox and check is not None and entry.id not in self._probed:
                self._probed.add(entry.id)
                group.create_task(self._probe(entry.id, entry.sandbox, check))

    async def _probe(self, entry_id: str, sandbox: str, check: HealthCheck) -> None:
        """Keep whether it is well, as long as it is there."""
        failures = 0
        try:
            while (entry := self._keeper.book.entries.get(entry_id)) is not None and entry.sandbox == sandbox:
                failures = failures + 1 if await probe(check, sandbox, entry.address, 0) else 0
                ready = failures == 0 if not entry.ready else failures < check.retries
                self._keeper.change(self._keeper.book.change(entry_id, ready=ready))
                await asyncio.sleep(check.interval_s if ready else min(1.0, check.interval_s))
        except OSError as error:
            self._say(f"cannot keep what a check has found: {error.strerror}")
        finally:
            self._probed.discard(entry_id)

    # --- news ---------------------------------------------------------------------------------------------------------

    def _heard(self) -> None:
        catalogue = tuple(network.id for network in self._keeper.networks())
        if catalogue != self._catalogue:
            self._catalogue = catalogue
            self._news.set()

    def _listen(self, loop: asyncio.AbstractEventLoop) -> None:
        """In a thread: wake the loop at each event."""

        def wake() -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(self._news.set)

        while not self._over:
            try:
                for _ in self._engine.events(wake):
                    wake()
            except ExecutorError:
                pass
            time.sleep(AWAY_S)

    def _say(self, sentence: str) -> None:
        """Log a sentence, once."""
        if sentence not in self._said:
            if len(self._said) >= SAID_MAX:
                self._said.clear()
            self._said[sentence] = None
            log.warning("containers", extra={"why": sentence})


def _adopted_id(container: str, network_id: str) -> str:
    """25 characters that no endpoint of an engine has: those are hexadecimal."""
    return f"x{container[:12]}{network_id[:12]}"
