"""A codec for messages that are msgspec structs: a frame is one MessagePack array of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Generic

import msgspec

from control.transport.seam import M


class StructCodec(Generic[M]):
    """Implements `control.transport.seam.Codec`.

    `cls` is a struct, or a union of tagged ones; `ends` says of a message who it is from and for; `size_bytes` need not
    be exact.
    """

    def __init__(
        self,
        cls: Any,
        *,
        ends: Callable[[M], tuple[str, str]],
        size_bytes: Callable[[M], int],
        urgent: Callable[[M], bool],
    ) -> None:
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder: msgspec.msgpack.Decoder[list[M]] = msgspec.msgpack.Decoder(list[cls])
        self._ends = ends
        self.size_bytes = size_bytes
        self.urgent = urgent

    def encode(self, messages: Sequence[M]) -> bytes:
        """See Codec."""
        return self._encoder.encode(messages)

    def decode(self, payload: bytes, sender: str, receiver: str) -> list[M]:
        """See Codec. Raises ValueError (of which msgspec's errors are)."""
        messages = self._decoder.decode(payload)
        ends = sender, receiver
        for message in messages:
            if self._ends(message) != ends:
                raise ValueError("a message of or to somebody else")
        return messages
