"""What a node keeps of its own: its key, its certificate, and the roots it believes. In `<state_dir>/tls`.

    key.pem     its private key, for as long as it is a member (0600); not on a manager that is locked (control.vault)
    chain.pem   its certificate, and what links it to the roots
    roots.pem   the roots it believes

Each file is replaced whole, certificate before roots: between the two, the node believes an old root a moment longer,
never too little. Files that others could have read or written are refused, not repaired: the key may be known.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec

from control.ca.contexts import Credentials
from control.ca.root import (
    PEM_MAX_BYTES,
    CaError,
    key_pem,
    load_certificates,
    load_key,
    new_key,
)

DIRECTORY = "tls"
KEY_NAME, _CHAIN, _ROOTS = "key.pem", "chain.pem", "roots.pem"


class CredentialsError(Exception):
    """The files cannot be used. One sentence."""


@dataclass(frozen=True, slots=True)
class Shelf:
    """The directory. All calls block."""

    path: Path

    def key(self) -> ec.EllipticCurvePrivateKey:
        """The node's key; made if there is none. Raises CredentialsError."""
        self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        file = self.path / KEY_NAME
        try:
            if not file.exists():
                replace_file(file, key_pem(new_key()))
            return load_key(_read(file))
        except (OSError, CaError) as error:
            raise CredentialsError(f"cannot use the key of this node in {file}: {error}") from error

    def save(self, chain: bytes, roots: bytes, kept: bytes = b"") -> Credentials:
        """A new certificate, and what to believe from now on; `kept` as for `load`. Raises CredentialsError."""
        try:
            key = load_key(kept) if kept else self.key()
            if load_certificates(chain)[0].public_key() != key.public_key():
                raise CredentialsError("the certificate that a manager sent is not for the key of this node")
            load_certificates(roots)
            replace_file(self.path / _CHAIN, chain)
            replace_file(self.path / _ROOTS, roots)
        except (OSError, CaError) as error:
            raise CredentialsError(f"cannot keep a new certificate in {self.path}: {error}") from error
        return Credentials(key_pem(key), chain, roots)

    @property
    def exists(self) -> bool:
        """Whether this node is a member of a cluster."""
        return (self.path / _ROOTS).exists()

    def load(self, kept: bytes = b"") -> Credentials | None:
        """What is kept; None if there is nothing. `kept` is the key where it is kept elsewhere (control.vault).

        Raises CredentialsError.
        """
        if not self.exists:
            return None
        check_mode(self.path)
        try:
            key = kept or _read(self.path / KEY_NAME)
            found = Credentials(key, *(_read(self.path / name) for name in (_CHAIN, _ROOTS)))
            if load_certificates(found.chain)[0].public_key() != load_key(found.key).public_key():
                raise CredentialsError(f"the key and the certificate in {self.path} do not belong together")
            load_certificates(found.roots)
        except (OSError, CaError) as error:
            raise CredentialsError(f"cannot use the certificate in {self.path}: {error}") from error
        return found

    def show_key(self, key: bytes) -> None:
        """Have the key, PEM, in its file. Raises OSError."""
        if not (self.path / KEY_NAME).exists():
            replace_file(self.path / KEY_NAME, key)

    def hide_key(self) -> None:
        """The key is kept elsewhere: have no file of it."""
        (self.path / KEY_NAME).unlink(missing_ok=True)

    def remove(self) -> None:
        """Forget all of it; the key first."""
        for name in (KEY_NAME, _CHAIN, _ROOTS):
            (self.path / name).unlink(missing_ok=True)


def check_mode(path: Path) -> None:
    """That only the owner can read or write a file or a directory, and that the owner is this user. Raises
    CredentialsError."""
    found = path.lstat()
    if stat.S_ISLNK(found.st_mode):
        raise CredentialsError(f"{path} is a link: it must be the file itself")
    if found.st_uid != os.geteuid():
        raise CredentialsError(f"{path} belongs to another user: somebody else may know what is in it")
    if found.st_mode & 0o077:
        raise CredentialsError(
            f"{path} can be used by others (mode {stat.S_IMODE(found.st_mode):04o}): they may know what is in it; "
            f'if you are sure that they do not, "chmod go= {path}"'
        )


def _read(path: Path) -> bytes:
    check_mode(path)
    with path.open("rb") as file:
        return file.read(PEM_MAX_BYTES + 1)


def replace_file(path: Path, data: bytes) -> None:
    """Write a file of mode 0600, whole and durably. Raises OSError."""
    temporary = path.with_suffix(".new")
    temporary.unlink(missing_ok=True)
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
