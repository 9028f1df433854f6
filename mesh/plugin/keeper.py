"""The book of a node on disk, and what follows from it: told to the agent, who gives interfaces and tells the managers.

No tasks of its own; all calls come from the loop's thread. Waits are bounded: an engine waits for an answer.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable
from pathlib import Path

import msgspec

from control.assignment import AttachmentReport, Key, KnownNetwork
from control.model import Attachment, Lease, Network
from mesh.agent.agent import Agent
from mesh.agent.attached import Guest
from mesh.plugin.book import Book, Entry
from mesh.plugin.labels import name_of

log = logging.getLogger(__name__)

# A lease is there in a fraction of this if any manager answers; a container is started within it, or refused.
LEASE_WAIT_S = 10.0
# An interface takes some milliseconds; with 60 containers at once on two busy cores, half a minute. An engine waits for
# an answer as long as it takes (libnetwork bounds only its attempts to connect).
PLACE_WAIT_S = 60.0
# That others know of it, when a manager answers: so long its start may be put off for that, and no longer.
KNOWN_WAIT_S = 1.0
ID_LENGTH = 25


class Keeper:
    """One membership's book."""

    def __init__(self, agent: Agent, path: Path, wall_ms: Callable[[], int]) -> None:
        self.agent, self._path, self._wall_ms = agent, path, wall_ms
        self.book = _load(path)
        self._news = asyncio.Event()
        self._told: tuple[tuple[Guest, ...], AttachmentReport] | None = None
        agent.hosts_others = True
        agent.followers.append(self._hear)
        self._tell()

    def now_ms(self) -> int:
        """The time of day."""
        return self._wall_ms()

    def change(self, book: Book) -> None:
        """The book is like this from now on. Raises OSError; then nothing has changed."""
        if book == self.book:
            return
        _save(self._path, book)
        self.book = book
        self._tell()

    # --- networks and leases ------------------------------------------------------------------------------------------

    def networks(self) -> list[Network]:
        """All networks of the cluster that have their subnets."""
        found = self.agent.session.assignments.of("catalog", KnownNetwork)
        return [known.network for known in found if known.network.subnet]

    def network(self, reference: str) -> Network | None:
        """By id, name or subnet."""
        for network in self.networks():
            if reference in (network.id, network.spec.name, network.subnet):
                return network
        return None

    def leases(self) -> list[Lease]:
        """The blocks of this node."""
        return self.agent.session.assignments.of("lease", Lease)

    def describe(self, entry: Entry) -> Attachment:
        """An endpoint as others are told of it."""
        said = entry.options.over(entry.labels)
        name = entry.name or (entry.container or entry.id)[:12]
        return Attachment(
            id=_id(entry.id),
            node_id=self.agent.identity.node_id,
            network_id=entry.network_id,
            address=entry.address,
            name=name,
            container=entry.container,
            service=said.service or name_of(name),
            aliases=said.aliases,
            named_ports=said.ports,
            ports=entry.ports,
            weight=1 if said.weight is None else said.weight,
            ready=entry.ready,
        )

    # --- waiting ------------------------------------------------------------------------------------------------------

    async def until(self, condition: Callable[[], bool], most_s: float) -> bool:
        """Whether it came to be in time; looked at whenever a plan is in force or a manager has spoken."""
        try:
            async with asyncio.timeout(most_s):
                while not condition():
                    self._news.clear()
                    await self._news.wait()
        except TimeoutError:
            return condition()
        return True

    async def until_placed(self, entry_id: str) -> bool:
        """Whether an endpoint has its interface; and if a manager can be asked, it has had a moment to tell others."""
        placed = await self.until(lambda: _id(entry_id) in self.agent.placed(), PLACE_WAIT_S)
        if placed and self.agent.session.connected:
            key: Key = ("attachment", _id(entry_id))
            await self.until(lambda: key in self.agent.session.assignments.records, KNOWN_WAIT_S)
        return placed

    # --- inside -------------------------------------------------------------------------------------------------------

    def _hear(self) -> None:
        self._news.set()
        self._tell()

    def _tell(self) -> None:
        """The agent what there is, if that is news."""
        if self.agent.session.assignments.settings() is None:
            return  # nothing is known of the cluster yet: nobody shall think that there is nothing here
        vnis = {network.id: network.vni for network in self.networks()}
        joined = [e for e in self.book.entries.values() if e.sandbox and e.network_id in vnis]
        guests = tuple(
            Guest(self.describe(e), e.sandbox, f"mesh{vnis[e.network_id]}", e.default_route, not e.adopted)
            for e in joined
        )
        report = AttachmentReport(
            attachments=tuple(guest.attachment for guest in guests),
            wishes=self.book.wishes(sorted(vnis), self.leases()),
            networks=tuple(wish for wish in self.book.networks.values() if wish.name),
        )
        if (guests, report) != self._told:
            self._told = (guests, report)
            self.agent.attach(guests, report)


def _id(entry_id: str) -> str:
    """An endpoint's id as managers have it."""
    return entry_id[:ID_LENGTH].lower()


def _load(path: Path) -> Book:
    try:
        return msgspec.json.decode(path.read_bytes(), type=Book)
    except FileNotFoundError:
        return Book()
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError) as error:
        log.warning("ignoring the book of containers", extra={"path": str(path), "error": str(error)})
        return Book()


def _save(path: Path, book: Book) -> None:
    """Durable: an address that was given may not be given again after a power cut."""
    temporary = path.with_suffix(".new")
    with open(temporary, "wb") as file:
        file.write(msgspec.json.encode(book))
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
