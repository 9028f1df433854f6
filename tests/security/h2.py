"""As much of HTTP/2 as somebody needs who wants to send what no library would: frames by hand."""

from __future__ import annotations

import socket
import ssl
import struct
from contextlib import suppress

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST_STREAM, SETTINGS, GOAWAY = 0, 1, 3, 4, 7
END_STREAM, END_HEADERS = 1, 4


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def settings() -> bytes:
    return frame(SETTINGS, 0, 0, b"")


def call(path: str | bytes, authority: str) -> bytes:
    """The beginning of a gRPC call, on stream 1."""
    fields = ((":method", "POST"), (":scheme", "https"), (":path", path), (":authority", authority),
              ("content-type", "application/grpc"), ("te", "trailers"))  # fmt: skip
    block = b"".join(b"\0" + _text(name) + _text(value) for name, value in fields)
    return frame(HEADERS, END_HEADERS, 1, block)


def data(payload: bytes) -> bytes:
    return frame(DATA, 0, 1, payload)


def _text(text: str | bytes) -> bytes:
    """HPACK: a string that is not compressed, of less than 127 bytes."""
    data = text.encode() if isinstance(text, str) else text
    return bytes([len(data)]) + data


def until_call_ended(sock: ssl.SSLSocket) -> bool:
    """Whether the other side ends stream 1, or the connection, before anything else does."""
    buffer = b""
    with suppress(ConnectionError, ssl.SSLError, socket.timeout):
        while more := sock.recv(65536):
            buffer += more
            while len(buffer) >= 9 and len(buffer) >= 9 + (length := int.from_bytes(buffer[:3], "big")):
                kind, flags, stream = struct.unpack(">BBI", buffer[3:9])
                buffer = buffer[9 + length :]
                if kind == GOAWAY or (stream == 1 and (kind == RST_STREAM or (kind == HEADERS and flags & END_STREAM))):
                    return True
        return True
    return False
