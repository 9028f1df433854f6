"""`/metrics` for Prometheus, on the address that `metrics_listen` names; off by default.

A few dozen lines instead of an HTTP library: it answers one path, reads no bodies, and closes after each answer.
"""

from __future__ import annotations

import asyncio
import contextlib

from mesh.metrics import Metrics

HEAD_MAX_BYTES = 8192  # of a request; more is no scraper
READ_TIMEOUT_S = 5.0
# Scrapers, and whoever looks by hand. The oldest that is not served yet gives way: many that say nothing are in
# nobody's way.
CLIENTS_MAX = 32


async def serve_metrics(listen: str, metrics: Metrics) -> None:
    """Serve until cancelled. `listen` is host:port. Raises OSError when the port cannot be had."""
    host, _, port = listen.rpartition(":")
    waiting: dict[asyncio.Task[object], None] = {}  # in the order of arrival

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        if len(waiting) >= CLIENTS_MAX:
            oldest = next(iter(waiting))
            del waiting[oldest]
            oldest.cancel()
        waiting[task] = None
        try:
            with contextlib.suppress(OSError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
                async with asyncio.timeout(READ_TIMEOUT_S):
                    head = await reader.readuntil(b"\r\n\r\n")
                    writer.write(_response(head.split(b"\r\n", 1)[0], metrics))
                    await writer.drain()
        finally:
            waiting.pop(task, None)
            writer.close()

    server = await asyncio.start_server(answer, host.strip("[]"), int(port), limit=HEAD_MAX_BYTES)
    async with server:
        await server.serve_forever()


def _response(request_line: bytes, metrics: Metrics) -> bytes:
    words = request_line.split()
    found = len(words) == 3 and words[0] == b"GET" and words[1].split(b"?")[0] == b"/metrics"
    body = metrics.render().encode() if found else b"only GET /metrics is here\n"
    status = b"200 OK" if found else b"404 Not Found"
    head = b"HTTP/1.1 %b\r\nContent-Type: text/plain; version=0.0.4\r\nContent-Length: %d\r\nConnection: close\r\n\r\n"
    return head % (status, len(body)) + body
