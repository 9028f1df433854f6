"""`mesh lab up`, killed at one step of it: `killed.py NAME ROOT STEP DELAY_S`.

A step is the start of a helper process or a write; the kill comes DELAY_S after it, so that a helper may be half done.
Prints "up" when STEP is more than there are.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from pathlib import Path

from mesh.lab.lab import Daemon, Lab


def kill_at(step: int, delay_s: float) -> None:
    """Have this process killed at its step number `step`."""
    seen = 0

    def audit(event: str, _: tuple[object, ...]) -> None:
        nonlocal seen
        if event in ("subprocess.Popen", "os.rename"):
            if seen == step:
                if delay_s == 0:
                    signal.raise_signal(signal.SIGKILL)
                threading.Timer(delay_s, os.kill, (os.getpid(), signal.SIGKILL)).start()
            seen += 1

    sys.addaudithook(audit)


if __name__ == "__main__":
    kill_at(int(sys.argv[3]), float(sys.argv[4]))
    Lab(sys.argv[1], Path(sys.argv[2])).up(1, Daemon(("sleep", "infinity")))
    print("up")
    signal.pause()
