"""The doors to nftables, where they are missing."""

from __future__ import annotations

import shutil

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
