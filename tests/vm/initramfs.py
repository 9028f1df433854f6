"""The initramfs of the virtual machine: busybox, the modules that reach the host's files, and a script that does so.

A cpio archive in the "newc" format (Documentation/driver-api/early-userspace/buffer-format.rst).
"""

from __future__ import annotations

import shutil
from pathlib import Path

from tests.vm.kernel import GuestKernel, VmError

# What reaches a 9p file system of the host.
MODULES = ("virtio_pci", "9pnet_virtio", "9p", "virtio_rng")
_DIRECTORIES = ("bin", "dev", "proc", "sys", "root", "lib")
_INIT = Path(__file__).parent / "init.sh"


def build(kernel: GuestKernel) -> bytes:
    """The archive. Raises VmError."""
    busybox = shutil.which("busybox")
    if busybox is None:
        raise VmError("busybox is not installed: apt install busybox-static")
    files = {"bin/busybox": (0o755, Path(busybox).read_bytes()), "init": (0o755, _INIT.read_bytes())}
    names = []
    for module in kernel.modules(*MODULES):
        files[f"lib/{module.name}"] = (0o644, module.read_bytes())
        names.append(module.name)
    files["lib/order"] = (0o644, "".join(f"{name}\n" for name in names).encode())
    entries = [_entry(name, 0o040755, b"") for name in _DIRECTORIES]
    entries += [_entry(name, 0o100000 | mode, content) for name, (mode, content) in files.items()]
    return b"".join(entries) + _entry("TRAILER!!!", 0, b"")


def _entry(name: str, mode: int, content: bytes) -> bytes:
    fields = (0, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(name) + 1, 0)
    header = b"070701" + b"".join(b"%08X" % field for field in fields) + name.encode() + b"\0"
    return _padded(header) + _padded(content)


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)
