"""What goes over TCP, one message each way: push/pull, user messages, the ping of last resort, errors. Pure, bounded.

`Reader` is fed with bytes as they come and says when all are there; `Reader.message` then decrypts, decompresses and
decodes, which takes a while for a large cluster (about 10 ms for 2,400 members), so that a shell may do it elsewhere.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

import msgpack  # type: ignore[import-untyped]  # it has no type information
import msgspec

from gossip.delegate import Member
from gossip.keyring import OVERHEAD, DecryptError
from gossip.packet import Envelope, compressed, decompress
from gossip.wire import (
    Ack,
    Fields,
    Kind,
    Ping,
    WireError,
    decode,
    decode_node_state,
    encode,
    error_text,
    flag,
    number,
    pack,
)

# Bytes of one message on the wire. A member takes about 91, Serf's state 10 for each: 4 MiB are 40,000 members, ten
# times what one gossip pool should have. Memberlist allows 20 MiB and 128 streams at once, which is no bound for a
# process that should stay at 40 MiB.
PAYLOAD_MAX = 4 << 20
DECOMPRESSED_MAX = 8 << 20
NODES_MAX = 65536
# Larger states are sent as they are: compressing 256 KiB takes 40 ms of a loop that must answer pings.
COMPRESS_MAX = 256 << 10
_HEADER_MAX = 512  # bytes of a map in front of nodes or of a user message
_FIELDS_MAX = 16
_LENGTH = struct.Struct("!BI")


class PushPull(msgspec.Struct, frozen=True):
    """All members as the sender knows them, and the state of its layer above."""

    join: bool
    nodes: list[Member]
    state: bytes


class UserStream(msgspec.Struct, frozen=True):
    message: bytes


class StreamError(msgspec.Struct, frozen=True):
    """The other side refuses; the text is its."""

    text: str


StreamMessage = PushPull | UserStream | StreamError | Ping | Ack


# --- out ----------------------------------------------------------------------------------------------------------


def push_pull(nodes: Sequence[bytes], state: bytes, join: bool) -> bytes:
    """Plain bytes of a push/pull; `nodes` from wire.encode_node_state."""
    header = pack({"Join": join, "Nodes": len(nodes), "UserStateLen": len(state)})
    return b"".join((b"\x06", header, *nodes, state))


def user(message: bytes) -> bytes:
    return b"\x08" + pack({"UserMsgLen": len(message)}) + message


def error(text: str) -> bytes:
    return b"\x0d" + pack({"Error": text.encode()})


def ping(message: Ping | Ack) -> bytes:
    return encode(message)


def seal(plain: bytes, envelope: Envelope, *, compress: bool) -> bytes:
    """What goes over the wire for one message."""
    if compress and len(plain) <= COMPRESS_MAX and len(shorter := compressed(plain)) < len(plain):
        plain = shorter
    if envelope.keys and envelope.encrypt_outgoing:
        head = _LENGTH.pack(Kind.ENCRYPT, OVERHEAD + len(plain))
        plain = head + envelope.keys.seal(plain, head + envelope.label)
    return envelope.labelled(plain)


# --- in -----------------------------------------------------------------------------------------------------------


class Reader:
    """One message of one stream. All methods raise WireError."""

    def __init__(self, envelope: Envelope) -> None:
        self._envelope = envelope
        self._data = bytearray()
        self._label_done = False
        self._need = 1  # bytes that must be there before it is worth looking again
        self._plain: _PlainReader | None = None
        self._encrypted_end = 0

    @property
    def size(self) -> int:
        """Bytes held."""
        return len(self._data) + (self._plain.size if self._plain else 0)

    def feed(self, data: bytes) -> bool:
        """Take bytes. True: the message is complete; what comes after it is ignored."""
        if self._plain is not None:
            return self._plain.feed(data)
        self._data += data
        if len(self._data) < self._need:
            return False
        if not self._label_done and not self._take_label():
            return False
        return self._feed_body()

    def message(self) -> StreamMessage:
        """The message, once it is complete."""
        if self._plain is not None:
            return self._plain.message()
        head = bytes(self._data[: _LENGTH.size])
        sealed = bytes(self._data[_LENGTH.size : self._encrypted_end])
        try:
            plain = self._envelope.keys.open(sealed, head + self._envelope.label)
        except DecryptError as reason:
            raise WireError(str(reason)) from reason
        return decode_plain(plain)

    def _take_label(self) -> bool:
        label = self._envelope.label
        if self._data[0] != Kind.LABEL:
            if label:
                raise WireError("another label")
            self._label_done = True
            return True
        self._need = 2
        if len(self._data) < 2:
            return False
        length = self._data[1]
        self._need = 3 + length
        if not length:
            raise WireError("a label is empty")
        if len(self._data) < self._need:
            return False
        if bytes(self._data[2 : 2 + length]) != label:
            raise WireError("another label")
        del self._data[: 2 + length]
        self._label_done = True
        return True

    def _feed_body(self) -> bool:
        if self._data[0] != Kind.ENCRYPT:
            if self._envelope.keys and self._envelope.verify_incoming:
                raise WireError("not encrypted")
            self._plain = _PlainReader()
            data, self._data = bytes(self._data), bytearray()
            return self._plain.feed(data)
        if not self._envelope.keys:
            raise WireError("encrypted, and there is no key")
        self._need = _LENGTH.size
        if len(self._data) < self._need:
            return False
        length = _LENGTH.unpack_from(self._data)[1]
        if length > PAYLOAD_MAX:
            raise WireError("an encrypted message is too long")
        self._need = self._encrypted_end = _LENGTH.size + length
        return len(self._data) >= self._need


def decode_plain(data: bytes) -> StreamMessage:
    """A whole message, decrypted. Raises WireError."""
    reader = _PlainReader()
    if not reader.feed(data):
        raise WireError("a message is cut short")
    return reader.message()


class _PlainReader:
    """A message that is not encrypted. Only its content says where it ends, so it is decoded as it comes."""

    def __init__(self, nested: bool = False) -> None:
        self._nested = nested  # inside a compressed one, which must not have another
        self._unpacker = msgpack.Unpacker(
            raw=True, strict_map_key=False, max_buffer_size=DECOMPRESSED_MAX + _HEADER_MAX, max_str_len=PAYLOAD_MAX,
            max_array_len=0, max_map_len=_FIELDS_MAX, max_ext_len=0,
        )  # fmt: skip
        self._kind = -1
        self._fed = 0
        self._header: Fields | None = None
        self._count = 0
        self._nodes: list[Member] = []
        self._tail_len = 0
        self._tail: bytes | None = None

    @property
    def size(self) -> int:
        return self._fed

    def feed(self, data: bytes) -> bool:
        if not data:
            return False
        if self._kind < 0:
            self._kind, data = data[0], data[1:]
        self._fed += len(data)
        limit = DECOMPRESSED_MAX if self._nested else PAYLOAD_MAX
        if self._fed > limit + _HEADER_MAX:
            raise WireError("a message is too long")
        try:
            self._unpacker.feed(data)
            return self._step()
        except (ValueError, TypeError, OverflowError, msgpack.BufferFull) as reason:
            raise reason if isinstance(reason, WireError) else WireError("not MessagePack") from reason
        except msgpack.OutOfData:
            return False

    def _step(self) -> bool:
        """On as far as the bytes go; msgpack.OutOfData when there must be more."""
        if self._header is None:
            self._header = self._next_map()
            self._read_header(self._header)
        while len(self._nodes) < self._count:
            self._nodes.append(decode_node_state(self._next_map()))
        if self._tail is None and self._tail_len:
            if self._fed - self._unpacker.tell() < self._tail_len:
                return False
            self._tail = self._unpacker.read_bytes(self._tail_len)
        return True

    def _next_map(self) -> Fields:
        value = self._unpacker.unpack()
        if type(value) is not dict:
            raise WireError("not a map")
        return value

    def _read_header(self, header: Fields) -> None:
        match self._kind:
            case Kind.PUSH_PULL:
                self._count = number(header, b"Nodes", NODES_MAX)
                self._tail_len = number(header, b"UserStateLen", PAYLOAD_MAX)
            case Kind.USER:
                self._tail_len = number(header, b"UserMsgLen", PAYLOAD_MAX)
            case Kind.PING | Kind.ACK | Kind.ERROR:
                pass
            case Kind.COMPRESS if not self._nested:
                pass
            case _:
                raise WireError("an unknown type of message")

    def message(self) -> StreamMessage:
        header = self._header or {}
        match self._kind:
            case Kind.PUSH_PULL:
                return PushPull(flag(header, b"Join"), self._nodes, self._tail or b"")
            case Kind.USER:
                return UserStream(self._tail or b"")
            case Kind.ERROR:
                return StreamError(error_text(header))
            case Kind.COMPRESS:
                inner = _PlainReader(nested=True)
                if not inner.feed(decompress(msgpack.packb(header, use_bin_type=False), DECOMPRESSED_MAX)):
                    raise WireError("a message is cut short")
                return inner.message()
            case _:
                pass
        answer = decode(bytes((self._kind,)) + msgpack.packb(header, use_bin_type=False))
        if not isinstance(answer, Ping | Ack):
            raise WireError("an unknown type of message")
        return answer
