"""Mistakes: one clear sentence that names the user's thing, a code that scripts can use, and nothing half done."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from mesh.lab.lab import Lab
from tests.e2e.conftest import Cluster

pytestmark = [pytest.mark.root, pytest.mark.e2e, pytest.mark.timeout(180)]

RUN = ("--", "sleep", "infinity")
BIN = Path(sys.executable).parent


def test_every_mistake_has_its_sentence_and_its_code_and_changes_nothing(cluster: Cluster) -> None:
    cluster.mesh("service", "create", "-d", "--name", "api", "--network", "web", "--publish", "8080:80", *RUN)
    create = ("service", "create", "-d")
    mistakes: list[tuple[tuple[str, ...], int, str]] = [
        ((*create, "--name", "x", "--network", "wbe", *RUN), 3, 'no network "wbe"'),
        (("service", "inspect", "nope"), 3, 'no service "nope"'),
        (("service", "scale", "nope=3"), 3, 'no service "nope"'),
        (("network", "inspect", "nope"), 3, 'no network "nope"'),
        (("network", "create", "web"), 4, 'network "web" already exists'),
        ((*create, "--name", "api", *RUN), 4, 'service "api" already exists'),
        ((*create, "--name", "other", "--network", "web", "--publish", "8080:80", *RUN), 4,
         'cannot publish port 8080 of service "other": already used by "api"'),
        ((*create, "--name", "x", "--replicas", "many", *RUN), 2, "many"),
        ((*create, "--name", "x", "--replicas", "-3", *RUN), 2, "-3"),
        ((*create, "--name", "Not_A_Label", *RUN), 2, "Not_A_Label"),
        (("network", "create", "--subnet", "10.66.0.0/16", "clash"), 1, "10.66.0.0/24"),
        (("network", "create", "--subnet", "10.0.0.0/99", "bad"), 2, "10.0.0.0/99"),
        (("network", "rm", "web"), 1, '"api"'),
        (("init",), 1, "already in a cluster"),
    ]  # fmt: skip
    before = [cluster.mesh(noun, "ls", "-q").stdout for noun in ("network", "service", "node")]
    for args, code, sentence in mistakes:
        done = cluster.mesh(*args, check=False)
        assert sentence in done.stderr, (args, done.stderr)
        assert done.returncode == code, (args, done.returncode, done.stderr)
        assert "Traceback" not in done.stderr, args
    assert [cluster.mesh(noun, "ls", "-q").stdout for noun in ("network", "service", "node")] == before


def test_joining_wrongly_says_what_is_wrong_and_leaves_the_node_free(bare_lab: Lab) -> None:
    cluster = Cluster(bare_lab, ("h1", "h2"))
    nowhere = cluster.mesh("service", "ls", check=False)
    assert nowhere.returncode == 1
    assert "mesh init" in nowhere.stderr
    cluster.mesh("init")
    token = cluster.mesh("token", "show", "worker", "-q").stdout.strip()
    wrong = token[:-1] + ("0" if token[-1] != "0" else "1")
    for args, sentence in (
        (("join", "--token", token, "10.66.0.99:7377"), "no manager answers at 10.66.0.99:7377"),
        (("join", "--token", wrong, "10.66.0.11:7377"), "token"),
        (("join", "--token", "nonsense", "10.66.0.11:7377"), "token"),
    ):
        done = cluster.mesh(*args, host="h2", check=False)
        assert done.returncode != 0, args
        assert sentence in done.stderr, (args, done.stderr)
    cluster.mesh("join", "--token", token, "10.66.0.11:7377", host="h2")
    cluster.until("both are ready", cluster.ready)


def test_the_daemon_says_why_it_cannot_run(bare_lab: Lab, tmp_path: Path) -> None:
    unprivileged = subprocess.run(
        [str(BIN / "meshd"), "--state-dir", str(tmp_path)], user=65534, capture_output=True, text=True, check=False,
        env={"PATH": os.environ["PATH"]},
    )  # fmt: skip
    assert unprivileged.returncode != 0
    assert "must run as root" in unprivileged.stderr or "Permission denied" in unprivileged.stderr
    disk = bare_lab.directory / "h1" / "disk"
    second = bare_lab.exec("h1", ["meshd", "--state-dir", str(disk)])
    assert second.returncode == 1
    assert f"another meshd uses the state directory {disk}" in second.stderr
    meshd = str(BIN / "meshd")
    without_nft = bare_lab.exec("h1", ["env", "PATH=/nonexistent", meshd, "--state-dir", "/run/other"])
    assert without_nft.returncode == 1
    assert "nftables is not installed: apt-get install nftables" in without_nft.stderr
    unknown = bare_lab.exec("h1", [meshd, "--state-dir", "/run/other", "--executor", "podman"])
    assert unknown.returncode != 0
    assert 'must be auto, process or docker, not "podman"' in unknown.stderr
    assert "Traceback" not in second.stderr


def test_a_state_directory_of_another_cluster_is_refused(bare_lab: Lab) -> None:
    cluster = Cluster(bare_lab, ("h1", "h2"))
    cluster.mesh("init")
    cluster.mesh("init", host="h2")
    for host in ("h1", "h2"):
        bare_lab.kill_daemon(host)
    one, other = (bare_lab.directory / host / "disk" for host in ("h1", "h2"))
    (one / "manager").rename(one / "manager.own")
    (other / "manager").rename(one / "manager")
    done = bare_lab.exec("h1", ["meshd", "--state-dir", str(one)])
    assert done.returncode == 1
    assert "another cluster" in done.stderr or "belongs to cluster" in done.stderr
    assert "Traceback" not in done.stderr
