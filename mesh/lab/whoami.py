"""A small real HTTP server that says who answered and whom it saw: `python -m mesh.lab.whoami --port 80`.

    /        one line:   host=api.1 address=10.1.0.7 client=10.1.0.9:51234 path=/
    /json    the same as a JSON object
    /stream  a line every 200 ms until the client goes: shows whether a connection survives something

With --udp-port it also answers datagrams with the line. Each request has a thread; at most MAX_THREADS at once.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import socket
import socketserver
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

MAX_THREADS = 256  # a demo server; more clients than this wait in the kernel's backlog
STREAM_INTERVAL_S = 0.2
MAX_DATAGRAM_BYTES = 2048


def describe(client: tuple[str, int], local: str, path: str) -> dict[str, str]:
    """Who we are, and whom we saw."""
    return {"host": os.uname().nodename, "address": local, "client": f"{client[0]}:{client[1]}", "path": path}


def line(seen: dict[str, str]) -> bytes:
    """One line of text."""
    return (" ".join(f"{key}={value}" for key, value in seen.items()) + "\n").encode()


class Handler(BaseHTTPRequestHandler):
    """Answers one connection."""

    protocol_version = "HTTP/1.1"
    timeout = 60  # an idle keep-alive connection is closed after this many seconds

    def do_GET(self) -> None:
        local = self.connection.getsockname()[0]
        seen = describe(self.client_address, local, self.path)
        if self.path == "/stream":
            self._stream(seen)
            return
        body = json.dumps(seen).encode() + b"\n" if self.path == "/json" else line(seen)
        self.send_response(200)
        self.send_header("Content-Type", "application/json" if self.path == "/json" else "text/plain")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _stream(self, seen: dict[str, str]) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/plain")
        self.send_header("Connection", "close")
        self.end_headers()
        self.close_connection = True
        with contextlib.suppress(OSError):
            while True:
                self.wfile.write(line(seen))
                time.sleep(STREAM_INTERVAL_S)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name of the base class
        """Requests are not logged."""


class Server(ThreadingHTTPServer):
    """A thread per request, bounded."""

    daemon_threads = True
    request_queue_size = 128
    _places = threading.BoundedSemaphore(MAX_THREADS)

    def server_bind(self) -> None:
        """Without the base class's look-up of our own name, which may take seconds."""
        socketserver.TCPServer.server_bind(self)

    def process_request_thread(self, request: object, client_address: object) -> None:
        with self._places:
            super().process_request_thread(request, client_address)  # type: ignore[arg-type]


def serve_udp(port: int) -> None:
    """Answer datagrams for ever."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as channel:
        channel.bind(("", port))
        while True:
            _, client = channel.recvfrom(MAX_DATAGRAM_BYTES)
            channel.sendto(line(describe(client, "", "")), client)


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(prog="whoami", description="Say who answered and whom it saw, over HTTP.")
    parser.add_argument("--port", type=int, default=80)
    parser.add_argument("--udp-port", type=int)
    options = parser.parse_args()
    if options.udp_port:
        threading.Thread(target=serve_udp, args=(options.udp_port,), daemon=True).start()
    with contextlib.suppress(KeyboardInterrupt):
        Server(("", options.port), Handler).serve_forever()


if __name__ == "__main__":
    main()
