"""Whether a history of reads, writes and compare-and-sets of registers is linearizable.

Wing and Gong's search with Lowe's cache. Registers are independent, so each is checked by itself. An operation whose
outcome is unknown may take effect at any time after its call, or never.
"""

from __future__ import annotations

from dataclasses import dataclass

FOREVER = float("inf")


@dataclass(slots=True)
class Operation:
    """`kind` is "read", "write" or "cas". `result`: what was read, or whether the cas took place."""

    kind: str
    key: int
    value: int = 0
    expected: int = 0
    called: float = 0.0
    returned: float = FOREVER
    result: int | bool | None = None


def step(state: int, op: Operation) -> int | None:
    """The register after an operation with that result; None if it cannot have it."""
    if op.kind == "read":
        return state if op.result == state else None
    if op.kind == "write":
        return op.value
    happened = state == op.expected
    if op.result is not None and op.result is not happened:
        return None
    return op.value if happened else state


def linearizable(operations: list[Operation], initial: int = 0) -> bool:
    """Of one register."""
    # A read that did not return says nothing.
    ops = sorted(
        (op for op in operations if op.kind != "read" or op.returned < FOREVER), key=lambda op: (op.called, op.returned)
    )
    needed = sum(1 << i for i, op in enumerate(ops) if op.returned < FOREVER)
    stack = [(0, initial)]
    seen = {(0, initial)}
    while stack:
        done, state = stack.pop()
        if done & needed == needed:
            return True
        # Only what was called before the first return of those that are left can come next.
        first_return = FOREVER
        candidates = []
        for i, op in enumerate(ops):
            if op.called > first_return:
                break
            if not done >> i & 1:
                candidates.append((i, op))
                first_return = min(first_return, op.returned)
        for i, op in reversed(candidates):
            if op.called <= first_return and (after := step(state, op)) is not None:
                following = (done | 1 << i, after)
                if following not in seen:
                    seen.add(following)
                    stack.append(following)
    return False


def check(operations: list[Operation]) -> int | None:
    """The first register whose history is not linearizable."""
    by_key: dict[int, list[Operation]] = {}
    for op in operations:
        by_key.setdefault(op.key, []).append(op)
    return next((key for key, ops in by_key.items() if not linearizable(ops)), None)
