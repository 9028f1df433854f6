"""A kernel with IPVS for the virtual machine: the distribution's own package, unpacked beside the system.

Nothing is installed: the package is downloaded with apt and unpacked into a cache, once per version. What comes of it
is a directory with the image and the modules (`depmod` run over them).
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

# Debian's name first, then Ubuntu's. The cloud flavours lack drivers that other machines than ours may need.
META_PACKAGES = ("linux-image-amd64", "linux-image-generic")
_PARTS = re.compile(r"(linux-image|linux-modules)-[0-9]\S*")
# Directories of the cache; one is kept.
_KEPT = "linux-image-*"
_DOWNLOAD_TIMEOUT_S = 300.0
_UNPACK_TIMEOUT_S = 120.0


class VmError(Exception):
    """The virtual machine cannot be made. One sentence."""


@dataclass(frozen=True)
class GuestKernel:
    """An unpacked kernel."""

    version: str
    image: Path
    root: Path  # has lib/modules/<version>

    def modules(self, *names: str) -> list[Path]:
        """The files to insert for some modules, in order. Raises VmError."""
        found: dict[Path, None] = {}
        for name in names:
            shown = _run("modprobe", "-d", str(self.root), "-S", self.version, "--show-depends", name)
            for line in shown.splitlines():
                verb, _, path = line.strip().partition(" ")
                if verb == "insmod":
                    found[Path(path.split(" ")[0])] = None
        return list(found)


def cache() -> Path:
    """Where kernels are kept between runs: $MESHD_VM_CACHE, or the system's cache."""
    return Path(os.environ.get("MESHD_VM_CACHE", "/var/cache/meshd-vm"))


def obtain() -> GuestKernel:
    """The newest kernel that apt offers, from the cache when it is there. Raises VmError."""
    packages = _packages()
    if packages is None or not (cache() / packages[0] / "ready").exists():
        try:
            packages = _fetched(packages)
        except VmError:
            # No network: what is there is good enough.
            kept = sorted(cache().glob(f"{_KEPT}/ready"), key=lambda ready: ready.stat().st_mtime)
            if not kept:
                raise
            return _unpacked(kept[-1].parent)
    return _unpacked(cache() / packages[0])


def _fetched(packages: list[str] | None) -> list[str]:
    """Download and unpack; when that fails, once more by fresh package lists. Returns what it was."""
    if packages is not None:
        try:
            _unpack(packages, cache() / packages[0])
            return packages
        except VmError:
            pass  # a list of last week names packages that are gone
    _run("apt-get", "-q", "update", timeout_s=_DOWNLOAD_TIMEOUT_S)
    packages = _packages()
    if packages is None:
        raise VmError(f"apt offers no kernel package ({' or '.join(META_PACKAGES)})")
    _unpack(packages, cache() / packages[0])
    return packages


def _packages() -> list[str] | None:
    """The packages that hold image and modules, the image first."""
    for meta in META_PACKAGES:
        try:
            listed = _run("apt-cache", "depends", "--important", meta)
        except VmError:
            continue
        if found := [name for name in listed.split() if _PARTS.fullmatch(name)]:
            modules = [name.replace("linux-image", "linux-modules") for name in found]
            extra = [name.replace("linux-modules", "linux-modules-extra") for name in modules]
            return sorted({*found, *(name for name in (*modules, *extra) if _exists(name))})
    return None


def _exists(package: str) -> bool:
    return "Candidate:" in _run("apt-cache", "policy", package)


def _unpack(packages: list[str], target: Path) -> None:
    """Download and unpack; `ready` is written last, so what a crash leaves is begun anew."""
    shutil.rmtree(target, ignore_errors=True)
    download = target / "download"
    download.mkdir(parents=True)
    print(f"vm: downloading {', '.join(packages)}", flush=True)
    options = ("-o", "APT::Sandbox::User=root")
    _run("apt-get", "-q", *options, "download", *packages, cwd=download, timeout_s=_DOWNLOAD_TIMEOUT_S)
    for package in sorted(download.glob("*.deb")):
        _run("dpkg", "-x", str(package), str(target), timeout_s=_UNPACK_TIMEOUT_S)
    shutil.rmtree(download)
    if not (target / "lib").exists():  # packages of a merged /usr
        (target / "lib").symlink_to("usr/lib")
    version = next((target / "lib/modules").iterdir()).name
    _run("depmod", "-b", str(target), version, timeout_s=_UNPACK_TIMEOUT_S)
    for old in cache().glob(_KEPT):
        if old != target:
            shutil.rmtree(old, ignore_errors=True)
    (target / "ready").touch()


def _unpacked(target: Path) -> GuestKernel:
    version = next((target / "lib/modules").iterdir()).name
    return GuestKernel(version, target / "boot" / f"vmlinuz-{version}", target)


def _run(*argv: str, cwd: Path | None = None, timeout_s: float = 30.0) -> str:
    try:
        done = subprocess.run(argv, cwd=cwd, capture_output=True, text=True, timeout=timeout_s, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise VmError(f"cannot run {argv[0]}: {error}") from error
    if done.returncode:
        raise VmError(f"{' '.join(argv[:3])} failed: {(done.stderr or done.stdout).strip()}")
    return done.stdout
