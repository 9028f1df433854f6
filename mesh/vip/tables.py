"""Keeps our nftables table of each namespace as wanted, and remembers what it holds.

The kernel numbers the generations of a namespace's rule set. While that number is the one we left, nobody has touched
anything, and the table need not be read: so a change costs the same with one service and with ten thousand. When it is
another, the table is read; if it is as remembered, it was somebody else's table that changed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from mesh.vip import rules
from mesh.vip.namespace import Namespace
from mesh.vip.nft import Nft, VipError
from mesh.vip.rules import Edit, Held, Map, Table

# Given what is there (None: nothing usable) and whether that is news: what should be there.
Wanted = Callable[[Held | None, bool], tuple[Table, list[Edit]]]


# Elements that are changed by ourselves, which is ten times faster than by nft: it reads all chains first. More of them
# would not fit the buffer of a socket, and there nft's way to begin is little.
_EDITS_MAX = 512


@dataclass(slots=True)
class _Known:
    cookie: tuple[int, int]
    generation: int
    held: Held | None


@dataclass(frozen=True, slots=True)
class Synced:
    """What `sync` did. `news`: the table was not as it was left, or is seen for the first time."""

    changes: Counter[str]
    news: bool


class Tables:
    """The tables of all namespaces we have been in, by path. Its size is that of the plan: see `forget`."""

    def __init__(self, nft: Nft) -> None:
        self._nft = nft
        self._known: dict[str | None, _Known] = {}

    def forget(self, path: str | None) -> None:
        """Remember nothing of a namespace."""
        self._known.pop(path, None)

    def sync(self, path: str | None, namespace: Namespace, maps: tuple[Map, ...], wanted: Wanted) -> Synced:
        """Make the table as wanted. `maps` are all whose elements matter. Raises OSError or VipError.

        A transaction fails when the table is not what it was a moment ago (it is read again), or when something in it
        that is not ours stands in the way (it is replaced).
        """
        news = False
        for force, replace in ((False, False), (True, False), (True, True)):
            held, now_news = self._look(path, namespace, maps, force)
            news = news or now_news
            try:
                return Synced(self._change(path, namespace, held, wanted, news, replace), news)
            except VipError:
                self.forget(path)
                if replace:
                    raise
        raise AssertionError

    def changed_by_us(self, path: str | None, namespace: Namespace, transactions: int) -> None:
        """We made so many transactions by ourselves, of what is not in `maps`: they are no news."""
        if (known := self._known.get(path)) is not None:
            for _ in range(transactions):
                known.generation = _next(known.generation)

    def remove(self, path: str | None, namespace: Namespace) -> Counter[str]:
        """Remove the table. Raises OSError or VipError."""
        self.forget(path)
        if not namespace.has_table():
            return Counter()
        self._nft.run(rules.removal())
        return Counter({"vip table": 1})

    def _look(
        self, path: str | None, namespace: Namespace, maps: tuple[Map, ...], force: bool
    ) -> tuple[Held | None, bool]:
        """(the table, whether it is not as remembered)."""
        generation = namespace.generation()
        known = self._known.get(path)
        if known is not None and known.cookie != namespace.cookie:
            known = None
        if known is not None and known.generation == generation and not force:
            return known.held, False
        held = namespace.table(maps)
        self._known[path] = _Known(namespace.cookie, generation, held)
        return held, known is None or known.held != held

    def _change(
        self, path: str | None, namespace: Namespace, held: Held | None, wanted: Wanted, news: bool, replace: bool
    ) -> Counter[str]:
        table, edits = wanted(held, news)
        if held is not None and (replace or not rules.compatible(held, table)):
            held = None
            table, edits = wanted(None, True)
        edits = [*rules.own_edits(held or Held(), table), *edits]
        step = rules.transaction(held, table, edits)
        if step is None:
            return Counter()
        known = self._known.pop(path)
        if step.edits is not None and step.changes.total() <= _EDITS_MAX:
            _edit(namespace, step.edits, known.generation)
        else:
            self._nft.run(step.text)
        after = namespace.generation()
        if after == _next(known.generation):  # else somebody came between: read it the next time
            self._known[path] = _Known(namespace.cookie, after, rules.advance(held, table, edits))
        return step.changes


def _edit(namespace: Namespace, edits: tuple[Edit, ...], generation: int) -> None:
    try:
        namespace.edit(list(edits), generation)
    except OSError as error:
        raise VipError(f"nftables refused a change of elements: {error.strerror}") from error


def _next(generation: int) -> int:
    """Generations are 32-bit numbers without zero."""
    return (generation + 1) & 0xFFFFFFFF or 1
