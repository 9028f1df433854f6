"""A manager as a process of its own, to be killed: leads, and commits without end, telling what is acknowledged.

leading TERM        from here on it writes
version VERSION     acknowledged: row "a" has this version, and row "vVERSION" was made by it
"""

import asyncio
import sys
from pathlib import Path

from control.etcd.backend import EtcdBackend
from control.etcd.url import EtcdOptions
from control.quorum.backend import RaftBackend
from control.quorum.seat import found
from control.store.backend import Guard, Proposal
from control.store.record import RowChange
from tests.control.conformance.seen import opened

WINDOW = 20  # commits under way


async def backend_of(arguments: list[str]):
    match arguments:
        case ["raft", directory, limit]:
            if not Path(directory).exists():
                await found(Path(directory), "c1", "n0")
            return RaftBackend(Path(directory), "c1", "n0", log_limit_bytes=int(limit))
        case ["etcd", endpoints, prefix, ttl_s, node_id]:
            return EtcdBackend(EtcdOptions(tuple(endpoints.split(",")), prefix, ttl_s=int(ttl_s)), "c1", node_id)
    raise AssertionError(arguments)


async def main() -> None:
    seen = await opened(await backend_of(sys.argv[1:]))
    term = await seen.leading()
    print("leading", term, flush=True)
    at = seen.rows.get(("k", "a"))
    expected = at.version if at is not None else 0
    version = seen.version
    window: list[tuple[int, asyncio.Future]] = []
    while True:
        version += 1
        changes = (RowChange("k", "a", expected, b"%d" % version), RowChange("k", f"v{version}", 0, b""))
        window.append((version, seen.backend.commit(Proposal(version, changes), Guard(term))))
        expected = version
        if len(window) == WINDOW:
            oldest, future = window.pop(0)
            await future
            print("version", oldest, flush=True)


if __name__ == "__main__":
    asyncio.run(main())
