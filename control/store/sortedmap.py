"""A persistent sorted map: a version that somebody holds never changes, a new one shares almost everything with it.

A B-tree of two levels: a list of chunks, each a pair of sorted tuples. An edit copies the list of chunks once and each
chunk it touches once, so a commit of a few objects costs microseconds with 100,000 of them, and taking a snapshot
costs nothing. (A hash trie would do as well for single keys; this one also gives ranges, and an order that does not
depend on the process's hash seed, so that whoever iterates decides the same everywhere.)

Tuples, because the garbage collector lets go of a tuple once it has seen that nothing in it can be part of a cycle; a
list it would walk through in every full collection, which takes 100 ms with 100,000 tasks and their indexes.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Collection, Iterator
from typing import Any, Generic, TypeVar

K = TypeVar("K", bound=Any)  # a totally ordered type: str, or tuples of str
V = TypeVar("V")

CHUNK_MAX = 128  # items: copying a chunk twice and the lists of 800 chunks at 100,000 items cost about the same
CHUNK_MIN = CHUNK_MAX // 4  # below this a chunk looks for a neighbour to merge with


class _Chunk(Generic[K, V]):
    """Tuples; an editor's own have a list of values, and of keys if those have changed, until it is done."""

    __slots__ = ("keys", "values")

    def __init__(self, keys: Any, values: Any) -> None:
        self.keys = keys
        self.values = values


class SortedMap(Generic[K, V]):
    """Immutable once made. Change it through `edit()`."""

    __slots__ = ("_chunks", "_firsts", "_size")

    def __init__(self) -> None:
        self._firsts: list[K] = []  # a lower bound of each chunk's keys, above all keys of the chunk before
        self._chunks: list[_Chunk[K, V]] = []
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def get(self, key: K) -> V | None:
        """The value at `key`, None if there is none."""
        i = bisect_right(self._firsts, key) - 1
        if i < 0:
            return None
        chunk = self._chunks[i]
        j = bisect_left(chunk.keys, key)
        return chunk.values[j] if j < len(chunk.keys) and chunk.keys[j] == key else None

    def __iter__(self) -> Iterator[K]:
        for chunk in self._chunks:
            yield from chunk.keys

    def items(self) -> Iterator[tuple[K, V]]:
        """All pairs in the order of the keys."""
        for chunk in self._chunks:
            yield from zip(chunk.keys, chunk.values, strict=True)

    def values(self) -> Values[V]:
        """A sized view of all values in the order of the keys; costs nothing."""
        return Values(self)

    def values_between(self, low: K, high: K | None) -> list[V]:
        """Values of the keys with low <= key < high; None: to the end."""
        out: list[V] = []
        for chunk, a, b in self._slices(low, high):
            out += chunk.values[a:b]
        return out

    def keys_between(self, low: K, high: K | None) -> list[K]:
        """Keys with low <= key < high."""
        out: list[K] = []
        for chunk, a, b in self._slices(low, high):
            out += chunk.keys[a:b]
        return out

    def _slices(self, low: K, high: K | None) -> Iterator[tuple[_Chunk[K, V], int, int]]:
        for i in range(max(bisect_right(self._firsts, low) - 1, 0), len(self._chunks)):
            if high is not None and self._firsts[i] >= high:
                return
            chunk = self._chunks[i]
            a = bisect_left(chunk.keys, low)
            b = len(chunk.keys) if high is None else bisect_left(chunk.keys, high)
            if a < b:
                yield chunk, a, b

    def edit(self) -> Editor[K, V]:
        """Start a new version."""
        return Editor(self)


class Values(Collection[V]):
    """All values of one version of a map."""

    __slots__ = ("_map",)

    def __init__(self, of: SortedMap[Any, V]) -> None:
        self._map = of

    def __len__(self) -> int:
        return len(self._map)

    def __iter__(self) -> Iterator[V]:
        for chunk in self._map._chunks:
            yield from chunk.values

    def __contains__(self, value: object) -> bool:
        return any(value == v for v in self)


