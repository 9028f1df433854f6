"""What the virtual machine needs of Python, in one archive: our code and the few libraries that it imports.

Read file by file over 9p, imports take half a minute in an emulated machine; out of memory, seconds. And the machine
sees the code as it was at the start, whatever is edited meanwhile.
"""

from __future__ import annotations

import compileall
import py_compile
import shutil
import sysconfig
import tarfile
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
_OURS = ("mesh/__init__.py", "mesh/vip", "overlay", "tests/netns", "tests/vm")
_LIBRARIES = (
    "pytest",
    "_pytest",
    "py.py",
    "pluggy",
    "iniconfig",
    "packaging",
    "pygments",
    "pyroute2",
    "pytest_timeout.py",
    "scapy",
)
_SKIPPED = shutil.ignore_patterns("*.so", "tests")


def pack(target: Path, ours: tuple[str, ...] = (), libraries: tuple[str, ...] = ()) -> None:
    """Write the archive: `code/` with our tree and `site/` with the libraries, compiled. More of both as asked."""
    with tempfile.TemporaryDirectory() as stage:
        code, site = Path(stage) / "code", Path(stage) / "site"
        for name in (*_OURS, *ours):
            _copy(ROOT / name, code / name)
        installed = Path(sysconfig.get_path("purelib"))
        for name in (*_LIBRARIES, *libraries, *(each.name for each in installed.glob("pluggy-*.dist-info"))):
            _copy(installed / name, site / name)  # pluggy asks for its own version
        mode = py_compile.PycInvalidationMode.UNCHECKED_HASH
        compileall.compile_dir(stage, quiet=2, workers=1, invalidation_mode=mode)
        with tarfile.open(target, "w") as archive:
            for each in (code, site):
                archive.add(each, each.name)


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        shutil.copytree(source, target, ignore=_SKIPPED)
    else:
        shutil.copy2(source, target)
