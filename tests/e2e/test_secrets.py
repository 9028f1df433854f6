"""Secrets are where only root looks: not in logs, command lines, environments, or files that others may read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from control.model import Authority
from control.model import Cluster as Record
from control.store.backup import read_backup
from control.store.rows import decode
from mesh.lab.lab import Lab
from tests.e2e.conftest import Cluster, joined

pytestmark = [pytest.mark.root, pytest.mark.e2e, pytest.mark.timeout(240)]
# What every user of the machine may look at, besides the machine's own: sockets and records of the daemon, its state.
PLACES = ("/run", "/var/lib/meshd")


def secrets_of(cluster: Cluster, directory: Path) -> dict[str, str]:
    """All there are, as the text that they would be found by."""
    made = directory / "backup"
    cluster.mesh("backup", str(made))
    objects = [decode(row.kind, row.blob) for row in read_backup(made).state.rows.values()]
    (authority,) = (one for one in objects if isinstance(one, Authority))
    (record,) = (one for one in objects if isinstance(one, Record))
    user = json.loads(cluster.mesh("user", "add", "anna", "--role", "admin", "-o", "-").stdout)
    found = {
        "the worker token": record.worker_token.rsplit("-", 1)[1],
        "the manager token": record.manager_token.rsplit("-", 1)[1],
        "the authority's key": line_of(authority.key),
        "a user's key": line_of(user["key"]),
        **{f"gossip's key {number}": key for number, key in enumerate(record.gossip_keys)},
    }
    for host in cluster.hosts:
        disk = cluster.lab.directory / host / "disk"
        found[f"the secret of {host}"] = json.loads((disk / "identity.json").read_text())["secret"]
        found[f"the key of {host}"] = line_of((disk / "tls/key.pem").read_text())
    assert all(len(secret) >= 20 for secret in found.values())
    return found


def line_of(pem: str) -> str:
    """A line of the base64, of which any part would be telling."""
    return pem.splitlines()[1]


def output(lab: Lab, host: str, script: str) -> str:
    done = lab.exec(host, ["sh", "-c", script], timeout=60)
    assert done.stdout, f"{script}: {done.stderr}"
    return done.stdout


def test_secrets_are_nowhere_where_others_look(bare_lab: Lab, tmp_path: Path) -> None:
    cluster = joined(bare_lab, "500ms")
    cluster.serve("api", 2, "--network", "web", "-p", "8080:80")
    secrets = secrets_of(cluster, tmp_path)
    cluster.mesh("ca", "rotate", "-q", "--timeout", "50")
    cluster.mesh("token", "rotate", "manager", "-q")
    secrets |= {f"{name}, later": secret for name, secret in secrets_of_again(cluster, tmp_path).items()}
    for host in cluster.hosts:
        seen = {
            "a command line": output(bare_lab, host, "cat /proc/[0-9]*/cmdline"),
            "an environment": output(bare_lab, host, "cat /proc/[0-9]*/environ"),
            "a file that others may read": output(
                bare_lab, host, f"find {' '.join(PLACES)} -xdev -type f -perm /044 -exec cat {{}} + ; echo end"
            ),
            "the log": (bare_lab.directory / host / "meshd.log").read_text(errors="replace"),
        }
        audit = bare_lab.directory / host / "disk" / "audit.log"
        seen["the audit log"] = audit.read_text() if audit.exists() else ""
        told = [
            f"{name} is in {place} of {host}"
            for place, text in seen.items()
            for name, s in secrets.items()
            if s in text
        ]
        assert told == []
    assert "Control/RotateToken" in (bare_lab.directory / "h1" / "disk" / "audit.log").read_text()


def secrets_of_again(cluster: Cluster, directory: Path) -> dict[str, str]:
    """After everything has been changed."""
    cluster.mesh("user", "rm", "anna")
    (directory / "backup").unlink()
    return secrets_of(cluster, directory)


def test_directories_with_secrets_are_closed(bare_lab: Lab) -> None:
    cluster = joined(bare_lab, "500ms")
    for host in cluster.hosts:
        modes = output(bare_lab, host, "stat -c '%a %U %n' /run/meshd/private /run/meshd/meshd.sock /var/lib/meshd/tls")
        assert [line.split()[:2] for line in modes.splitlines()] == [["700", "root"], ["660", "root"], ["700", "root"]]
