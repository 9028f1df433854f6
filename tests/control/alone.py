"""A manager that is alone, on a real directory."""

from pathlib import Path

from control.quorum.backend import RaftBackend
from control.quorum.seat import found
from control.store.segments import SEGMENT_BYTES


async def alone(
    directory: Path, cluster: str = "c1", *, ring=None, segment_bytes: int = SEGMENT_BYTES, **options
) -> RaftBackend:
    """Its backend. Where there is no directory, its cluster is made first."""
    if not directory.exists():
        await found(directory, cluster, "n1", ring=ring, segment_bytes=segment_bytes)
    return RaftBackend(directory, cluster, "n1", ring=ring, segment_bytes=segment_bytes, **options)