class Editor(Generic[K, V]):
    """A version in the making. Used by one owner, once: `done` ends it."""

    __slots__ = ("_chunks", "_firsts", "_owned", "_shared", "_size")

    def __init__(self, base: SortedMap[K, V]) -> None:
        self._firsts = base._firsts
        self._shared = True  # with the base: most commits change no bound of a chunk
        self._chunks = list(base._chunks)
        self._size = base._size
        self._owned: list[_Chunk[K, V]] = []  # chunks of this editor, which it may change in place

    def set(self, key: K, value: V) -> None:
        """Put a value, replacing the one at `key`."""
        if not self._chunks:
            self._insert_chunk(0, key, _Chunk([key], [value]))
            self._size = 1
            return
        i = bisect_right(self._firsts, key) - 1
        if i < 0:
            i = 0
            self._own_firsts()[0] = key
        chunk = self._chunks[i]
        j = bisect_left(chunk.keys, key)
        if j < len(chunk.keys) and chunk.keys[j] == key:
            if type(chunk.values) is not list:
                chunk = self._own_values(i)
            chunk.values[j] = value
            return
        chunk = self._own(i)
        chunk.keys.insert(j, key)
        chunk.values.insert(j, value)
        self._size += 1
        if len(chunk.keys) > CHUNK_MAX:
            self._split(i)

    def delete(self, key: K) -> bool:
        """Remove a key; False if it was not there."""
        i = bisect_right(self._firsts, key) - 1
        if i < 0:
            return False
        keys = self._chunks[i].keys
        j = bisect_left(keys, key)
        if j == len(keys) or keys[j] != key:
            return False
        chunk = self._own(i)
        del chunk.keys[j], chunk.values[j]
        self._size -= 1
        if len(chunk.keys) < CHUNK_MIN:
            self._merge(i)
        return True

    def done(self) -> SortedMap[K, V]:
        """The new version. The editor is of no use after it."""
        out: SortedMap[K, V] = SortedMap()
        for chunk in self._owned:
            chunk.values = tuple(chunk.values)
            if type(chunk.keys) is list:
                chunk.keys = tuple(chunk.keys)
        out._firsts, out._chunks, out._size = self._firsts, self._chunks, self._size
        self._firsts, self._chunks, self._owned = [], [], []
        return out

    def _own_firsts(self) -> list[K]:
        if self._shared:
            self._firsts, self._shared = list(self._firsts), False
        return self._firsts

    def _own(self, i: int) -> _Chunk[K, V]:
        chunk = self._chunks[i]
        if type(chunk.values) is not list:
            chunk = self._own_values(i)
        if type(chunk.keys) is not list:
            chunk.keys = list(chunk.keys)
        return chunk

    def _own_values(self, i: int) -> _Chunk[K, V]:
        """A chunk whose values may be changed. Its keys stay those of the version before."""
        chunk = self._chunks[i]
        mine = self._chunks[i] = _Chunk(chunk.keys, list(chunk.values))
        self._owned.append(mine)
        return mine

    def _insert_chunk(self, i: int, first: K, chunk: _Chunk[K, V]) -> None:
        self._owned.append(chunk)
        self._own_firsts().insert(i, first)
        self._chunks.insert(i, chunk)

    def _split(self, i: int) -> None:
        chunk = self._own(i)
        # Keys that arrive in order fill the last chunk: leave the full one full.
        at = len(chunk.keys) - 1 if i == len(self._chunks) - 1 else len(chunk.keys) // 2
        right: _Chunk[K, V] = _Chunk(chunk.keys[at:], chunk.values[at:])
        del chunk.keys[at:], chunk.values[at:]
        self._insert_chunk(i + 1, right.keys[0], right)

    def _merge(self, i: int) -> None:
        if not self._chunks[i].keys:
            del self._own_firsts()[i], self._chunks[i]
            return
        left = i - 1 if i > 0 else i
        right = left + 1
        if right == len(self._chunks):
            return
        if len(self._chunks[left].keys) + len(self._chunks[right].keys) > CHUNK_MAX // 2:
            return
        into, out = self._own(left), self._chunks[right]
        into.keys += out.keys
        into.values += out.values
        del self._own_firsts()[right], self._chunks[right]
