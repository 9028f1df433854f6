"""Run the demo until it says something, interrupt it, and tell as JSON how it ended and what it left behind."""

import json
import signal
import subprocess
import sys

from mesh.lab.machine import difference, snapshot

END_TIMEOUT_S = 60.0


def main() -> None:
    """Arguments: how the line begins after which to interrupt, and the command with the lab's name as its fourth."""
    when, *command = sys.argv[1:]
    name = command[command.index("--name") + 1]
    before = snapshot(name)
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as demo:
        assert demo.stdout is not None
        for line in demo.stdout:
            if line.startswith(when):
                break
        demo.send_signal(signal.SIGINT)
        demo.communicate(timeout=END_TIMEOUT_S)
    print(json.dumps({"exit": demo.returncode, "left": difference(before, snapshot(name))}))


if __name__ == "__main__":
    main()
