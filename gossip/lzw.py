"""LZW as memberlist compresses: codes least significant bit first, 8-bit literals, widths 9 to 12. Pure and bounded.

This is the flavour of GIF and of Go's compress/lzw; TIFF's ("early change") and that of `compress` differ. Code 256
clears the table, 257 ends the stream. A decoder must be given the most bytes it may put out: 1,500 bytes of input can
stand for two megabytes.
"""

from __future__ import annotations

from typing import Final

CLEAR = 256
END = 257
WIDTH_MIN = 9
WIDTH_MAX = 12
CODE_MAX = (1 << WIDTH_MAX) - 1

_LITERALS: Final = [bytes((n,)) for n in range(256)] + [b"", b""]


class LzwError(ValueError):
    """Bytes that are no LZW stream, or one longer than allowed."""


def decompress(data: bytes, limit: int) -> bytes:
    """What `data` stands for. Raises LzwError: a bad code, an early end, or more than `limit` bytes."""
    table = _LITERALS.copy()
    out: list[bytes] = []
    total, at, size = 0, 0, len(data)
    bits, have, width = 0, 0, WIDTH_MIN
    last = b""  # what the code before stood for; empty: no entry is made from the next code
    while True:
        while have < width:
            if at >= size:
                raise LzwError("compressed data ends early")
            bits |= data[at] << have
            at += 1
            have += 8
        code = bits & ((1 << width) - 1)
        bits >>= width
        have -= width
        known = len(table)
        if code == CLEAR:
            table = _LITERALS.copy()
            width, last = WIDTH_MIN, b""
            continue
        if code == END:
            return b"".join(out)
        if code < known:
            entry = table[code]
        elif code == known and last:
            entry = last + last[:1]
        else:
            raise LzwError("compressed data has a code that is not in its table yet")
        total += len(entry)
        if total > limit:
            raise LzwError(f"compressed data stands for more than {limit} bytes")
        out.append(entry)
        if last and known <= CODE_MAX:
            table.append(last + entry[:1])
            known += 1
        last = entry
        # The entry made from the *next* code gets the number `known`: that code must already be wide enough for it.
        if known + 1 > (1 << width) and width < WIDTH_MAX:
            width += 1


def compress(data: bytes) -> bytes:
    """The same bytes as Go's writer puts out for `data`."""
    out = bytearray()
    bits, have, width = CLEAR, WIDTH_MIN, WIDTH_MIN
    table: dict[tuple[int, int], int] = {}
    newest = END
    code = -1
    for byte in data:
        if code < 0:
            code = byte
            continue
        longer = table.get((code, byte))
        if longer is not None:
            code = longer
            continue
        bits |= code << have
        have += width
        while have >= 8:
            out.append(bits & 0xFF)
            bits >>= 8
            have -= 8
        newest += 1
        if newest == 1 << width:
            width += 1
        if newest == CODE_MAX:
            bits |= CLEAR << have
            have += width
            width, newest = WIDTH_MIN, END
            table.clear()
        else:
            table[code, byte] = newest
        code = byte
    if code >= 0:
        bits |= code << have
        have += width
        newest += 1
        if newest == 1 << width:
            width += 1
        if newest == CODE_MAX:
            bits |= CLEAR << have
            have += width
            width = WIDTH_MIN
    bits |= END << have
    have += width
    while have > 0:
        out.append(bits & 0xFF)
        bits >>= 8
        have -= 8
    return bytes(out)
