"""Somebody who watches a backend, and checks with each delivery what holds for all of them."""

import asyncio
import time

from control.store.backend import Backend, Committed, Failed, Following, Guard, Leading, Proposal, Replaced
from control.store.errors import StoreError
from control.store.record import Row, RowChange

PATIENCE_S = 30.0


class Seen:
    """The rows that follow from what was loaded and delivered; `log` is all that was delivered."""

    def __init__(self, backend: Backend, image) -> None:
        self.backend = backend
        self.version = image.version
        self.rows = {(r.kind, r.id): r for r in image.rows}
        self.log = []
        self.news = asyncio.Event()
        self.inside = False  # a call of commit or watch
        self.failed: StoreError | None = None
        self.delay_s = 0.0  # what each delivery takes

    def __call__(self, delivery) -> None:
        assert not self.inside, "deliver was called from within commit or watch"
        assert self.failed is None, "something was delivered after Failed"
        self.log.append(delivery)
        time.sleep(self.delay_s)
        match delivery:
            case Committed(version, changes):
                assert version == self.version + 1, f"{version} was delivered after {self.version}"
                for c in changes:
                    before = self.rows.pop((c.kind, c.id), None)
                    assert (before.version if before else 0) == c.expected
                    if c.blob is not None:
                        self.rows[c.kind, c.id] = Row(c.kind, c.id, version, c.blob)
                self.version = version
            case Replaced(image):
                assert image.version > self.version, "the state went back"
                self.version = image.version
                self.rows = {(r.kind, r.id): r for r in image.rows}
            case Leading(term):
                terms = [d.term for d in self.log[:-1] if isinstance(d, Leading)]
                assert all(term > earlier for earlier in terms), "a term came again"
            case Failed(error):
                self.failed = error
        self.news.set()

    @property
    def term(self) -> int | None:
        """The one in which this manager leads."""
        for delivery in reversed(self.log):
            if isinstance(delivery, Leading):
                return delivery.term
            if isinstance(delivery, Following | Failed):
                return None
        return None

    @property
    def leader(self) -> str:
        """As it was told last, if it follows."""
        for delivery in reversed(self.log):
            if isinstance(delivery, Leading | Following):
                return delivery.leader if isinstance(delivery, Following) else ""
        return ""

    async def until(self, condition) -> None:
        """Wait until `condition()` holds."""
        async with asyncio.timeout(PATIENCE_S):
            while not condition():
                self.news.clear()
                await self.news.wait()

    async def leading(self) -> int:
        await self.until(lambda: self.term is not None)
        return self.term

    async def at(self, version: int) -> None:
        await self.until(lambda: self.version >= version)

    def commit(self, *changes: RowChange, version: int | None = None, term: int | None = None) -> asyncio.Future:
        """On top of what was seen."""
        self.inside = True
        proposal = Proposal(self.version + 1 if version is None else version, changes)
        future = self.backend.commit(proposal, Guard(self.term or 0 if term is None else term))
        self.inside = False
        return future


async def opened(backend: Backend) -> Seen:
    """Load and watch."""
    image = await backend.load()
    seen = Seen(backend, image)
    seen.inside = True
    backend.watch(image.version, seen)
    seen.inside = False
    return seen


def put(id_: str, blob: bytes = b"b", expected: int = 0, kind: str = "k") -> RowChange:
    return RowChange(kind, id_, expected, blob)


def delete(id_: str, expected: int, kind: str = "k") -> RowChange:
    return RowChange(kind, id_, expected, None)


async def outcome(future: asyncio.Future) -> str:
    """The name of the error, or "done". Any other error than a StoreError is a failure of the test."""
    async with asyncio.timeout(PATIENCE_S):
        await asyncio.wait([future])
    error = future.exception()
    if error is None:
        return "done"
    assert isinstance(error, StoreError)
    assert str(error)
    assert "\n" not in str(error), "errors are one sentence"
    return type(error).__name__


def names(seen: Seen) -> list[str]:
    return sorted(id_ for _, id_ in seen.rows)
