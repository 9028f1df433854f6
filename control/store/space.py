"""How much space is left, judged with hysteresis: pure.

A manager must stop growing before the disk is full, not when it is: then there is still space for what ends the
trouble (deletions, a snapshot that lets old segments go), and another manager can take over in peace.
"""

from __future__ import annotations

from dataclasses import dataclass

# Below this other programs of the machine are in trouble, too; above twice as much the trouble is over. What the
# journal itself needs comes on top.
RESERVE_BYTES = 64 * 1024 * 1024
RECOVERED_RATIO = 2.0


@dataclass(frozen=True, slots=True)
class DiskLow:
    """Little space is left: read-only from now on; the leadership had better go elsewhere."""

    free_bytes: int
    path: str

    def __str__(self) -> str:
        mib = self.free_bytes // (1024 * 1024)
        return f"only {mib} MiB are free on the disk of {self.path}: free some space, until then nothing can be added"


@dataclass(frozen=True, slots=True)
class DiskRecovered:
    """There is space again."""

    free_bytes: int


@dataclass(frozen=True, slots=True)
class Space:
    """Whether there is too little, by the last look. `judge` is the next one."""

    low: bool = False

    def judge(self, free_bytes: int, needed_bytes: int, *, starved: bool) -> Space:
        """`needed_bytes` is what the journal will want next: a segment, and a snapshot like the last.

        `starved`: it wanted space and got none, whatever the file system says (quotas).
        """
        limit = RESERVE_BYTES + needed_bytes
        return Space(starved or free_bytes < (limit * RECOVERED_RATIO if self.low else limit))
