"""A manager's machine is lost with its disk: what `mesh backup` has kept becomes the cluster again."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from mesh.lab.lab import Lab
from tests.e2e.conftest import TIMEOUT_S, Cluster, joined
from tests.e2e.test_autolock import disk, key_of, state, unlock

pytestmark = [pytest.mark.root, pytest.mark.e2e, pytest.mark.timeout(300)]


def restore(cluster: Cluster, file: Path, key: str = "") -> subprocess.CompletedProcess[str]:
    command, environment = cluster.lab.command("h1", ["meshd", "restore", str(file), "--node", "h1"])
    return subprocess.run(
        command, env=environment, input=key + "\n", capture_output=True, text=True, timeout=TIMEOUT_S, check=False
    )


def lose(lab: Lab, host: str) -> None:
    """The machine is replaced by an empty one of the same address."""
    lab.kill(host)
    for path in disk(lab, host).iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    lab.start(host)
    lab.stop_daemon(host)


def tasks(cluster: Cluster, host: str) -> set[str]:
    """Those of the service that run on a host."""
    return {name for name, (node, _) in cluster.running("api").items() if node == host}


def served(cluster: Cluster) -> bool:
    return cluster.outside("curl", "-s", "-m", "2", "http://10.66.0.12:8080/").returncode == 0


def test_a_cluster_comes_back_out_of_its_backup(bare_lab: Lab, tmp_path: Path) -> None:
    cluster = joined(bare_lab, "500ms")
    cluster.serve("api", 2, "--network", "web", "--publish", "8080:80", "--replicas-max-per-node", "1")
    kept, file = tasks(cluster, "h2"), tmp_path / "backup"
    cluster.mesh("backup", str(file))
    assert file.stat().st_mode & 0o777 == 0o600
    again = cluster.mesh("backup", str(file), check=False)
    assert "exists" in again.stderr
    cluster.mesh("network", "create", "later")
    lose(bare_lab, "h1")
    done = restore(cluster, file)
    assert done.returncode == 0, done.stderr
    assert "only manager" in done.stdout
    bare_lab.start_daemon("h1")
    comes_back(cluster, kept)


def test_the_backup_of_a_locked_cluster_needs_its_key(bare_lab: Lab, tmp_path: Path) -> None:
    cluster = joined(bare_lab, "500ms")
    cluster.mesh("cluster", "update", "--autolock")
    key = key_of(cluster)
    cluster.serve("api", 2, "--network", "web", "--publish", "8080:80", "--replicas-max-per-node", "1")
    kept, file = tasks(cluster, "h2"), tmp_path / "backup"
    token = cluster.mesh("token", "show", "manager", "-q").stdout.strip()
    cluster.mesh("backup", str(file))
    for secret in (token, key, "PRIVATE KEY", "whoami", "web"):
        assert secret.encode() not in file.read_bytes(), f"{secret} is in the backup"
    cluster.mesh("network", "create", "later")
    lose(bare_lab, "h1")
    for wrong in ("MSHKEY-1-" + "A" * 43, "nonsense", ""):
        refused = restore(cluster, file, wrong)
        assert refused.returncode != 0
        assert "Traceback" not in refused.stderr
    done = restore(cluster, file, key)
    assert done.returncode == 0, done.stderr
    bare_lab.start_daemon("h1")
    assert state(cluster, "h1") == "locked", "it is as it was"
    assert served(cluster), "what runs goes on without managers"
    assert unlock(cluster, "h1", key).returncode == 0
    comes_back(cluster, kept)


def comes_back(cluster: Cluster, kept: set[str]) -> None:
    """All of it but what came after the backup; nothing was touched where nothing was lost."""
    cluster.until("the nodes are ready", lambda: cluster.mesh("node", "ls", check=False).returncode == 0)
    cluster.until("the nodes are ready", cluster.ready)
    cluster.until("the service is whole", lambda: len(cluster.running("api")) == 2)
    assert tasks(cluster, "h2") == kept
    cluster.until("it is served", lambda: served(cluster))
    networks = cluster.mesh("network", "ls", "--format", "{{.Name}}").stdout.split()
    assert "web" in networks
    assert "later" not in networks
    cluster.mesh("network", "create", "new")
