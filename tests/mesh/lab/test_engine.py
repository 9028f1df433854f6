"""Engines of labs: what runs, what is in their images, and what is said where there can be none."""

from __future__ import annotations

import io
import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest

from mesh.lab import engine, image
from mesh.lab.image import ImageError
from mesh.lab.lab import Lab, LabError


def _names(data: bytes) -> dict[str, tarfile.TarInfo]:
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        return {info.name: info for info in tar}


def test_busybox_is_one_static_program_with_its_applets() -> None:
    found = _names(image.busybox_image())
    assert found["bin/sh"].linkname == "busybox"
    assert found["bin/busybox"].mode & 0o111
    assert found["tmp"].mode == 0o1777
    assert not any(name.startswith("lib") for name in found)


@pytest.mark.root
def test_the_image_of_the_lab_serves_from_its_own_root(tmp_path: Path) -> None:
    data = image.lab_image()
    names = list(_names(data))
    assert len(names) == len(set(names))
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        tar.extractall(tmp_path)
    for command in (["curl", "--version"], ["dig", "-v"], [image.PYTHON, "-I", "-S", image.SERVER, "--help"]):
        done = subprocess.run(["chroot", str(tmp_path), *command], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr


def test_a_program_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda _: None)
    with pytest.raises(ImageError, match="busybox is not installed: apt-get install busybox-static"):
        image.busybox_image()


@pytest.mark.root
def test_a_lab_without_engines_to_run_is_refused_before_anything_is_made(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None if name == "dockerd" else name)
    lab = Lab("none", tmp_path)
    with pytest.raises(
        LabError, match="no Docker Engine is installed for the hosts of the lab: apt-get install docker"
    ):
        lab.up(1, engines=True)
    assert not lab.exists()


def test_an_engine_keeps_to_its_host() -> None:
    words = engine.command(Path("/lab/h1/docker"), "mesh-lab.lab.h1")
    assert words[3] == "dockerd"
    assert {"--bridge=none", "--iptables=false", "--ip-forward=false", "--cgroup-parent=/mesh-lab.lab.h1"} <= set(words)
    assert "--data-root=/lab/h1/docker" in words


def test_an_engine_that_does_not_answer_is_an_error_of_the_lab(tmp_path: Path) -> None:
    with pytest.raises(engine.LabEngineError, match="does not take the images of the lab"):
        engine.provide_images(str(tmp_path / "none.sock"), tmp_path)
