"""Run a command where nobody else changes anything: in a network, mount and process namespace of its own.

For tests that compare the machine before and after: others may come and go meanwhile, unseen. The first process there
is a shell, which adopts what loses its parent.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from mesh.executor import namespaces

REPOSITORY = Path(__file__).parents[1]  # where to run it

_UNSHARED = ("unshare", "--net", "--mount", "--pid", "--fork", "--mount-proc", "--kill-child")
_SHELL = ("sh", "-c", '"$@"; exit $?', "sh")
# Below these, tests mount: what they mount and then remove would go from the sight of the command as well.
_SHARED = ("/tmp", "/var/lib/mesh-lab")


def alone(*command: str) -> list[str]:
    """The command that runs `command` alone; as root."""
    return [*_UNSHARED, "--", *_SHELL, sys.executable, "-m", "tests.alone", *command]


def main() -> None:
    """Become the command, with an empty /run and nothing of others mounted."""
    for place in _SHARED:
        namespaces.release(place)
    namespaces.own_run()
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    command = shutil.which(sys.argv[1])
    if command is None:
        raise SystemExit(f"there is no program {sys.argv[1]}")
    os.execv(command, sys.argv[1:])


if __name__ == "__main__":
    main()
