"""init, join, leave, status, tokens, nodes, networks."""

from __future__ import annotations

import io
import json
from pathlib import Path

import grpc
import pytest
from msgspec.structs import replace

from control.model import Network, NodeSpec, NodeStatus
from control.rpc import control_pb2 as pb
from tests.mesh.cli.fake import Mesh, make_network, make_node, make_service, make_task


def test_init_prints_how_to_join(mesh: Mesh) -> None:
    assert mesh.ok("init", "--advertise-addr", "10.0.0.1") == (
        "Cluster initialized: this node (node1) is now a manager.\n"
        "\n"
        "To add a worker to this cluster, run the following command on it:\n"
        "\n"
        "    mesh join --token MTKN-1-w 10.0.0.1:7377\n"
        "\n"
        'To add a manager, run "mesh token show manager" and follow the instructions.\n'
        "\n"
    )
    (request,) = mesh.daemon.requests("Init")
    assert (request.advertise_address, request.data_address, request.availability) == ("10.0.0.1", "", "active")


def test_init_settings(mesh: Mesh) -> None:
    out = mesh.ok(
        "init", "-q", "--data-path-addr", "eth1", "--data-path-port", "4790", "--default-addr-pool", "10.64.0.0/12",
        "--wireguard-port", "7950",
        "--default-addr-pool", "10.96.0.0/12", "--default-addr-pool-mask-length", "24", "--address-rest", "5s",
        "--dispatcher-heartbeat", "500ms", "--task-history-limit", "2", "--name", "lab", "--availability", "drain",
    )  # fmt: skip
    assert out == "node1\n"
    (request,), (spec,) = mesh.daemon.requests("Init"), mesh.daemon.specs("Init")
    assert (request.data_address, request.availability) == ("eth1", "drain")
    assert (spec.name, spec.vxlan_port, spec.wireguard_port, spec.subnet_prefix_length) == ("lab", 4790, 7950, 24)
    assert spec.address_pools == ("10.64.0.0/12", "10.96.0.0/12")
    assert (spec.address_rest_s, spec.heartbeat_period_s, spec.task_history_limit) == (5.0, 0.5, 2)


def test_init_with_a_root_of_ones_own(mesh: Mesh, tmp_path: Path) -> None:
    certificate, key = tmp_path / "root.pem", tmp_path / "root.key"
    certificate.write_text("certificate")
    key.write_text("key")
    assert mesh("init", "--ca-cert", str(certificate)).code == 2
    mesh.ok("init", "-q", "--ca-cert", str(certificate), "--ca-key", str(key), "--cert-expiry", "24h", "--autolock")
    (request,), (spec,) = mesh.daemon.requests("Init"), mesh.daemon.specs("Init")
    assert (request.ca_certificate, request.ca_key) == (b"certificate", b"key")
    assert (spec.certificate_life_s, spec.autolock) == (86400.0, True)


def test_init_with_an_external_ca(mesh: Mesh, tmp_path: Path) -> None:
    certificate = tmp_path / "root.pem"
    certificate.write_text("certificate")
    assert mesh("init", "--external-ca", "https://ca/sign").code == 2
    both = mesh("init", "--external-ca", "https://ca/sign", "--ca-cert", str(certificate), "--ca-key", str(certificate))
    assert both.code == 2
    mesh.ok("init", "-q", "--external-ca", "https://ca/sign", "--ca-cert", str(certificate))
    (request,) = mesh.daemon.requests("Init")
    assert (request.external_ca, request.ca_certificate, request.ca_key) == ("https://ca/sign", b"certificate", b"")


def test_join(mesh: Mesh, monkeypatch: pytest.MonkeyPatch) -> None:
    mesh.daemon.info.role = "worker"
    out = mesh.ok(
        "join", "--token", "MTKN-1-x", "--data-path-addr", "eth1", "10.0.0.1", "10.0.0.2:99", "[fd00::1]", "h:1"
    )
    assert out == "This node joined a cluster as a worker.\n"
    (request,) = mesh.daemon.requests("Join")
    assert list(request.managers) == ["10.0.0.1:7377", "10.0.0.2:99", "[fd00::1]:7377", "h:1"]
    assert (request.token, request.data_address, request.availability) == ("MTKN-1-x", "eth1", "active")
    monkeypatch.setattr("sys.stdin", io.StringIO("MTKN-1-stdin\n"))
    mesh.ok("join", "--token", "-", "m")
    monkeypatch.setenv("MESH_TOKEN", "MTKN-1-env")
    mesh.ok("join", "m")
    assert [r.token for r in mesh.daemon.requests("Join")][1:] == ["MTKN-1-stdin", "MTKN-1-env"]


