"""Load on one address: open connections that get a line five times a second, and new ones all the time.

`python tests/e2e/load.py HOST PORT --streams 100 --rate 50`: prints "ready", works until its standard input ends, then
prints one line of JSON: how many streams were cut or fell silent, how many requests were made and which failed.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time

SILENCE_S = 3.0  # a stream without a line for so long is broken
REQUEST_TIMEOUT_S = 8.0  # a lost SYN is sent again after 1, 3 and 7 s: on a busy machine that is no failure
FAILURES_SHOWN = 10


class Load:
    def __init__(self, host: str, port: int) -> None:
        self.host, self.port = host, port
        self.stop = asyncio.Event()
        self.open = 0
        self.cut: list[str] = []
        self.requests = 0
        self.failures: list[str] = []
        self.began = time.monotonic()

    def at(self) -> str:
        return f"{time.monotonic() - self.began:.2f} s"

    async def ask(self, path: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await asyncio.open_connection(self.host, self.port)
        writer.write(f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
        return reader, writer

    async def stream(self) -> None:
        writer = None
        try:
            reader, writer = await self.ask("/stream")
            await reader.readuntil(b"\r\n\r\n")
            await reader.readline()
            self.open += 1
            while not self.stop.is_set():
                async with asyncio.timeout(SILENCE_S):
                    if not await reader.readline():
                        raise ConnectionError("closed")
        except (OSError, TimeoutError, asyncio.IncompleteReadError) as error:
            self.cut.append(f"{self.at()}: {error!r}")
        finally:
            if writer is not None:
                writer.close()

    async def request(self) -> None:
        self.requests += 1
        try:
            async with asyncio.timeout(REQUEST_TIMEOUT_S):
                reader, writer = await self.ask("/")
                answer = await reader.read()
                writer.close()
            if not answer.startswith(b"HTTP/1.1 200") or b"host=" not in answer:
                raise ConnectionError(f"answered {answer[:40]!r}")
        except (OSError, TimeoutError) as error:
            self.failures.append(f"{self.at()}: {error!r}")

    async def run(self, streams: int, rate: float) -> None:
        async with asyncio.TaskGroup() as group:
            for _ in range(streams):
                group.create_task(self.stream())
            while self.open + len(self.cut) < streams:
                await asyncio.sleep(0.05)
            print("ready", flush=True)
            ended = group.create_task(asyncio.to_thread(sys.stdin.read))
            while not ended.done():
                group.create_task(self.request())
                await asyncio.sleep(1 / rate)
            self.stop.set()
        print(
            json.dumps(
                {
                    "streams": self.open,
                    "cut": len(self.cut),
                    "requests": self.requests,
                    "failed": len(self.failures),
                    "examples": (self.cut + self.failures)[:FAILURES_SHOWN],
                }
            )
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("host")
    parser.add_argument("port", type=int)
    parser.add_argument("--streams", type=int, default=0)
    parser.add_argument("--rate", type=float, default=50)
    asked = parser.parse_args()
    asyncio.run(Load(asked.host, asked.port).run(asked.streams, asked.rate))
