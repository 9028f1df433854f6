"""Images for the engines of a lab, built on the spot from what this machine has: nothing is fetched. Blocking.

`mesh-lab` is a small root file system: busybox, `curl` and `dig` with their libraries, and a Python that has just what
the lab's web server (`mesh.lab.whoami`) needs. `busybox` is busybox alone.
"""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterable
from pathlib import Path

LAB_IMAGE = "mesh-lab:latest"
BUSYBOX_IMAGE = "busybox:latest"
SERVER = "/whoami.py"
PYTHON = "/usr/bin/python3"
_WHOAMI = Path(__file__).with_name("whoami.py")
_RUN_TIMEOUT_S = 30.0
# Imported while the server works, not when it starts.
_LATER = "encodings.idna, encodings.latin_1, encodings.iso8859_1, linecache, traceback"
_LIST_MODULES = f"""
import sys, runpy
import {_LATER}
runpy.run_path(sys.argv[1], run_name="listed")
for module in list(sys.modules.values()):
    if getattr(module, "__file__", None):
        print(module.__file__)
"""
_PASSWD = "root:x:0:0:root:/:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n"
_GROUP = "root:x:0:\nnogroup:x:65534:\n"


class ImageError(Exception):
    """This machine lacks something for the image. One sentence for the user."""


def busybox_image() -> bytes:
    """A root file system of busybox alone, as a tar file."""
    with _Builder() as builder:
        builder.add_busybox()
    return builder.data()


def lab_image() -> bytes:
    """The root file system of `mesh-lab`, as a tar file."""
    with _Builder() as builder:
        builder.add_busybox()
        for program in ("curl", "dig"):
            builder.add_program(_which(program), f"/usr/bin/{program}")
        builder.add_python()
        builder.add_file(str(_WHOAMI), SERVER)
    return builder.data()


class _Builder:
    """A tar file that grows."""

    def __init__(self) -> None:
        self._buffer = io.BytesIO()
        self._have: set[str] = set()
        self._tar: tarfile.TarFile

    def __enter__(self) -> _Builder:
        self._tar = tarfile.open(fileobj=self._buffer, mode="w")
        for directory in ("tmp", "etc", "proc", "sys", "dev", "run", "var/tmp", "home"):
            info = tarfile.TarInfo(directory)
            info.type, info.mode = tarfile.DIRTYPE, 0o1777 if directory.endswith("tmp") else 0o755
            self._tar.addfile(info)
        self.add_text("etc/passwd", _PASSWD)
        self.add_text("etc/group", _GROUP)
        return self

    def __exit__(self, *_: object) -> None:
        self._tar.close()

    def data(self) -> bytes:
        return self._buffer.getvalue()

    def add_text(self, path: str, text: str) -> None:
        info = tarfile.TarInfo(path)
        info.size, info.mode = len(text), 0o644
        self._tar.addfile(info, io.BytesIO(text.encode()))

    def add_link(self, path: str, target: str) -> None:
        info = tarfile.TarInfo(path.lstrip("/"))
        info.type, info.linkname = tarfile.SYMTYPE, target
        self._tar.addfile(info)

    def add_file(self, source: str, target: str) -> None:
        """Once; the content of what a link leads to. Its time stays: compiled Python is valid for one time only."""
        if target in self._have:
            return
        self._have.add(target)
        true = os.path.realpath(source)
        info = self._tar.gettarinfo(true, target.lstrip("/"))
        info.type, info.linkname = tarfile.REGTYPE, ""
        info.size, info.uid, info.gid, info.uname, info.gname = os.path.getsize(true), 0, 0, "", ""
        with open(true, "rb") as file:
            self._tar.addfile(info, file)

    def add_program(self, source: str, target: str) -> None:
        """An executable and the libraries that it wants."""
        self.add_file(source, target)
        for library in _libraries(source):
            self.add_file(library, library)

    def add_busybox(self) -> None:
        busybox = _which("busybox")
        if _libraries(busybox):
            raise ImageError("busybox is not static: apt-get install busybox-static")
        self.add_file(busybox, "/bin/busybox")
        for applet in _said([busybox, "--list"]):
            if applet not in ("busybox", "curl", "dig"):
                self.add_link(f"/bin/{applet}", "busybox")

    def add_python(self) -> None:
        """The interpreter, and the modules that the web server has loaded when it serves."""
        interpreter = os.path.realpath(sys.executable)
        self.add_program(interpreter, PYTHON)
        for file in _said([interpreter, "-I", "-S", "-c", _LIST_MODULES, str(_WHOAMI)]):
            self.add_program(file, file) if ".so" in file else self.add_file(file, file)
            compiled = Path(file).parent / "__pycache__" / f"{Path(file).stem}.{sys.implementation.cache_tag}.pyc"
            if compiled.exists():
                self.add_file(str(compiled), str(compiled))


def _which(program: str) -> str:
    found = shutil.which(program)
    if found is None:
        package = {"busybox": "busybox-static", "dig": "dnsutils"}.get(program, program)
        raise ImageError(f"{program} is not installed: apt-get install {package}")
    return found


def _libraries(file: str) -> Iterable[str]:
    """The shared libraries of an executable or library, the loader among them; none for a static one."""
    done = subprocess.run(["ldd", file], capture_output=True, text=True, timeout=_RUN_TIMEOUT_S, check=False)
    words = [line.split() for line in done.stdout.splitlines()]
    return [next(w for w in line if w.startswith("/")) for line in words if any(w.startswith("/") for w in line)]


def _said(command: list[str]) -> list[str]:
    done = subprocess.run(command, capture_output=True, text=True, timeout=_RUN_TIMEOUT_S, check=False)
    if done.returncode:
        raise ImageError(f"cannot build the image: {command[0]}: {done.stderr.strip()}")
    return done.stdout.splitlines()
