"""Processes by descriptor (pidfd): they are signalled and waited for, whoever their parent is."""

from __future__ import annotations

import asyncio
import contextlib
import signal


def signal_number(name: str) -> signal.Signals:
    """SIGTERM from "SIGTERM" or "TERM", and from what is no signal."""
    full = name if name.startswith("SIG") else f"SIG{name}"
    return signal.Signals[full] if full in signal.Signals.__members__ else signal.SIGTERM


def send(process: int, number: signal.Signals) -> None:
    """Signal a process by pidfd; one that has ended is no error."""
    with contextlib.suppress(ProcessLookupError):
        signal.pidfd_send_signal(process, number)


async def ended(process: int) -> None:
    """Return when the process of a pidfd, ours or not, has ended."""
    loop, over = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(process, over.set)
    try:
        await over.wait()
    finally:
        loop.remove_reader(process)


async def ends_within(process: int, timeout_s: float) -> bool:
    """Whether it ends within a time."""
    try:
        async with asyncio.timeout(timeout_s):
            await ended(process)
    except TimeoutError:
        return False
    return True