def test_join_needs_a_token(mesh: Mesh) -> None:
    result = mesh("join", "m")
    assert (result.code, result.err) == (2, "error: Missing option '--token'\nsee \"mesh join --help\"\n")


def test_leave(mesh: Mesh) -> None:
    mesh.daemon.refuse_once["Leave"] = (grpc.StatusCode.FAILED_PRECONDITION, "this node is the only manager")
    result = mesh("leave")
    assert (result.code, result.err) == (1, "error: this node is the only manager\n")
    assert mesh.ok("leave", "--force") == "Node left the cluster.\n"
    assert [r.force for r in mesh.daemon.requests("Leave")] == [False, True]


def test_tokens(mesh: Mesh) -> None:
    shown = (
        "To add a worker to this cluster, run the following command on it:\n"
        "\n"
        "    mesh join --token MTKN-1-w 10.0.0.1:7377\n"
        "\n"
    )
    assert mesh.ok("token", "show", "worker") == mesh.ok("join-token", "worker") == shown
    assert mesh.ok("token", "show", "-q", "manager") == "MTKN-1-m\n"
    assert mesh.ok("token", "rotate", "worker") == (
        "the worker token is another one now; the old one is worth nothing any more\n\n"
        + shown.replace("MTKN-1-w", "NEW-worker")
    )
    assert mesh.ok("join-token", "--rotate", "-q", "manager") == "NEW-manager\n"


def test_status_of_a_healthy_cluster(mesh: Mesh) -> None:
    h1, api = make_node(1), make_service("api", 1)
    mesh.daemon.add(h1, make_node(2), api, make_task(api, 1, h1))
    assert mesh.ok("status") == (
        "Node:    h1\n"
        " ID:          node1xxxxxxxxxxxxxxxxxxxx\n"
        " Role:        manager\n"
        " Session:     connected\n"
        " Executor:    process\n"
        " Balancer:    nftables\n"
        " Assignments: up to 12, 1 repairs in the kernel\n"
        " Version:     0.1.0\n"
        "Cluster: default\n"
        " ID:          cluster\n"
        " Managers:    10.0.0.1:7377\n"
        " Nodes:       2 ready\n"
        " Services:    1 of 1 complete\n"
        " Tasks:       1 running\n"
        "Health:  good\n"
    )
    shown = json.loads(mesh.ok("status", "--format", "json"))
    assert (shown["healthy"], shown["problems"], shown["nodes"]) == (True, [], {"ready": 2})
    assert shown["services"] == [{"name": "api", "running_tasks": 1, "desired_tasks": 1}]
    assert mesh.ok("status", "--format", "{{.NodeName}} {{.Sequence}}") == "h1 12\n"


def test_status_names_what_is_wrong(mesh: Mesh) -> None:
    down = replace(make_node(2), status=NodeStatus(state="down"))
    api = make_service("api", 3)
    mesh.daemon.add(make_node(1), down, api, make_task(api, 1, make_node(1)), make_task(api, 2, down))
    mesh.daemon.info.connected = False
    mesh.daemon.info.error = "cannot add VXLAN"
    result = mesh("status")
    assert result.code == 7
    assert result.out.endswith(
        "Health:  degraded\n"
        "  this node has no session with a manager\n"
        "  this node: cannot add VXLAN\n"
        '  node "h2" is down\n'
        '  service "api" has 1 of 3 tasks running\n'
    )
    assert mesh("status", "--format", "json").code == 7


def test_status_without_manager_or_cluster(mesh: Mesh) -> None:
    mesh.daemon.refuse["Get"] = (grpc.StatusCode.UNAVAILABLE, "no manager answers")
    result = mesh("status")
    assert result.code == 7
    assert result.out.endswith("Health:  degraded\n  the cluster cannot be asked: no manager answers\n")
    mesh.daemon.info.CopyFrom(pb.InfoReply(state="idle", node_name="h1", version="0.1.0"))
    assert mesh.ok("status") == (
        "Node: h1\n"
        ' State:   in no cluster: start one with "mesh init", or enter one with "mesh join"\n'
        " Version: 0.1.0\n"
    )


def test_long_lists_of_problems_are_cut(mesh: Mesh) -> None:
    mesh.daemon.add(*(replace(make_node(n), status=NodeStatus(state="unknown")) for n in range(1, 40)))
    assert mesh("status").out.endswith('  node "h10" is unknown\n  and 29 more nodes\n')


# --- nodes ----------------------------------------------------------------------------------------------------------


