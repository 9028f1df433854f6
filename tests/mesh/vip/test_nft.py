"""The doors to nftables, where they are missing."""

from __future__ import annotations

import shutil
import subprocess
import sys

import pytest

from mesh.vip import nft


def test_without_nftables_there_is_one_clear_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nft, "_SONAME", "libnothing.so.1")
    monkeypatch.setattr(shutil, "which", lambda *_, **__: None)
    with pytest.raises(nft.VipError, match=r"^nftables is not installed: apt install nftables$"):
        nft.find()


def test_without_the_library_the_program_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nft, "_SONAME", "libnothing.so.1")
    monkeypatch.setattr(shutil, "which", lambda *_, **__: "/usr/sbin/nft")
    assert nft.find().name == "nft"


def test_a_program_that_cannot_be_started_is_told() -> None:
    with pytest.raises(nft.VipError, match="cannot run /nowhere/nft"):
        nft.Program("/nowhere/nft").run("list tables")


_MANY_FILES = """
import os, sys
from mesh.vip import nft
held = [os.open(os.devnull, os.O_RDONLY) for _ in range(1100)]
door = nft.find()
assert door.name == "libnftables"
door.run("add table inet many")
door.release()
"""


@pytest.mark.root
def test_a_process_with_very_many_open_files_lives() -> None:
    """libnftables waits by select(2), which ends the process from descriptor 1,024 on: a daemon with 1,000 peers."""
    command = ["unshare", "-n", "sh", "-c", f"{sys.executable} -c '{_MANY_FILES}' && nft list tables"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "table inet many\n"), done.stderr
