"""Managers that start locked: what runs there goes on, nothing is told, and the right key brings them back."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from mesh.lab.lab import Lab
from tests.e2e.conftest import TIMEOUT_S, Cluster
from tests.e2e.test_managers import managed, voters

pytestmark = [pytest.mark.root, pytest.mark.e2e]


def disk(lab: Lab, host: str) -> Path:
    return lab.directory / host / "disk"


def unlock(cluster: Cluster, host: str, key: str) -> subprocess.CompletedProcess[str]:
    """As a user does: the key comes by standard input."""
    command, environment = cluster.lab.command(host, ["mesh", "unlock"])
    return subprocess.run(
        command, env=environment, input=key + "\n", capture_output=True, text=True, timeout=TIMEOUT_S, check=False
    )


def key_of(cluster: Cluster, host: str = "h1") -> str:
    return cluster.mesh("unlock-key", "-q", host=host).stdout.strip()


def state(cluster: Cluster, host: str) -> str:
    return str(json.loads(cluster.mesh("status", "--format", "json", host=host, check=False).stdout)["state"])


def vault(cluster: Cluster, host: str) -> dict[str, object]:
    found: dict[str, object] = json.loads((disk(cluster.lab, host) / "vault.json").read_text())
    return found


def is_locked_with(cluster: Cluster, version: int, hosts: tuple[str, ...] = ("h1", "h2", "h3")) -> bool:
    """Whether the keys on the disks of these hosts are."""
    files = [vault(cluster, host) for host in hosts]
    hidden = not any((disk(cluster.lab, host) / "tls/key.pem").exists() for host in hosts)
    return hidden and all(file["version"] == version and file["contents"] is None for file in files)


def restarted(cluster: Cluster, host: str) -> None:
    cluster.lab.kill_daemon(host)
    cluster.lab.start_daemon(host)


@pytest.mark.hosts(3)
@pytest.mark.timeout(400)
def test_a_manager_comes_back_locked_and_goes_on_with_the_key(bare_lab: Lab) -> None:
    cluster = managed(bare_lab)
    cluster.serve("api", 3, "--network", "web", "--replicas-max-per-node", "1")
    said = cluster.mesh("cluster", "update", "--autolock").stdout
    first = key_of(cluster)
    assert first.startswith("MSHKEY-1-")
    assert first in said, "the user is told"
    assert first not in cluster.mesh("cluster", "inspect").stdout
    cluster.until("all managers are locked on their disks", lambda: is_locked_with(cluster, 1))

    name = next(name for name, (node, _) in cluster.running("api").items() if node == "h3")
    restarted(cluster, "h3")
    assert state(cluster, "h3") == "locked"
    refused = cluster.mesh("node", "ls", host="h3", check=False)
    assert refused.returncode != 0
    assert 'run "mesh unlock"' in refused.stderr
    curl = ["mesh", "task", "exec", name, "--", "curl", "-s", "-m", "3", "http://api/"]
    cluster.until("its tasks are served", lambda: bare_lab.exec("h3", curl).returncode == 0)
    assert voters(cluster) == {"h1", "h2"}
    for wrong in ("MSHKEY-1-" + "A" * 43, "nonsense", ""):
        refused = unlock(cluster, "h3", wrong)
        assert refused.returncode != 0, wrong
        assert state(cluster, "h3") == "locked"
    assert "it is locked with number 1" in unlock(cluster, "h3", "MSHKEY-1-" + "A" * 43).stderr
    done = unlock(cluster, "h3", first)
    assert done.returncode == 0, done.stderr
    cluster.until("it takes part", lambda: voters(cluster) == {"h1", "h2", "h3"})
    cluster.until("it has a session", lambda: cluster.connected("h3"))
    assert unlock(cluster, "h3", first).returncode != 0, "it is not locked any more"
    log = (bare_lab.directory / "h3" / "meshd.log").read_text() + (disk(bare_lab, "h3") / "audit.log").read_text()
    assert first not in log
    assert '"call":"Local/Unlock"' in log

    restarted(cluster, "h3")  # it is away while the key is changed, and needs the one before
    second = cluster.mesh("unlock-key", "--rotate", "-q").stdout.strip()
    assert second != first
    cluster.until("the others have the new key", lambda: is_locked_with(cluster, 2, ("h1", "h2")))
    assert "number 1" in unlock(cluster, "h3", second).stderr
    assert unlock(cluster, "h3", first).returncode == 0
    cluster.until("all managers have the new key", lambda: is_locked_with(cluster, 2))
    for host in cluster.hosts:
        bare_lab.kill_daemon(host)
    for host in cluster.hosts:
        bare_lab.start_daemon(host)
    assert [state(cluster, host) for host in cluster.hosts] == ["locked"] * 3
    assert "number 2" in unlock(cluster, "h1", first).stderr
    for host in cluster.hosts:
        assert unlock(cluster, host, second).returncode == 0
    cluster.until("all managers agree", lambda: voters(cluster) == {"h1", "h2", "h3"})
    cluster.until("all nodes are ready", cluster.ready)
    cluster.until("nothing is lost", lambda: len(cluster.running("api")) == 3)
    assert name in cluster.running("api"), "not even a task"

    cluster.mesh("cluster", "update", "--autolock=false")
    cluster.until("no disk is locked", lambda: all(vault(cluster, host)["version"] == 0 for host in cluster.hosts))
    restarted(cluster, "h2")
    cluster.until("it needs no key", lambda: voters(cluster) == {"h1", "h2", "h3"})


@pytest.mark.hosts(3)
@pytest.mark.timeout(300)
def test_a_manager_joins_a_locked_cluster_and_is_none_any_more(bare_lab: Lab) -> None:
    cluster = Cluster(bare_lab, tuple(bare_lab.hosts()))
    said = cluster.mesh("init", "--dispatcher-heartbeat", "500ms", "--autolock").stdout
    key = key_of(cluster)
    assert key in said
    token = cluster.mesh("token", "show", "manager", "-q").stdout.strip()
    for host in ("h2", "h3"):
        cluster.mesh("join", "--token", token, f"{bare_lab.address('h1')}:7377", host=host)
    cluster.until("all managers vote", lambda: voters(cluster) == {"h1", "h2", "h3"})
    cluster.until("all are locked on their disks", lambda: is_locked_with(cluster, 1))
    cluster.mesh("node", "demote", "h3")
    files = [disk(bare_lab, "h3") / name for name in ("vault.json", "manager")]
    cluster.until("nothing of a manager is left", lambda: not any(file.exists() for file in files))
    assert (disk(bare_lab, "h3") / "tls/key.pem").stat().st_mode & 0o777 == 0o600
    restarted(cluster, "h3")
    cluster.until("a worker needs no key", lambda: cluster.connected("h3"))
    # A root that is changed reaches a manager whose key is in no file.
    cluster.mesh("ca", "rotate", "--timeout", "50")
    restarted(cluster, "h2")
    assert state(cluster, "h2") == "locked"
    assert unlock(cluster, "h2", key).returncode == 0
    cluster.until("it is back", lambda: cluster.connected("h2"))
    restarted(cluster, "h2")
    refused = cluster.mesh("leave", host="h2", check=False)
    assert "locked" in refused.stderr
    cluster.mesh("leave", "--force", host="h2")
    assert state(cluster, "h2") == "idle"
    assert not (disk(bare_lab, "h2") / "vault.json").exists()
