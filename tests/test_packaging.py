"""What gets installed: nothing that imports under a name of ours, and everything pinned."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parent.parent
LOCK = (ROOT / "requirements.lock").read_text(encoding="utf-8")
PINNED = dict(re.findall(r"^([a-z0-9._-]+)==(\S+)", LOCK, re.MULTILINE))


def test_nothing_that_imports_as_dns_or_control_is_locked() -> None:
    assert not {"dnspython", "control", "gossip", "overlay", "mesh"} & PINNED.keys()


def test_every_dependency_is_locked_with_hashes() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    wanted = [*project["project"]["dependencies"], *project["dependency-groups"]["dev"]]
    names = {re.split(r"[<>=\[; ]", w)[0].lower() for w in wanted}
    assert names <= PINNED.keys()
    entries = re.split(r"^(?=[a-z0-9._-]+==)", LOCK, flags=re.MULTILINE)[1:]
    assert all("--hash=sha256:" in entry for entry in entries)


def test_no_registry_is_named() -> None:
    assert "://" not in LOCK
