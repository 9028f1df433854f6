"""A small real HTTP server that says who answered and whom it saw: `python -m mesh.lab.whoami --port 80`.

    /        one line:   host=api.1 address=10.1.0.7 client=10.1.0.9:51234 path=/
    /json    the same as a JSON object
    /stream  a line every 200 ms until the client goes: shows whether a connection survives something

With --udp-port it also answers each datagram with the line. A connection has a thread; there are at most MAX_THREADS.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import socket
import socketserver
import struct
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

MAX_THREADS = 256  # a demo server; more connections than this wait in the kernel's backlog
STREAM_INTERVAL_S = 0.2
MAX_DATAGRAM_BYTES = 2048
_IP_PKTINFO = 8  # ip(7); not in Python's socket module
_PKTINFO = struct.Struct("@i4s4s")  # device, local address, destination of the packet


def describe(client: tuple[Any, ...], local: str, path: str) -> dict[str, str]:
    """Who we are, and whom we saw; addresses as sockets of either family give them."""
    host = _plain(str(client[0]))
    seen = f"[{host}]:{client[1]}" if ":" in host else f"{host}:{client[1]}"
    return {"host": os.uname().nodename, "address": _plain(local), "client": seen, "path": path}


def _plain(address: str) -> str:
    """An IPv4 address as such, also where a socket of both families shows it as one of IPv6 (RFC 4291, 2.5.5.2)."""
    return address.removeprefix("::ffff:")


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
    """A thread per request, bounded; on both families where there are both."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, address: tuple[str, int], places: int = MAX_THREADS) -> None:
        """Raises OSError when the port is taken."""
        self._both = not address[0] and socket.has_dualstack_ipv6()
        self.address_family = socket.AF_INET6 if self._both else socket.AF_INET
        super().__init__(address, Handler)
        self._places = threading.BoundedSemaphore(places)

    def server_bind(self) -> None:
        """Without the base class's look-up of our own name, which may take seconds."""
        if self._both:
            self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        socketserver.TCPServer.server_bind(self)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Take no more connections than there are places."""
        self._places.acquire()
        try:
            super().process_request(request, client_address)
        except RuntimeError:  # no thread can be started
            self._places.release()
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Serve one connection."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._places.release()

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that goes away in the middle is nothing to write down."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)  # type: ignore[arg-type]


def udp_socket(port: int) -> socket.socket:
    """A socket that says at which of our addresses a datagram arrived. Raises OSError."""
    channel = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    channel.setsockopt(socket.IPPROTO_IP, _IP_PKTINFO, 1)
    channel.bind(("", port))
    return channel


def serve_udp(channel: socket.socket) -> None:
    """Answer datagrams for ever, each from the address that it was sent to."""
    while True:
        _, extra, _, client = channel.recvmsg(MAX_DATAGRAM_BYTES, socket.CMSG_SPACE(_PKTINFO.size))
        local = b"\0" * 4
        for level, kind, data in extra:
            if (level, kind) == (socket.IPPROTO_IP, _IP_PKTINFO):
                _, local, _ = _PKTINFO.unpack(data[: _PKTINFO.size])
        answer = line(describe(client, socket.inet_ntoa(local), ""))
        source = (socket.IPPROTO_IP, _IP_PKTINFO, _PKTINFO.pack(0, local, b"\0" * 4))
        with contextlib.suppress(OSError):  # the client's network went away meanwhile
            channel.sendmsg([answer], [source], 0, client)


def serve(port: int, udp_port: int = 0) -> None:
    """Serve until interrupted. Raises OSError when a port is taken."""
    server = Server(("", port))
    if udp_port:
        threading.Thread(target=serve_udp, args=(udp_socket(udp_port),), daemon=True).start()
    with contextlib.suppress(KeyboardInterrupt):
        server.serve_forever()


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(prog="whoami", description="Say who answered and whom it saw, over HTTP.")
    parser.add_argument("--port", type=int, default=80)
    parser.add_argument("--udp-port", type=int, default=0)
    options = parser.parse_args()
    try:
        serve(options.port, options.udp_port)
    except OSError as error:
        sys.exit(f"whoami: cannot listen on port {options.port} or {options.udp_port}: {error.strerror}")


if __name__ == "__main__":
    main()
