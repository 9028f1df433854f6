"""Which addresses of this node's leases are in use, and by what: the plugin's state. Pure; every call may be repeated.

An address is *held* from RequestAddress on, and belongs to an *endpoint* from CreateEndpoint on. The one that has been
free for longest is given next. `Book` is what is on disk; times are milliseconds of the wall clock, since they outlive
the process, and only tell old from new.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import msgspec
from msgspec.structs import replace

from control.assignment import NetworkWish
from control.model import Lease, PortSpec
from control.store.tables import leased
from mesh.plugin.labels import Labels

# A node asks for another lease when fewer addresses are free: what a Compose file starts at once.
FREE_MIN = 4
# What was asked for and has no endpoint after this time will have none: its engine has died in between.
HOLD_MS = 120_000
REST_MS = 3_600_000  # after that, all free addresses are alike


class BookError(Exception):
    """It cannot be done. One sentence for the user."""


class Held(msgspec.Struct, frozen=True):
    """An address in use. Without an endpoint it is only held."""

    since_ms: int
    endpoint_id: str = ""


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """A container's place on a network. It has a sandbox while it is joined."""

    id: str  # the engine's endpoint id; of one that was attached: "attached-<container>-<network>"
    network_id: str
    address: str
    sandbox: str = ""  # path of the network namespace
    container: str = ""  # the engine's id, once it is known
    name: str = ""
    options: Labels = Labels()  # of the endpoint, which count before the container's labels
    labels: Labels = Labels()
    ports: tuple[PortSpec, ...] = ()
    ready: bool = True
    adopted: bool = False  # attached by us, not by the engine
    default_route: bool = False  # of one without another network


class Book(msgspec.Struct, frozen=True, kw_only=True):
    """All of it. Methods give the book after a change."""

    held: dict[str, Held] = {}  # "<network id> <address>"
    freed: dict[str, int] = {}  # when each was freed last
    entries: dict[str, Entry] = {}
    networks: dict[str, NetworkWish] = {}  # those that others made in the engine, by its id; names may come later
    detached: tuple[str, ...] = ()  # "<container> <network id>": not to be attached again by its labels

    # --- addresses ----------------------------------------------------------------------------------------------------

    def request(self, network_id: str, leases: Iterable[Lease], wanted: str, now_ms: int) -> tuple[Book, str]:
        """An address, `wanted` if one is. Raises BookError."""
        mine = [a for lease in leases if lease.network_id == network_id for a in leased(lease)]
        free = [a for a in mine if _key(network_id, a) not in self.held]
        if wanted and wanted not in mine:
            raise BookError(f"address {wanted} is not leased to this node: it has {_blocks(network_id, leases)}")
        if wanted and wanted not in free:
            raise BookError(f"address {wanted} is in use on this node")
        if not free:
            raise BookError("this node has no address left on the network, and no manager has leased it more yet")
        address = wanted or min(free, key=lambda a: self.freed.get(_key(network_id, a), 0))
        key = _key(network_id, address)
        return replace(self, held={**self.held, key: Held(now_ms)}), address

    def release(self, network_id: str, address: str, now_ms: int) -> Book:
        """An address is free again; nothing happens if it is, or an endpoint has it."""
        key = _key(network_id, address)
        found = self.held.get(key)
        if found is None or found.endpoint_id in self.entries:
            return self
        held = {k: v for k, v in self.held.items() if k != key}
        return replace(self, held=held, freed={**self.freed, key: now_ms})

    # --- endpoints ----------------------------------------------------------------------------------------------------

    def create(self, entry: Entry, now_ms: int) -> Book:
        """A new endpoint. Raises BookError if another one has its address."""
        key = _key(entry.network_id, entry.address)
        found = self.held.get(key)
        if found is not None and found.endpoint_id not in ("", entry.id) and found.endpoint_id in self.entries:
            raise BookError(f"address {entry.address} is in use on this node")
        book = replace(self, held={**self.held, key: Held(now_ms, entry.id)})
        return book if entry.id in self.entries else book.put(entry)

    def put(self, entry: Entry) -> Book:
        """An endpoint as it is now."""
        return replace(self, entries={**self.entries, entry.id: entry})

    def change(self, entry_id: str, **fields: object) -> Book:
        """An endpoint with other fields; nothing happens if it is gone."""
        entry = self.entries.get(entry_id)
        return self if entry is None else self.put(replace(entry, **fields))

    def delete(self, entry_id: str, now_ms: int) -> Book:
        """An endpoint is gone. Its address is held until it is released, but for one that was only adopted."""
        entry = self.entries.get(entry_id)
        if entry is None:
            return self
        book = replace(self, entries={k: v for k, v in self.entries.items() if k != entry_id})
        if entry.adopted:
            return book.release(entry.network_id, entry.address, now_ms)
        return replace(book, held={**book.held, _key(entry.network_id, entry.address): Held(now_ms)})

    def swept(self, known: Iterable[str], now_ms: int) -> Book:
        """Without what the engine has no more, once it is old. `known`: its endpoints, and the containers that run."""
        alive, book = frozenset(known), self
        for entry in self.entries.values():
            since_ms = self.held.get(_key(entry.network_id, entry.address), Held(0)).since_ms
            if (entry.container if entry.adopted else entry.id) not in alive and now_ms - since_ms > HOLD_MS:
                book = book.delete(entry.id, now_ms - 2 * HOLD_MS)
        for key, held in book.held.items():
            if held.endpoint_id not in book.entries and now_ms - held.since_ms > HOLD_MS:
                network_id, _, address = key.partition(" ")
                book = book.release(network_id, address, now_ms)
        return replace(book, freed={k: at_ms for k, at_ms in book.freed.items() if now_ms - at_ms < REST_MS})

    def without_network(self, network_id: str) -> Book:
        """A network that others made in the engine is gone from there."""
        return replace(self, networks={k: v for k, v in self.networks.items() if k != network_id})

    # --- leases -------------------------------------------------------------------------------------------------------

    def wishes(self, network_ids: Iterable[str], leases: Iterable[Lease]) -> dict[str, int]:
        """How many leases to have on each network, so that some addresses are free."""
        found: dict[str, int] = {}
        have = [lease for lease in leases if lease.block]
        for network_id in network_ids:
            mine = [lease for lease in have if lease.network_id == network_id]
            free = sum(_key(network_id, a) not in self.held for lease in mine for a in leased(lease))
            found[network_id] = max(1, len(mine) + (free < FREE_MIN))
        return found


def _key(network_id: str, address: str) -> str:
    return f"{network_id} {address}"


def _blocks(network_id: str, leases: Iterable[Lease]) -> str:
    return ", ".join(lease.block for lease in leases if lease.network_id == network_id and lease.block) or "none"


def occupied(entries: Mapping[str, Entry], wanted: PortSpec, but: str = "") -> bool:
    """Whether a port of this machine is published by another endpoint already."""
    return any(
        (port.protocol, port.published) == (wanted.protocol, wanted.published)
        and (not port.address or not wanted.address or port.address == wanted.address)
        for entry in entries.values()
        if entry.id != but
        for port in entry.ports
    )
