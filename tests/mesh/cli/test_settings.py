"""mesh cluster inspect and update."""

from __future__ import annotations

import json

import grpc

from tests.mesh.cli.fake import Mesh


def test_update_changes_what_is_named(mesh: Mesh) -> None:
    out = mesh.ok(
        "cluster", "update", "--name", "lab", "--dispatcher-heartbeat", "2s", "--task-history-limit", "0",
        "--default-addr-pool", "10.64.0.0/12", "--default-addr-pool-mask-length", "24", "--address-rest", "5s",
    )  # fmt: skip
    assert out == "lab\n"
    (spec,) = mesh.daemon.specs("UpdateCluster")
    assert (spec.name, spec.heartbeat_period_s, spec.task_history_limit) == ("lab", 2.0, 0)
    assert (spec.address_pools, spec.subnet_prefix_length, spec.address_rest_s) == (("10.64.0.0/12",), 24, 5.0)
    assert spec.vxlan_port == 4789


def test_how_long_certificates_last(mesh: Mesh) -> None:
    mesh.ok("cluster", "update", "--cert-expiry", "720h")
    assert [spec.certificate_life_s for spec in mesh.daemon.specs("UpdateCluster")] == [720 * 3600.0]


def test_update_to_what_it_is_asks_for_nothing(mesh: Mesh) -> None:
    assert mesh.ok("cluster", "update", "--name", "default") == "default\n"
    assert mesh.daemon.requests("UpdateCluster") == []


def test_update_of_nothing_is_a_usage_error(mesh: Mesh) -> None:
    result = mesh("cluster", "update")
    assert (result.code, "nothing to change" in result.err) == (2, True)


def test_update_that_a_manager_refuses(mesh: Mesh) -> None:
    mesh.daemon.refuse["UpdateCluster"] = (grpc.StatusCode.INVALID_ARGUMENT, "cluster: at least one pool is needed")
    result = mesh("cluster", "update", "--name", "lab")
    assert (result.code, "at least one pool is needed" in result.err) == (2, True)


def test_inspect_shows_settings_and_no_secret(mesh: Mesh) -> None:
    out = mesh.ok("cluster", "inspect")
    (shown,) = json.loads(out)
    assert shown["spec"]["heartbeat_period_s"] == 5.0
    assert "MTKN" not in out
    assert "keys" not in out
    assert mesh.ok("cluster", "inspect", "--format", "{{.Spec.Name}}") == "default\n"
