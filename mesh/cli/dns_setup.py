"""`mesh dns setup`: make this machine ask its own node for names that end in .mesh, and undo it."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
from pathlib import Path

import click

from mesh.cli.errors import Failure

RESOLVED_DIR = "run/systemd/resolve"
DROP_IN = "etc/systemd/resolved.conf.d/meshd.conf"
RESOLV_CONF = "etc/resolv.conf"
RELOAD_TIMEOUT_S = 30.0


@click.command("setup")
@click.option("--undo", is_flag=True, help="Take it back.")
@click.option("--root", default="/", hidden=True, type=click.Path(file_okay=False, path_type=Path))
def setup(undo: bool, root: Path) -> None:
    """Make this machine ask its node for names that end in .mesh, or undo that.

    With systemd-resolved, questions for .mesh go to the node and all others where they went before. With a plain
    /etc/resolv.conf the node is asked first, and passes on what is not its own; while meshd is stopped, the others are.

    \b
    Examples:
      mesh dns setup
      mesh dns setup --undo
    """
    address, port = _listener(root)
    try:
        changed = _resolved(root, address, port, undo) if _has_resolved(root) else _plain(root, address, port, undo)
    except OSError as error:
        raise Failure(f"cannot change {error.filename}: {error.strerror}") from error
    click.echo(changed)


def _listener(root: Path) -> tuple[str, int]:
    """Where meshd answers the machine."""
    from mesh.config import ConfigError, load

    try:
        found = load({}, os.environ, root=root, hostname="").config.dns_address()
    except ConfigError as error:
        raise Failure(str(error)) from error
    if found is None:
        raise Failure("meshd does not answer this machine: dns_listen is empty in its configuration")
    return found


def _has_resolved(root: Path) -> bool:
    """Whether resolv.conf is systemd-resolved's."""
    target = os.path.realpath(root / RESOLV_CONF)
    return target.startswith(os.path.realpath(root / RESOLVED_DIR) + "/")


def _resolved(root: Path, address: str, port: int, undo: bool) -> str:
    from dns.setup import drop_in

    path = root / DROP_IN
    if undo:
        if not path.exists():
            return "nothing to undo"
        path.unlink()
    else:
        path.parent.mkdir(parents=True, exist_ok=True)
        _write(path, drop_in(address, port))
    _reload_resolved(root)
    return f"removed {path}" if undo else f"wrote {path}: questions for .mesh go to {address}"


def _reload_resolved(root: Path) -> None:
    systemctl = shutil.which("systemctl")
    if root != Path("/") or systemctl is None:
        return
    command = [systemctl, "try-reload-or-restart", "systemd-resolved"]
    try:
        done = subprocess.run(command, capture_output=True, timeout=RELOAD_TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired as error:
        raise Failure("systemd-resolved does not reload: systemctl status systemd-resolved") from error
    if done.returncode != 0:
        reason = done.stderr.decode(errors="replace").strip()
        raise Failure(f"systemd-resolved cannot be told: {reason}")


def _plain(root: Path, address: str, port: int, undo: bool) -> str:
    from dns.setup import SetupError, with_server, without_server

    if port != 53 and not undo:
        raise Failure(f"a plain resolv.conf knows no ports: set dns_listen to {address}:53")
    path = Path(os.path.realpath(root / RESOLV_CONF))
    text = path.read_text() if path.exists() else ""
    try:
        wanted = without_server(text) if undo else with_server(text, address)
    except SetupError as error:
        raise Failure(str(error)) from error
    if wanted == text:
        return "nothing to undo" if undo else f"{path} asks {address} first already"
    _write(path, wanted)
    return f"took it out of {path}" if undo else f"wrote {path}: {address} is asked first"


def _write(path: Path, text: str) -> None:
    """Whole or not at all; in place where the file is a mount of its own, as in containers."""
    beside = path.with_name(path.name + ".meshd-new")
    beside.write_text(text)
    beside.chmod(0o644)
    try:
        beside.replace(path)
    except OSError as error:
        beside.unlink()
        if error.errno != errno.EBUSY:
            raise
        path.write_text(text)
