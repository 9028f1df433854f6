"""Talking to systemd: readiness, stopping, the watchdog (sd_notify(3)). Does nothing when not run by systemd."""

from __future__ import annotations

import os
import socket


def notify(state: str) -> None:
    """Send one state ("READY=1", "STOPPING=1", "WATCHDOG=1", "STATUS=...") to the service manager, if there is one."""
    path = os.environ.get("NOTIFY_SOCKET", "")
    if not path:
        return
    address = "\0" + path[1:] if path.startswith("@") else path
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as channel:
        try:
            channel.sendto(state.encode(), address)
        except OSError:
            return  # the manager went away; nothing depends on its hearing us


def watchdog_interval_s() -> float | None:
    """How often WATCHDOG=1 is to be sent (half the unit's WatchdogSec), or None."""
    microseconds = os.environ.get("WATCHDOG_USEC", "")
    return int(microseconds) / 2e6 if microseconds.isdigit() and int(microseconds) > 0 else None
