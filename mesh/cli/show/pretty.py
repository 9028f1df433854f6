"""`What: value` lines for people."""

from __future__ import annotations

from collections.abc import Sequence

from mesh.cli.text.table import printable

Line = tuple[int, str, str]  # (depth, what, value)


def aligned(lines: Sequence[Line]) -> str:
    """`What: value` lines, indented by depth, values of one depth below each other."""
    widths = {depth: max(len(what) for d, what, _ in lines if d == depth) for depth, _, _ in lines}
    return "".join(
        f"{' ' * depth}{what + ':':<{widths[depth] + 1}} {printable(value)}".rstrip() + "\n"
        for depth, what, value in lines
    )
