"""Whether all managers have the same state: a leader's digests beside this manager's own, at the same versions."""

from __future__ import annotations

# A digest is compared at every commit whose number is a multiple of this. It is kept by the way (`State`), so this
# costs a message; often enough that a bug is found near where it happened.
COMPARE_EVERY = 256
# Of each side: a follower that is further behind than COMPARE_EVERY times this is compared later.
KEPT = 16


class Digests:
    """See the module."""

    def __init__(self) -> None:
        self._own: dict[int, str] = {}
        self._leaders: dict[int, str] = {}

    @staticmethod
    def due(version: int) -> bool:
        """Whether this one is compared."""
        return version % COMPARE_EVERY == 0

    def take(self, version: int, digest: str) -> int | None:
        """This manager's state at a version. The version if the leader had another one."""
        return self._compare(self._own, self._leaders, version, digest)

    def hear(self, version: int, digest: str) -> int | None:
        """The leader's."""
        return self._compare(self._leaders, self._own, version, digest)

    @staticmethod
    def _compare(kept: dict[int, str], other: dict[int, str], version: int, digest: str) -> int | None:
        kept[version] = digest
        while len(kept) > KEPT:
            del kept[next(iter(kept))]
        return version if other.get(version, digest) != digest else None
