"""What a user has logged in with, found as Docker's own tools find it."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest

from control.model import RegistryAuth
from mesh.cli.registry import auth_for
from mesh.cli.text import TextError


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    return tmp_path / "config.json"


def basic(name: str, password: str) -> dict[str, str]:
    return {"auth": base64.b64encode(f"{name}:{password}".encode()).decode()}


def test_a_password_is_found_by_registry(config: Path) -> None:
    config.write_text(
        json.dumps({"auths": {"here:5000": basic("ann", "a:b"), "https://index.docker.io/v1/": basic("bob", "c")}})
    )
    assert auth_for("here:5000/box:1") == RegistryAuth(registry="here:5000", username="ann", password="a:b")
    assert auth_for("busybox") == RegistryAuth(registry="docker.io", username="bob", password="c")


def test_a_token_takes_the_place_of_a_password(config: Path) -> None:
    config.write_text(json.dumps({"auths": {"here:5000": {**basic("ann", "x"), "identitytoken": "t0ken"}}}))
    assert auth_for("here:5000/box").identity_token == "t0ken"


def test_a_helper_is_asked(config: Path) -> None:
    helper = config.with_name("docker-credential-fake")
    answer = json.dumps({"ServerURL": "here:5000", "Username": "ann", "Secret": "kept"})
    helper.write_text(f"#!/bin/sh\ncat >/dev/null\necho '{answer}'\n")
    helper.chmod(0o755)
    config.write_text(json.dumps({"credHelpers": {"here:5000": "fake"}}))
    assert auth_for("here:5000/box") == RegistryAuth(registry="here:5000", username="ann", password="kept")


@pytest.mark.parametrize("text", [None, "{}", json.dumps({"auths": {"there:5000": basic("ann", "x")}})])
def test_who_has_not_logged_in_is_told_how(config: Path, text: str | None) -> None:
    if text is not None:
        config.write_text(text)
    with pytest.raises(TextError, match='no credentials for registry "here:5000": docker login here:5000'):
        auth_for("here:5000/box")


@pytest.mark.filterwarnings("ignore:docker-credential-gone")
def test_a_helper_that_is_missing_is_named(config: Path) -> None:
    config.write_text(json.dumps({"credHelpers": {"here:5000": "gone"}}))
    with pytest.raises(TextError, match=r"^cannot read the credentials .*docker-credential-gone"):
        auth_for("here:5000/box")
