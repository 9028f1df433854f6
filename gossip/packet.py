"""Packets: messages put together, checked, compressed, encrypted and labelled, and undone. Pure and bounded.

From the outside in: label, encryption, CRC, compression, compound, messages (memberlist's net.go). What comes in is
opened in that order; compression and compounds may nest, here no deeper than `_DEPTH_MAX`.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator, Sequence

import msgspec

from gossip import lzw
from gossip.keyring import OVERHEAD as ENCRYPTION_OVERHEAD
from gossip.keyring import DecryptError, KeyRing
from gossip.wire import Kind, WireError, number, pack, raw, unpack

PACKET_MAX = 1400  # bytes of what we send, before encryption (memberlist's UDPBufferSize): under any common MTU
RECEIVE_MAX = 65535
COMPOUND_MAX = 255  # messages in one compound: their number is one byte
COMPOUND_OVERHEAD = 2
PART_OVERHEAD = 2
CRC_LEN = 5
LABEL_MAX = 255
# Bytes all compressed parts of a packet may stand for together. Senders compress what fits one packet of 1,400, or of
# 65,535 where somebody raised that.
DECOMPRESSED_MAX = 65536
_DEPTH_MAX = 4  # compress, compound, and one more of each
_MESSAGES_MAX = 1024  # in one packet, nested compounds included; 1,400 bytes hold about 100

_CRC = struct.Struct("!BI")


class Envelope(msgspec.Struct):
    """What packets and streams are wrapped in. `verify_*` false are the steps from plain to encrypted."""

    keys: KeyRing
    label: bytes = b""
    encrypt_outgoing: bool = True  # with the primary key, when there is one
    verify_incoming: bool = True  # plain ones are dropped, when there is a key

    @property
    def overhead(self) -> int:
        """Bytes that label and encryption add to a packet."""
        label = 2 + len(self.label) if self.label else 0
        return label + (ENCRYPTION_OVERHEAD if self.keys and self.encrypt_outgoing else 0)

    def labelled(self, data: bytes) -> bytes:
        return bytes((Kind.LABEL, len(self.label))) + self.label + data if self.label else data


class Opened(msgspec.Struct):
    """What was in a packet."""

    messages: list[bytes]
    truncated: int = 0  # messages that compounds named and did not have


# --- out ----------------------------------------------------------------------------------------------------------


def seal(messages: Sequence[bytes], envelope: Envelope, *, crc: bool, compress: bool = False) -> bytes:
    """One packet with these messages, at least one and at most COMPOUND_MAX."""
    data = messages[0] if len(messages) == 1 else compound(messages)
    if compress and len(shorter := compressed(data)) < len(data):
        data = shorter
    if crc:
        data = _CRC.pack(Kind.CRC, zlib.crc32(data)) + data
    if envelope.keys and envelope.encrypt_outgoing:
        data = envelope.keys.seal(data, envelope.label)
    return envelope.labelled(data)


def compound(messages: Sequence[bytes]) -> bytes:
    if not 1 <= len(messages) <= COMPOUND_MAX:
        raise ValueError(f"a compound has 1 to {COMPOUND_MAX} messages, not {len(messages)}")
    lengths = struct.pack(f"!{len(messages)}H", *map(len, messages))
    return b"".join((bytes((Kind.COMPOUND, len(messages))), lengths, *messages))


def compounds(messages: Sequence[bytes]) -> list[bytes]:
    """As many as are needed."""
    return [compound(messages[at : at + COMPOUND_MAX]) for at in range(0, len(messages), COMPOUND_MAX)]


def compressed(data: bytes) -> bytes:
    return bytes((Kind.COMPRESS,)) + pack({"Algo": 0, "Buf": lzw.compress(data)})


# --- in -----------------------------------------------------------------------------------------------------------


def open_packet(data: bytes, envelope: Envelope) -> Opened:
    """The messages of a packet, wrappers undone. Raises WireError; DecryptError when no key fits."""
    data = _check_crc(_decrypt(_without_label(data, envelope.label), envelope))
    if data[:1] and data[0] not in (Kind.COMPOUND, Kind.COMPRESS):  # as most are
        return Opened([data])
    opened = Opened([])
    _Unwrapper(opened).unwrap(data, 0)
    return opened


def _without_label(data: bytes, label: bytes) -> bytes:
    found = b""
    if data[:1] == b"\xf4":
        if len(data) < 3 or not data[1] or len(data) < 2 + data[1]:
            raise WireError("a label is cut short")
        found, data = data[2 : 2 + data[1]], data[2 + data[1] :]
    if found != label:
        raise WireError("another label")
    return data


def _decrypt(data: bytes, envelope: Envelope) -> bytes:
    if not envelope.keys:
        return data
    try:
        return envelope.keys.open(data, envelope.label)
    except DecryptError:
        if envelope.verify_incoming:
            raise
        return data  # plain ones are still allowed


def _check_crc(data: bytes) -> bytes:
    if data[:1] != b"\x0c":
        return data
    if len(data) < CRC_LEN or _CRC.unpack_from(data)[1] != zlib.crc32(data[CRC_LEN:]):
        raise WireError("a wrong checksum")
    return data[CRC_LEN:]


class _Unwrapper:
    """One packet taken apart; what all its nested parts may take is counted together."""

    def __init__(self, opened: Opened) -> None:
        self.opened = opened
        self.room = DECOMPRESSED_MAX

    def unwrap(self, data: bytes, depth: int) -> None:
        if not data or depth > _DEPTH_MAX:
            raise WireError("an empty message, or nested too deep")
        match data[0]:
            case Kind.COMPRESS:
                plain = decompress(data[1:], self.room)
                self.room -= len(plain)
                self.unwrap(plain, depth + 1)
            case Kind.COMPOUND:
                for part in self._parts(data):
                    self.unwrap(part, depth + 1)
            case _:
                if len(self.opened.messages) >= _MESSAGES_MAX:
                    raise WireError("too many messages in a packet")
                self.opened.messages.append(data)

    def _parts(self, data: bytes) -> Iterator[bytes]:
        """Those that are there; of one cut short nothing."""
        count = data[1] if len(data) > 1 else 0
        at = 2 + 2 * count
        if not count or len(data) < at:
            raise WireError("a compound without its lengths")
        lengths = struct.unpack_from(f"!{count}H", data, 2)
        for index, length in enumerate(lengths):
            if at + length > len(data):
                self.opened.truncated += count - index
                return
            if length:
                yield data[at : at + length]
            at += length


def decompress(data: bytes, limit: int) -> bytes:
    """What a compressed message, without its type byte, stands for. Raises WireError."""
    fields = unpack(data)
    if number(fields, b"Algo") != 0:
        raise WireError("an unknown way of compression")
    try:
        return lzw.decompress(raw(fields, b"Buf", len(data)), limit)
    except lzw.LzwError as error:
        raise WireError(str(error)) from error
