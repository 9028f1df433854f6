"""What keeps the secrets in this process's memory from getting out by accident."""

from __future__ import annotations

import ctypes
import os

_PR_SET_DUMPABLE = 4


def forbid_dumps() -> None:
    """No core dump of this process, wherever the machine puts them, and no debugger that is not root's.

    Not by a limit of resources: tasks would inherit that, and theirs may be dumped. Raises OSError.
    """
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
