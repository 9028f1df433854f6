"""Our server as the daemon runs it, while services change: `changing.py PORT SERVICES CHANGES_PER_S`.

Prints the pid of the serving process when it serves, then changes one service after the other until it is ended.
"""

from __future__ import annotations

import asyncio
import sys
from dataclasses import replace
from ipaddress import IPv4Address
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from dns.plan import DnsPlan, Listener, NetworkNames, ServiceNames, TaskNames
from dns.service import NameServer


def service(number: int, turn: int) -> ServiceNames:
    """A service with two tasks; its VIP says how often it was changed."""
    tasks = tuple(
        TaskNames(f"t{number}-{i}", i, f"svc{number}.{i}", (), (IPv4Address(0x0B000000 + 2 * number + i),), True, True)
        for i in (1, 2)
    )
    return ServiceNames(f"svc{number}", (), (IPv4Address(0x0A000000 + turn % 65536),), tasks)


async def main(port: int, count: int, rate: float) -> None:
    """Serve and change."""
    services = [service(i, 0) for i in range(count)]
    network = NetworkNames("n", "web", IPv4Address("10.0.0.1"), tuple(services))
    listener = Listener(None, IPv4Address("127.0.0.1"), port, "n")
    server = NameServer(resolv_conf="/dev/null")
    async with asyncio.TaskGroup() as group:
        group.create_task(server.run())
        await asyncio.sleep(0)
        await server.apply(DnsPlan((listener,), (network,)))
        await asyncio.sleep(2.0 + count / 10_000)  # all is loaded
        print(server.status().pid, flush=True)
        turn = 0
        while True:
            await asyncio.sleep(1 / rate if rate else 3600)
            turn += 1
            services[turn % count] = service(turn % count, turn)
            await server.apply(DnsPlan((listener,), (replace(network, services=tuple(services)),)))


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])))
