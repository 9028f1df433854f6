"""What a newcomer and a manager say to each other over TLS before there is a certificate. Pure.

    manager   Greeting: the roots to believe, and what links its certificate to them
    newcomer  (has checked the root by the digest in its token, or by the roots it knew; else it hangs up)
              a request, as `control.rpc` has it
    manager   Verdict: an answer, or why not

Each is MessagePack behind its length. The newcomer's TLS believes nothing by itself; that TLS 1.3 was completed shows
that the other side has the key of the certificate which is then checked. No token is sent before.
"""

from __future__ import annotations

import struct
from typing import TypeVar

import msgspec

ALPN = "mesh-enrol/1"
_LENGTH = struct.Struct(">I")
LENGTH_BYTES = _LENGTH.size
# A request is a description of a machine and a CSR; an answer some certificates and addresses.
REQUEST_MAX_BYTES, ANSWER_MAX_BYTES = 64 * 1024, 256 * 1024

T = TypeVar("T", bound=msgspec.Struct)


class BadFrame(Exception):
    """The other side does not speak this. One sentence."""


class Greeting(msgspec.Struct, frozen=True):
    """PEM both: roots that a cluster believes, and cross-signed ones."""

    roots: bytes
    chain: bytes = b""


class Verdict(msgspec.Struct, frozen=True):
    """`code` is "" if the request was granted, else the name of a gRPC status; `sentence` is for the user."""

    code: str = ""
    sentence: str = ""
    answer: bytes = b""


def framed(data: bytes) -> bytes:
    """Behind its length."""
    return _LENGTH.pack(len(data)) + data


def length_of(head: bytes, most: int) -> int:
    """How much follows. Raises BadFrame, also when more than `most` bytes are announced."""
    length = int(_LENGTH.unpack(head)[0])
    if not 0 < length <= most:
        raise BadFrame(f"a message of {length} bytes is announced, and {most} are allowed")
    return length


def encode(message: msgspec.Struct) -> bytes:
    """A message with its frame."""
    return framed(msgspec.msgpack.encode(message))


def decode(data: bytes, cls: type[T]) -> T:
    """Without its frame. Raises BadFrame."""
    try:
        return msgspec.msgpack.decode(data, type=cls)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise BadFrame("a message cannot be read") from error


def enrolment_address(api: str) -> str:
    """Where a manager lets newcomers in, from where its API is (host:port): one port below."""
    host, _, port = api.rpartition(":")
    return f"{host}:{int(port) - 1}"
