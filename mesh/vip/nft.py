"""The door to nftables for changes: a text is made true in the namespace of the running thread, whole or not at all.

Through libnftables by ctypes (0.3 ms for a small change), or where it is missing, or this process has very many files
open, through the `nft` program (20 ms).
A context of the library lives only until `release`: its socket would keep a deleted namespace alive. Closing it waits
for the kernel to be done with what was deleted (some 15 ms), so it is done when nobody waits (`namespace.visit`).
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import threading
from collections import Counter
from typing import Protocol

_SONAME = "libnftables.so.1"
# 10,000 services with 5 backends each take 0.6 s; a program that hangs must not hang the daemon.
_PROGRAM_TIMEOUT_S = 60.0
# libnftables waits for its socket by select(2), which ends the process if the descriptor is 1,024 or more. What other
# threads open in the same moment comes on top of what is looked at before.
_DESCRIPTOR_MAX = 896


class VipError(Exception):
    """The balancers cannot work on this machine, or nftables refused a transaction. One sentence."""


class Reservation(VipError):
    """All was done, but not all as it was asked for. `changes` counts what was done, by kind."""

    def __init__(self, sentences: list[str], changes: Counter[str]) -> None:
        super().__init__("; ".join(sentences))
        self.sentences = sentences
        self.changes = changes


class Nft(Protocol):
    """Something that runs transactions of nftables."""

    name: str

    def run(self, text: str) -> None:
        """Make one transaction in the namespace of this thread. Raises VipError; then nothing has changed."""

    def release(self) -> None:
        """Let go of the namespaces that this thread's transactions were made in."""


def find() -> Nft:
    """The library, or the program. Raises VipError when neither is there."""
    program = shutil.which("nft", path="/usr/sbin:/sbin:/usr/bin:/bin")
    other = Program(program) if program is not None else None
    try:
        return Library(_SONAME, other)
    except OSError:
        if other is None:
            raise VipError("nftables is not installed: apt install nftables") from None
        return other


class Library:
    """libnftables (libnftables(3))."""

    name = "libnftables"

    def __init__(self, soname: str, otherwise: Nft | None = None) -> None:
        """`otherwise` runs what this process has too many files open for. Raises OSError when it is not there."""
        self._otherwise = otherwise
        library = ctypes.CDLL(soname)
        context = ctypes.c_void_p
        library.nft_ctx_new.restype, library.nft_ctx_new.argtypes = context, [ctypes.c_uint32]
        library.nft_ctx_free.restype, library.nft_ctx_free.argtypes = None, [context]
        for function in (library.nft_ctx_buffer_output, library.nft_ctx_buffer_error):
            function.restype, function.argtypes = ctypes.c_int, [context]
        error = library.nft_ctx_get_error_buffer
        error.restype, error.argtypes = ctypes.c_char_p, [context]
        run = library.nft_run_cmd_from_buffer
        run.restype, run.argtypes = ctypes.c_int, [context, ctypes.c_char_p]
        self._library = library
        self._of_thread = threading.local()

    def run(self, text: str) -> None:
        """See `Nft`."""
        if _next_descriptor() > _DESCRIPTOR_MAX:
            if self._otherwise is None:
                raise VipError("too many files are open for libnftables, and the program nft is not installed")
            self._otherwise.run(text)
            return
        library = self._library
        context = library.nft_ctx_new(0)
        if not context:
            raise VipError("cannot open a context of libnftables")
        self._contexts().append(context)
        library.nft_ctx_buffer_output(context)
        library.nft_ctx_buffer_error(context)
        if library.nft_run_cmd_from_buffer(context, text.encode()) != 0:
            raise VipError(_reason(library.nft_ctx_get_error_buffer(context)))

    def release(self) -> None:
        """See `Nft`."""
        contexts = self._contexts()
        while contexts:
            self._library.nft_ctx_free(contexts.pop())

    def _contexts(self) -> list[int]:
        """One per transaction of this thread since the last release."""
        if not hasattr(self._of_thread, "contexts"):
            self._of_thread.contexts = []
        contexts: list[int] = self._of_thread.contexts
        return contexts


class Program:
    """The `nft` program: it runs in the namespace of the thread that starts it."""

    name = "nft"

    def __init__(self, path: str) -> None:
        """`path` is that of the program."""
        self._path = path

    def run(self, text: str) -> None:
        """See `Nft`."""
        try:
            done = subprocess.run(
                [self._path, "-f", "-"],
                input=text.encode(),
                capture_output=True,
                timeout=_PROGRAM_TIMEOUT_S,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise VipError(f"cannot run {self._path}: {error}") from error
        if done.returncode != 0:
            raise VipError(_reason(done.stderr))

    def release(self) -> None:
        """See `Nft`: the program has ended."""


def _next_descriptor() -> int:
    """The number that the next file of this process gets."""
    found = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
    os.close(found)
    return found


def _reason(output: bytes | None) -> str:
    """nft's own first line: the later ones quote our text."""
    return (output or b"").decode(errors="replace").strip().partition("\n")[0] or "nftables gave no reason"
