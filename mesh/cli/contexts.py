"""Contexts: clusters that are called over TCP, each with a user's certificate. Files of mode 0600, one a context.

They are kept in `$XDG_CONFIG_HOME/mesh/contexts/NAME.json` (without it `~/.config`); beside them `current` names the
one that is used when nothing else is said. "default" is no context: it is the socket of this machine.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Mapping
from pathlib import Path

import msgspec

from mesh.cli.errors import ExitCode, Failure

DEFAULT = "default"
# Two certificates, a key and some addresses are 3 KiB; with a few roots and many managers still far below this.
FILE_MAX_BYTES = 256 * 1024
MANAGERS_MAX = 100
_NAME = re.compile(r"[a-zA-Z0-9]([a-zA-Z0-9._-]{0,62}[a-zA-Z0-9])?")


class ClusterContext(msgspec.Struct, frozen=True, kw_only=True):
    """How to call a cluster, and as whom. PEM: `roots` to believe, `certificate` with its chain, and its `key`."""

    name: str
    user: str
    role: str
    managers: tuple[str, ...]  # host:port
    roots: str
    certificate: str
    key: str


def is_context_name(name: str) -> bool:
    """Whether a context may be called so."""
    return _NAME.fullmatch(name) is not None and name != DEFAULT


def config_directory(environment: Mapping[str, str]) -> Path:
    """Where the contexts of whoever calls are."""
    base = environment.get("XDG_CONFIG_HOME", "")
    return (Path(base) if base.startswith("/") else Path(environment.get("HOME", "/")) / ".config") / "mesh"


def read_context(path: Path) -> ClusterContext:
    """A context file. Raises Failure, also when others could have read it."""
    try:
        with path.open("rb") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            data = file.read(FILE_MAX_BYTES + 1)
    except OSError as error:
        raise Failure(f"cannot read the context {path}: {error.strerror}") from error
    if mode & 0o077:
        raise Failure(
            f"others may read {path} (mode {mode:04o}), and it holds a key: chmod 600 it, and if somebody has, "
            "have the user removed and added anew",
            ExitCode.REFUSED,
        )
    return parse_context(data, str(path))


def parse_context(data: bytes, where: str) -> ClusterContext:
    """Raises Failure, which names `where` it comes from."""
    try:
        found = msgspec.json.decode(data[: FILE_MAX_BYTES + 1], type=ClusterContext)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise Failure(f"{where} is no context: {error}", ExitCode.USAGE) from error
    if not is_context_name(found.name) or not 0 < len(found.managers) <= MANAGERS_MAX:
        raise Failure(f"{where} is no context: its name or its managers make no sense", ExitCode.USAGE)
    return found


def write_context(path: Path, context: ClusterContext, *, replace: bool) -> None:
    """Into a file that only its owner may read. Raises Failure, also if it is there and not to be replaced."""
    if not replace and path.exists():
        raise Failure(f"{path} exists already", ExitCode.CONFLICT)
    written = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        with os.fdopen(os.open(written, flags, 0o600), "wb") as file:
            file.write(encode_context(context))
            file.flush()
            os.fsync(file.fileno())
        written.replace(path)
    except OSError as error:
        written.unlink(missing_ok=True)
        raise Failure(f"cannot write {path}: {error.strerror}") from error


def encode_context(context: ClusterContext) -> bytes:
    """As it stands in files."""
    return msgspec.json.format(msgspec.json.encode(context), indent=2) + b"\n"


class Contexts:
    """The contexts of one user of this machine. Raises Failure."""

    def __init__(self, directory: Path) -> None:
        self._directory, self._current = directory / "contexts", directory / "current"

    def names(self) -> list[str]:
        """All, in order."""
        try:
            found = [path.stem for path in self._directory.iterdir() if path.suffix == ".json"]
        except OSError:
            return []
        return sorted(name for name in found if is_context_name(name))

    def current(self) -> str:
        """The name of the one that is used when nothing else is said."""
        try:
            name = self._current.read_text()[:100].strip()
        except (OSError, UnicodeDecodeError):
            return DEFAULT
        return name if is_context_name(name) else DEFAULT

    def use(self, name: str) -> None:
        """From now on, when nothing else is said."""
        if name == DEFAULT:
            self._current.unlink(missing_ok=True)
            return
        self._must_exist(name)
        try:
            self._current.write_text(name + "\n")
        except OSError as error:
            raise Failure(f"cannot write {self._current}: {error.strerror}") from error

    def get(self, name: str) -> ClusterContext:
        """By name."""
        self._must_exist(name)
        return msgspec.structs.replace(read_context(self._path(name)), name=name)

    def put(self, context: ClusterContext, *, replace: bool) -> None:
        """Keep it under its name."""
        if not is_context_name(context.name):
            raise Failure(f'a context cannot be called "{context.name[:80]}"', ExitCode.USAGE)
        if not replace and context.name in self.names():
            raise Failure(f'context "{context.name}" exists already: remove it first, or use --name', ExitCode.CONFLICT)
        try:
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise Failure(f"cannot make {self._directory}: {error.strerror}") from error
        write_context(self._path(context.name), context, replace=True)

    def remove(self, name: str) -> None:
        """Forget one; the user stays one of the cluster."""
        self._must_exist(name)
        if self.current() == name:
            self.use(DEFAULT)
        self._path(name).unlink(missing_ok=True)

    def _must_exist(self, name: str) -> None:
        if name not in self.names():
            known = ", ".join((DEFAULT, *self.names()))
            raise Failure(f'there is no context "{name[:80]}": there are {known}', ExitCode.NOT_FOUND)

    def _path(self, name: str) -> Path:
        return self._directory / f"{name}.json"
