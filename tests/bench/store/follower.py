"""A follower of the benchmarks' cluster: a store on a RaftBackend that joins, until its standard input ends.

    python -m tests.bench.store.follower DIRECTORY NODE_ID SEAT PORT LEADER_ADDRESS

SEAT is JSON, as the leader's `add_learner` gave it. Prints "ready" when it listens.
"""

import asyncio
import sys
import time
from pathlib import Path

import msgspec

from control.quorum.backend import Network, RaftBackend
from control.quorum.seat import Seat, enrol
from control.store.store import Store
from control.transport.service import listening
from tests.bench.store.clusters import PATIENT, SWITCH_INTERVAL_S


async def main(directory: str, node_id: str, seat: str, port: str, leader: str) -> None:
    await enrol(Path(directory), "bench", msgspec.json.decode(seat, type=Seat))
    network = Network(listening("127.0.0.1", int(port)), advertise=f"127.0.0.1:{port}")
    backend = RaftBackend(Path(directory), "bench", node_id, network=network, peers={"n0": leader}, options=PATIENT)
    store = Store(backend, lambda: time.time_ns() // 1_000_000)
    await store.open()
    print("ready", flush=True)
    await asyncio.to_thread(sys.stdin.read)
    await store.close()


if __name__ == "__main__":
    sys.setswitchinterval(SWITCH_INTERVAL_S)  # as the daemon does
    asyncio.run(main(*sys.argv[1:]))
