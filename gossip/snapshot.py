"""The file that a node comes back from after a restart: who was alive, and the clocks. Serf's own format, line by line.

    alive: NAME ADDRESS:PORT | not-alive: NAME | clock: N | event-clock: N | query-clock: N | leave | # comment

`parse` and `State` are pure; `SnapshotFile` appends, and writes the file anew when it has grown too long. A torn or
damaged line is skipped: the file only helps, and is never needed. The agent calls `SnapshotFile` a few times a second
with what has changed since; it is flushed, not synced, on each call, so that no disk holds up the loop that probes.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path
from typing import TextIO

from gossip.delegate import Address

# A file larger than this was not written by us; the largest cluster needs a tenth of it.
FILE_MAX_BYTES = 16 << 20
# Serf compacts at 128 KiB or at twice 128 bytes for each node.
COMPACT_MIN_BYTES = 128 << 10
BYTES_PER_NODE = 256
NODES_MAX = 16384  # see gossip.serf.roster


@dataclass
class State:
    """What a snapshot says."""

    alive: dict[str, Address] = field(default_factory=dict)
    clock: int = 0
    event_clock: int = 0
    query_clock: int = 0

    def apply(self, line: str, *, rejoin_after_leave: bool) -> bool:
        """Read one line; False if it means nothing."""
        word, _, rest = line.partition(" ")
        match word:
            case "alive:":
                name, _, place = rest.rpartition(" ")
                address = parse_address(place)
                if not name or address is None or len(self.alive) >= NODES_MAX:
                    return False
                self.alive[name] = address
            case "not-alive:":
                self.alive.pop(rest, None)
            case "clock:" | "event-clock:" | "query-clock:":
                if not (rest.isascii() and rest.isdigit() and len(rest) < 20):
                    return False
                setattr(self, word[:-1].replace("-", "_"), int(rest))
            case "leave":
                if not rejoin_after_leave:
                    self.alive.clear()
                    self.clock = self.event_clock = self.query_clock = 0
            case _:
                return line.startswith(("#", "coordinate: "))
        return True

    def lines(self) -> list[str]:
        """The whole of it."""
        alive = [f"alive: {name} {address}" for name, address in self.alive.items()]
        return [
            *alive,
            f"clock: {self.clock}",
            f"event-clock: {self.event_clock}",
            f"query-clock: {self.query_clock}",
        ]


def parse_address(text: str) -> Address | None:
    """ADDRESS:PORT or [ADDRESS]:PORT."""
    host, _, port = text.rpartition(":")
    host = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    try:
        address = Address(str(ip_address(host)), int(port))
    except ValueError:
        return None
    return address if 0 < address.port < 65536 else None


def parse(text: str, *, rejoin_after_leave: bool) -> State:
    """Read a snapshot. What cannot be understood is skipped; so is a last line without end, which was torn."""
    state = State()
    for line in text.split("\n")[:-1]:
        state.apply(line, rejoin_after_leave=rejoin_after_leave)
    return state


def address_before(path: Path, name: str) -> Address | None:
    """Where a node was when it last wrote its snapshot; None if that cannot be read, or does not say."""
    try:
        with path.open(encoding="utf-8", errors="surrogateescape") as file:
            text = file.read(FILE_MAX_BYTES)
    except OSError:
        return None
    return parse(text, rejoin_after_leave=True).alive.get(name)


class SnapshotFile:
    """The file, open for appending. Errors of the disk are kept in `error` and do not stop the node."""

    def __init__(self, path: Path, *, rejoin_after_leave: bool) -> None:
        """Read what is there. Raises OSError when it cannot be opened."""
        self.error: OSError | None = None
        self._path = path
        self._rejoin = rejoin_after_leave
        self._left = False
        text = ""
        with contextlib.suppress(FileNotFoundError), path.open(encoding="utf-8", errors="surrogateescape") as file:
            text = file.read(FILE_MAX_BYTES)
        self.state = parse(text, rejoin_after_leave=rejoin_after_leave)
        self.previous = dict(self.state.alive)  # whom to look for after the start
        self._file: TextIO | None = None
        self._size = 0
        self._compact()

    def record(self, lines: Iterable[str]) -> None:
        """Append lines; after `leave` nothing is taken any more."""
        if self._left:
            return
        lines = [line for line in lines if "\n" not in line]
        for line in lines:
            self.state.apply(line, rejoin_after_leave=self._rejoin)
        self._append(lines)

    def clocks(self, clock: int, event_clock: int, query_clock: int) -> None:
        """Record the times last seen, if they changed."""
        now = {"clock": clock, "event_clock": event_clock, "query_clock": query_clock}
        changed = [(key, value) for key, value in now.items() if value > getattr(self.state, key)]
        if changed:
            self.record([f"{key.replace('_', '-')}: {value}" for key, value in changed])

    def leave(self) -> None:
        """This node leaves: it will not rejoin by itself, unless told so."""
        self.record(["leave"])
        self._left = True

    def close(self) -> None:
        """Write out what is there."""
        if self._file is not None:
            with contextlib.suppress(OSError):
                self._file.flush()
                os.fsync(self._file.fileno())
            self._file.close()
            self._file = None

    def _append(self, lines: list[str]) -> None:
        text = "".join(f"{line}\n" for line in lines)
        if not text:
            return
        try:
            if self._file is None or self._size > max(COMPACT_MIN_BYTES, BYTES_PER_NODE * len(self.state.alive)):
                self._compact()
            else:
                self._file.write(text)
                self._file.flush()
                self._size += len(text)
            self.error = None
        except OSError as error:
            self.error = error
            if self._file is not None:
                with contextlib.suppress(OSError):
                    self._file.close()
                self._file = None

    def _compact(self) -> None:
        """Write the state as it is to a new file and put it in the place of the old one."""
        if self._file is not None:
            self._file.close()
            self._file = None
        lines = self.state.lines()
        fresh = self._path.with_name(self._path.name + ".compact")
        text = "".join(f"{line}\n" for line in lines)
        with fresh.open("w", encoding="utf-8", errors="surrogateescape") as file:
            file.write(text)
        fresh.replace(self._path)
        self._file = self._path.open("a", encoding="utf-8", errors="surrogateescape")
        self._size = len(text)
