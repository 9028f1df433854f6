"""The files of a node: kept whole, refused when others may know them."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from control.ca.disk import CredentialsError, Shelf
from control.ca.names import Holder
from control.ca.root import Root, issue, make_root, new_key, pem

NOW = time.time_ns() / 1e9
CLUSTER = "c" * 25


def a_root() -> Root:
    return make_root(CLUSTER, new_key(), NOW, os.urandom(16))


@pytest.fixture
def shelf(tmp_path: Path) -> Shelf:
    return Shelf(tmp_path / "tls")


def fill(shelf: Shelf) -> None:
    root = a_root()
    leaf = issue(root, Holder(CLUSTER, "worker", "n1"), shelf.key().public_key(), NOW, os.urandom(16))
    shelf.save(pem(leaf), pem(root.certificate))


def test_the_key_is_made_once_and_for_its_owner_only(shelf: Shelf) -> None:
    assert shelf.load() is None
    first = shelf.key()
    assert shelf.key().public_key() == first.public_key()
    assert os.stat(shelf.path).st_mode & 0o777 == 0o700
    assert os.stat(shelf.path / "key.pem").st_mode & 0o777 == 0o600
    assert shelf.load() is None


def test_what_is_saved_is_loaded(shelf: Shelf) -> None:
    fill(shelf)
    found = shelf.load()
    assert found is not None
    assert found.certificate.public_key() == shelf.key().public_key()
    assert {path.name for path in shelf.path.iterdir()} == {"key.pem", "chain.pem", "roots.pem"}
    shelf.remove()
    assert shelf.load() is None
    assert list(shelf.path.iterdir()) == []


def test_a_certificate_for_another_key_is_not_kept(shelf: Shelf) -> None:
    root = a_root()
    leaf = issue(root, Holder(CLUSTER, "worker", "n1"), new_key().public_key(), NOW, os.urandom(16))
    with pytest.raises(CredentialsError, match="not for the key"):
        shelf.save(pem(leaf), pem(root.certificate))
    assert shelf.load() is None


@pytest.mark.parametrize("name", ["key.pem", "chain.pem", "roots.pem", ""])
@pytest.mark.parametrize("mode", [0o640, 0o604, 0o666])
def test_files_that_others_can_use_are_refused(shelf: Shelf, name: str, mode: int) -> None:
    fill(shelf)
    (shelf.path / name).chmod(mode | (0o111 if not name else 0))
    with pytest.raises(CredentialsError, match="others"):
        shelf.load()


@pytest.mark.parametrize("name", ["key.pem", "chain.pem", "roots.pem"])
@pytest.mark.parametrize("data", [b"", b"junk", b"x" * 100_000])
def test_damaged_files_are_refused(shelf: Shelf, name: str, data: bytes) -> None:
    fill(shelf)
    (shelf.path / name).write_bytes(data)
    with pytest.raises(CredentialsError):
        shelf.load()


def test_a_key_of_another_certificate_is_refused(shelf: Shelf, tmp_path: Path) -> None:
    fill(shelf)
    other = Shelf(tmp_path / "other")
    other.key()
    (other.path / "key.pem").replace(shelf.path / "key.pem")
    with pytest.raises(CredentialsError, match="belong together"):
        shelf.load()


def test_links_are_refused(shelf: Shelf, tmp_path: Path) -> None:
    fill(shelf)
    (shelf.path / "key.pem").rename(tmp_path / "elsewhere")
    (shelf.path / "key.pem").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(CredentialsError, match="link"):
        shelf.load()
