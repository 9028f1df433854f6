"""People who call a cluster from elsewhere: the outside client with a context, and what each role may."""

from __future__ import annotations

import json
import stat
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from mesh.lab.lab import CLIENT
from tests.e2e.conftest import TIMEOUT_S, Cluster

pytestmark = [pytest.mark.root, pytest.mark.e2e, pytest.mark.timeout(240)]


class Person:
    """Somebody at the outside client, whose contexts are in a directory of their own."""

    def __init__(self, cluster: Cluster, directory: Path, name: str, role: str) -> None:
        self.cluster, self.directory, self.name = cluster, directory / name, name
        self.file = directory / f"{name}.json"
        cluster.mesh("user", "add", name, "--role", role, "--context-name", "lab", "-o", str(self.file))
        assert stat.S_IMODE(self.file.stat().st_mode) == 0o600
        assert self.mesh("context", "add", "--use", str(self.file)).returncode == 0

    def mesh(self, *args: str, cluster: str = "") -> subprocess.CompletedProcess[str]:
        command: Sequence[str] = ("mesh", *(("--context", cluster) if cluster else ()), *args)
        argv = ["env", f"XDG_CONFIG_HOME={self.directory}", *command]
        return self.cluster.lab.exec(CLIENT, argv, timeout=TIMEOUT_S)

    def refused(self, *args: str) -> str:
        done = self.mesh(*args)
        assert done.returncode == 6, f"{args}: {done.stdout}{done.stderr}"
        return done.stderr


def test_roles_of_people_elsewhere(cluster: Cluster, tmp_path: Path) -> None:
    vera, otto, anna = (
        Person(cluster, tmp_path, *who) for who in (("vera", "viewer"), ("otto", "operator"), ("anna", "admin"))
    )
    for person in (vera, otto, anna):
        assert person.mesh("node", "ls", "--format", "{{.Hostname}}").stdout.split() == ["h1", "h2"]
        assert "User" in person.mesh("status").stdout
        assert person.mesh("quorum", "status").returncode == 0
    assert "user vera (viewer) may not call Control/CreateService: it may only look" in vera.refused(
        "service", "create", "--detach", "--name", "api", "--", "sleep", "1000"
    )
    done = otto.mesh("service", "create", "--name", "api", "--", "sh", "-c", "echo hello; exec sleep 1000")
    assert done.returncode == 0, done.stderr
    assert "hello" in vera.mesh("service", "logs", "api").stdout
    assert "hello" in vera.mesh("task", "logs", "api.1").stdout
    assert 'that needs the role "admin"' in otto.refused("node", "update", "--availability", "drain", "h2")
    assert 'that needs the role "admin"' in otto.refused("token", "rotate", "worker")
    assert "may not remove a user" in otto.refused("user", "rm", "vera")
    assert otto.mesh("token", "show", "-q", "worker").stdout.strip() == "", "join tokens are for administrators"
    assert anna.mesh("token", "show", "-q", "worker").stdout.startswith("MTKN-")
    listed = anna.mesh("user", "ls", "--format", "{{.Name}} {{.Role}}").stdout
    assert listed.splitlines() == ["anna admin", "otto operator", "vera viewer"]
    # What is about a machine is not to be had from elsewhere.
    assert 'context "lab" is about a cluster' in anna.mesh("leave").stderr
    created = [row for row in _rows(cluster) if row["call"] == "Control/CreateService" and row["result"] == "done"]
    assert [(row["who"], row["from"]) for row in created] == [("user otto (operator)", cluster.lab.address(CLIENT))]
    # A person who is removed is nobody from then on, whatever connection there is.
    assert anna.mesh("user", "rm", "vera").returncode == 0
    assert "is no user of this cluster (any more)" in vera.refused("service", "ls")


def _rows(cluster: Cluster, host: str = "h1") -> list[dict[str, str]]:
    """The audit log of a host."""
    lines = (cluster.lab.directory / host / "disk" / "audit.log").read_text().splitlines()
    return [json.loads(line) for line in lines]


def test_a_context_outlives_a_change_of_the_root(cluster: Cluster, tmp_path: Path) -> None:
    anna = Person(cluster, tmp_path, "anna", "admin")
    cluster.mesh("ca", "rotate", "-q", "--timeout", "50")
    cluster.until("the old root is believed no more", lambda: anna.mesh("service", "ls").returncode == 5)
    done = anna.mesh("service", "ls")
    assert "mesh context renew lab" in done.stderr
    assert anna.mesh("context", "renew").returncode == 0
    assert anna.mesh("service", "ls").returncode == 0
    cluster.mesh("user", "rm", "anna")
    assert 'there is no user "anna"' in anna.refused("context", "renew")


def test_the_sentence_on_a_worker_says_what_helps(cluster: Cluster) -> None:
    refused = cluster.mesh("service", "ls", host="h2", check=False)
    assert refused.returncode == 6
    assert '"mesh context"' in refused.stderr
    (row,) = [row for row in _rows(cluster) if row["result"].startswith("refused")]
    assert row["who"].startswith("uid 0 by node ")
    assert row["who"].endswith(" (worker)")
    assert row["from"] == cluster.lab.address("h2")


def test_the_leader_knows_the_user_of_another_manager(cluster: Cluster) -> None:
    cluster.mesh("node", "promote", "h2")
    cluster.until("h2 is a manager", lambda: cluster.mesh("network", "ls", host="h2", check=False).returncode == 0)
    cluster.mesh("network", "create", "back", host="h2")
    here = [row for row in _rows(cluster, "h2") if row["call"] == "Control/CreateNetwork"]
    assert [(row["who"], row["from"], row["result"]) for row in here] == [("uid 0 on the local socket", "", "done")]
    there = [
        row for row in _rows(cluster) if row["call"] == "Control/CreateNetwork" and row["who"].startswith("uid 0 by")
    ]
    assert [row["who"].rpartition(" ")[2] for row in there] == ["(manager)"]
