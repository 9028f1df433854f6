"""Junk by the hundred thousand packets a second, from a small C program that is compiled on the spot."""

from __future__ import annotations

import subprocess
from pathlib import Path

_SOURCE = Path(__file__).with_name("flood.c")


def built(directory: Path) -> Path:
    """The program `flood PORT PACKETS_PER_SECOND SECONDS`, which prints how many it sent; see flood.c."""
    program = directory / "flood"
    subprocess.run(["gcc", "-O2", "-o", str(program), str(_SOURCE)], check=True)
    return program
