"""`mesh doctor`, with and without a daemon; the machine itself is looked at in tests/mesh/doctor."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import mesh.doctor.look
from mesh.doctor.checks import Wanted
from mesh.doctor.facts import Facts
from tests.mesh.cli.fake import Mesh, make_node

CAN = dict.fromkeys(("namespaces", "veth", "vxlan", "nftables", "ipvs", "sctp"), "")


@pytest.fixture(autouse=True)
def _machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mesh.doctor.look, "gather", lambda state_dir: Facts(kernel="6.1", kernel_can=CAN))


def test_without_a_daemon_it_says_so_and_looks_at_the_rest(mesh: Mesh, tmp_path: Path) -> None:
    mesh.socket = str(tmp_path / "nobody")
    result = mesh("doctor")
    assert result.code == 7
    assert "warning  meshd: cannot reach meshd" in result.out
    assert "fix: systemctl start meshd" in result.out
    assert "ok  kernel: 6.1 has namespaces" in result.out


def test_a_healthy_machine_is_no_failure(mesh: Mesh) -> None:
    node = make_node(1)
    mesh.daemon.add(node)
    mesh.daemon.info.node_id = node.id
    result = mesh("doctor", "--format", "json")
    found = {one["what"]: one["level"] for one in json.loads(result.out)}
    assert result.code == 0
    assert found == {"meshd": "ok", "kernel": "ok", "balancer": "ok"}


def test_what_the_daemon_complains_of_is_told(mesh: Mesh) -> None:
    mesh.daemon.info.error = "no space left on device"
    result = mesh("doctor", "--format", "{{.Level}} {{.What}} {{.Found}}")
    assert "error meshd no space left on device" in result.out
    assert result.code == 7


def test_what_is_wanted_has_defaults() -> None:
    assert Wanted(7377, 4789, "").gossip_port == 7946
