"""A process that is killed after one of its calls of the kernel, for the tests of what a crash leaves.

A call is what changes the kernel: a request of netlink, a transaction of nftables, a sysctl, a namespace made, named or
unnamed. The process is a fork of the test's, so that a hundred of them are cheap.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pyroute2 import IPRoute

from mesh.vip.namespace import Netlink
from mesh.vip.nft import Library
from overlay import rtnl

_READS = frozenset({"dump", "get", "show"})
_WRITERS = frozenset({"link", "addr", "route", "neigh", "fdb"})


class _Calls:
    """Counts calls, and ends the process after one of them."""

    def __init__(self, last: int) -> None:
        self._left = last

    def after(self, call: Callable[..., Any]) -> Callable[..., Any]:
        """The same function, counted."""

        def counted(*arguments: Any, **named: Any) -> Any:
            result = call(*arguments, **named)
            self.count()
            return result

        return counted

    def count(self) -> None:
        """One more call is done."""
        if self._left == 0:
            signal.raise_signal(signal.SIGKILL)
        self._left -= 1


class _Route:
    """pyroute2's IPRoute with what changes something counted."""

    def __init__(self, real: Any, calls: _Calls) -> None:
        self._real, self._calls = real, calls

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._real, name)
        if name not in _WRITERS:
            return method
        counted = self._calls.after(method)

        def chosen(command: str, **named: Any) -> Any:
            return (method if command in _READS else counted)(command, **named)

        return chosen


class _Libc:
    """The C library with its calls counted."""

    def __init__(self, libc: Any, calls: _Calls) -> None:
        self.unshare = libc.unshare
        self.mount = calls.after(libc.mount)
        self.umount2 = calls.after(libc.umount2)


def killed_after(call: int, work: Callable[[], object]) -> bool:
    """Do `work` in a process that is killed after its call number `call` (from 0); whether it was killed.

    What fails in there fails the test.
    """
    if (child := os.fork()) == 0:
        status = 1
        try:
            _watch(_Calls(call))
            work()
            status = 0
        finally:
            os._exit(status)
    _, ended = os.waitpid(child, 0)
    if os.WIFSIGNALED(ended):
        assert os.WTERMSIG(ended) == signal.SIGKILL
        return True
    assert os.WEXITSTATUS(ended) == 0, "the process failed before it was to be killed"
    return False


def _watch(calls: _Calls) -> None:
    """Count from now on; for a process that ends soon."""
    replaced: list[tuple[Any, str, Any]] = [
        (rtnl, "IPRoute", lambda fileno: _Route(IPRoute(fileno=fileno), calls)),
        (Netlink, "_batch", calls.after(Netlink._batch)),
        (Netlink, "transaction", calls.after(Netlink.transaction)),
        (rtnl.Namespace, "_change", calls.after(rtnl.Namespace._change)),
        (Library, "run", calls.after(Library.run)),
        (Path, "write_text", calls.after(Path.write_text)),
        (Path, "touch", calls.after(Path.touch)),
        (Path, "unlink", calls.after(Path.unlink)),
        (rtnl, "_libc", _Libc(rtnl._libc, calls)),
    ]
    for owner, name, counted in replaced:
        setattr(owner, name, counted)
