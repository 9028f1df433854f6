"""Sizes of memory as Docker writes them (go-units RAMInBytes): 64M, 1.5g, 512KiB, 1048576; units are powers of 1024."""

from __future__ import annotations

import re
from decimal import Decimal

from mesh.cli.text import TextError

_SIZE = re.compile(r"([0-9]{1,20}(?:\.[0-9]{1,20})?) ?(?:([kmgtp])(?:i?b)?|b)?", re.IGNORECASE)
_POWER = {"k": 1, "m": 2, "g": 3, "t": 4, "p": 5}


def parse_size(text: str) -> int:
    """Bytes. Raises TextError."""
    match = _SIZE.fullmatch(text)
    if match is None:
        raise TextError(f'"{text}" is not a size: such as 64M, 1.5G, 512K')
    return int(Decimal(match[1]) * 1024 ** _POWER.get((match[2] or "").lower(), 0))


def format_size(size: int) -> str:
    """With at most four digits and a binary unit, as Docker does: 64MiB, 1.5GiB, 100B."""
    value, units = float(size), ["B", "KiB", "MiB", "GiB", "TiB", "PiB"]
    while value >= 1024 and len(units) > 1:
        value /= 1024
        units.pop(0)
    return f"{value:.4g}{units[0]}"