def test_node_update(mesh: Mesh) -> None:
    node = replace(make_node(2), spec=NodeSpec(labels={"zone": "a", "old": "1"}))
    mesh.daemon.add(node)
    out = mesh.ok(
        "node",
        "update",
        "--availability",
        "drain",
        "--label-add",
        "zone=b",
        "--label-add",
        "ssd",
        "--label-rm",
        "old",
        "h2",
    )
    assert out == "h2\n"
    assert mesh.daemon.specs("UpdateNode") == [NodeSpec(availability="drain", labels={"zone": "b", "ssd": ""})]
    (request,) = mesh.daemon.requests("UpdateNode")
    assert (request.reference, request.version) == (node.id, node.meta.version)
    result = mesh("node", "update", "--label-rm", "nope", "h2")
    assert (result.code, result.err) == (3, 'error: node "h2" has no label nope\n')
    result = mesh("node", "update", "--availability", "off", "h2")
    assert result.code == 2


def test_node_update_of_self_and_of_what_changes_meanwhile(mesh: Mesh) -> None:
    mesh.daemon.add(make_node(1))
    mesh.daemon.refuse_once["UpdateNode"] = (grpc.StatusCode.ABORTED, "has changed meanwhile")
    assert mesh.ok("node", "update", "--availability", "pause", "self") == "self\n"
    assert len(mesh.daemon.requests("UpdateNode")) == 2
    mesh.daemon.refuse["UpdateNode"] = (grpc.StatusCode.ABORTED, "has changed meanwhile")
    result = mesh("node", "update", "--availability", "pause", "self")
    assert (result.code, result.err) == (4, "error: has changed meanwhile\n")
    assert len(mesh.daemon.requests("UpdateNode")) == 2 + 5


def test_promote_and_demote(mesh: Mesh) -> None:
    mesh.daemon.add(make_node(1), make_node(2))
    assert mesh.ok("node", "promote", "h1", "h2") == "node h1 is already a manager\nnode h2 becomes a manager\n"
    assert mesh.daemon.specs("UpdateNode") == [NodeSpec(role="manager")]
    mesh.daemon.refuse["UpdateNode"] = (grpc.StatusCode.FAILED_PRECONDITION, 'node "h1" is the only manager')
    result = mesh("node", "demote", "h1")
    assert (result.code, result.out, result.err) == (1, "", 'error: node "h1" is the only manager\n')


def test_node_rm(mesh: Mesh) -> None:
    mesh.daemon.add(make_node(1), make_node(2))
    assert mesh.ok("node", "rm", "h2") == "h2\n"
    assert mesh.ok("node", "remove", "--force", "self") == "self\n"
    assert [(r.kind, r.reference, r.force) for r in mesh.daemon.requests("Remove")] == [
        ("node", "h2", False),
        ("node", make_node(1).id, True),
    ]


def test_node_inspect_pretty(mesh: Mesh) -> None:
    mesh.daemon.add(replace(make_node(1), spec=NodeSpec(role="manager", labels={"zone": "a"})))
    assert mesh.ok("node", "inspect", "--pretty", "self") == (
        "ID:        node1xxxxxxxxxxxxxxxxxxxx\n"
        "Hostname:  h1\n"
        "Number:    1\n"
        "Labels:\n"
        " zone:         a\n"
        "Role:      manager\n"
        "Joined:    About an hour ago\n"
        "Status:\n"
        " State:        Ready\n"
        " Availability: Active\n"
        " Address:      10.0.0.1\n"
        " Data address: 10.0.0.1\n"
        "Platform:\n"
        " System:       linux 6.1\n"
        " Architecture: x86_64\n"
        "Resources:\n"
        " CPUs:         2\n"
        " Memory:       4GiB\n"
        "Mesh:\n"
        " Version:      0.1.0\n"
        " Executors:    process\n"
        " Balancer:     nftables\n"
        " MTU:          1500\n"
    )


# --- networks -------------------------------------------------------------------------------------------------------


def test_network_create(mesh: Mesh) -> None:
    mesh.daemon.warnings = ("mind the gap",)
    result = mesh("network", "create", "--subnet", "10.20.0.0/20", "--internal", "-l", "tier=back", "back")
    assert (result.code, result.out, result.err) == (0, "newnetwork\n", "warning: mind the gap\n")
    (spec,) = mesh.daemon.specs("CreateNetwork")
    assert (spec.name, spec.subnet, spec.internal, spec.labels) == ("back", "10.20.0.0/20", True, {"tier": "back"})


def test_network_inspect_and_rm(mesh: Mesh) -> None:
    web = make_network("web", 1)
    mesh.daemon.add(web)
    (shown,) = json.loads(mesh.ok("network", "inspect", "web"))
    assert shown["id"] == web.id
    assert set(shown) == set(Network.__struct_fields__)
    assert mesh.ok("network", "rm", "web") == "web\n"
