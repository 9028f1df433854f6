"""Tables and formats of lists, compared literally."""

from __future__ import annotations

import json
from typing import Any

import pytest
from msgspec.structs import replace

from control.lifecycle import TaskState
from control.model import (
    ContainerSpec,
    GlobalMode,
    Meta,
    NodeSpec,
    NodeStatus,
    Placement,
    PortSpec,
    ServiceMode,
    TaskSpec,
    TaskStatus,
)
from tests.mesh.cli.fake import NOW_MS, Mesh, make_network, make_node, make_service, make_task


def lines(*rows: str) -> str:
    return "".join(row + "\n" for row in rows)


@pytest.fixture
def cluster(mesh: Mesh) -> Mesh:
    """Three nodes of which the third is down, two networks, two services."""
    h1, h2, h3 = (make_node(n) for n in (1, 2, 3))
    h2 = replace(h2, spec=NodeSpec(availability="drain", labels={"zone": "b"}))
    h3 = replace(h3, status=NodeStatus(state="down", address="10.0.0.3", data_address="10.0.0.3"))
    mesh.daemon.add(h3, h2, h1, make_network("web", 1), make_network("back", 2))
    api = make_service("api", 3)
    api = replace(api, spec=replace(api.spec, ports=(PortSpec(target=80, published=8080),)))
    agent = make_service("agent")
    agent = replace(
        agent,
        spec=replace(
            agent.spec,
            mode=ServiceMode(global_=GlobalMode()),
            task=TaskSpec(container=ContainerSpec(image="agent:1"), placement=Placement(max_replicas_per_node=1)),
        ),
    )
    failed = TaskStatus(
        state=TaskState.FAILED,
        at_ms=NOW_MS - 120_000,
        error="cannot run: exit code 3, and much more to say\nabout it",
    )
    mesh.daemon.add(
        api,
        agent,
        make_task(api, 1, h1),
        make_task(api, 2, h3),
        make_task(api, 10, h2, TaskState.PREPARING, meta=Meta(created_ms=NOW_MS, updated_ms=NOW_MS)),
        make_task(
            api, 10, h1, id="told" + "x" * 20, desired_state=TaskState.SHUTDOWN, status=failed,
            meta=Meta(created_ms=NOW_MS - 60_000),
        ),
        make_task(agent, 0, h1, id="tg" + "x" * 20, ports=(PortSpec(target=53, published=53, protocol="udp"),)),
    )  # fmt: skip
    return mesh


def test_node_ls(cluster: Mesh) -> None:
    assert cluster.ok("node", "ls") == lines(
        "ID                            HOSTNAME   STATUS    AVAILABILITY   MANAGER STATUS   VERSION   ADDRESS",
        "node1xxxxxxxxxxxxxxxxxxxx *   h1         Ready     Active         Leader           0.1.0     10.0.0.1",
        "node2xxxxxxxxxxxxxxxxxxxx     h2         Ready     Drain                           0.1.0     10.0.0.2",
        "node3xxxxxxxxxxxxxxxxxxxx     h3         Down      Active                          0.1.0     10.0.0.3",
    )


def test_node_ls_formats(cluster: Mesh) -> None:
    assert cluster.ok("node", "ls", "-q") == lines(*(f"node{n}" + "x" * 20 for n in (1, 2, 3)))
    template = "{{.Hostname}}{{if .Self}}*{{end}} {{.ID}} {{.Labels.zone}}"
    assert cluster.ok("node", "ls", "--format", template) == lines(
        "h1* node1xxxxxxxxxxxxxxxxxxxx ", "h2 node2xxxxxxxxxxxxxxxxxxxx b", "h3 node3xxxxxxxxxxxxxxxxxxxx "
    )
    assert cluster.ok("node", "ls", "--format", "table {{.Hostname}}\\t{{.Status}}") == lines(
        "HOSTNAME   STATUS", "h1         Ready", "h2         Ready", "h3         Down"
    )
    assert cluster.ok("node", "ls", "--filter", "name=h2", "--format", "{{json .Labels}}") == '{"zone":"b"}\n'
    found = json.loads(cluster.ok("node", "ls", "--format", "json"))
    assert [(n["description"]["hostname"], n["self"], n["spec"]["labels"]) for n in found] == [
        ("h1", True, {}),
        ("h2", False, {"zone": "b"}),
        ("h3", False, {}),
    ]
    assert [json.loads(line)["number"] for line in cluster.ok("node", "ls", "--format", "jsonl").splitlines()] == [
        1, 2, 3,
    ]  # fmt: skip


def test_network_ls(cluster: Mesh) -> None:
    assert cluster.ok("network", "ls") == lines(
        "NETWORK ID     NAME      DRIVER    SCOPE     SUBNET           VNI       INTERNAL",
        "netbackxxxxx   back      overlay   swarm     10.128.32.0/20   4098      false",
        "netwebxxxxxx   web       overlay   swarm     10.128.16.0/20   4097      false",
    )
    assert cluster.ok("network", "ls", "--no-trunc", "--format", "{{.ID}} {{.Gateway}}") == lines(
        "netbackxxxxxxxxxxxxxxxxxxxx 10.128.32.1", "netwebxxxxxxxxxxxxxxxxxxxx 10.128.16.1"
    )
    assert cluster.ok("network", "list", "-q") == lines("netbackxxxxx", "netwebxxxxxx")


def test_service_ls_counts_only_tasks_that_can_be_reached(cluster: Mesh) -> None:
    assert cluster.ok("service", "ls") == lines(
        "ID             NAME      MODE         REPLICAS               RUNS                     PORTS",
        "svcagentxxxx   agent     global       1/1 (max 1 per node)   agent:1",
        'svcapixxxxxx   api       replicated   1/3                    "python3 -m http.ser…"   *:8080->80/tcp',
    )
    assert cluster.ok("service", "ls", "--no-trunc", "--format", "{{.ID}} {{.Runs}}").splitlines()[1] == (
        'svcapixxxxxxxxxxxxxxxxxxxx "python3 -m http.server 80"'
    )
    found = json.loads(cluster.ok("service", "ls", "--format", "json"))
    assert [(s["spec"]["name"], s["status"]) for s in found] == [
        ("agent", {"running_tasks": 1, "desired_tasks": 1}),
        ("api", {"running_tasks": 1, "desired_tasks": 3}),
    ]


def test_service_ps_shows_the_history_of_each_slot(cluster: Mesh) -> None:
    assert cluster.ok("service", "ps", "api") == lines(
        "ID             NAME         NODE      DESIRED STATE   CURRENT STATE             ERROR"
        "                              PORTS",
        "t1apixxxxxxx   api.1        h1        Running         Running 5 seconds ago",
        "t2apixxxxxxx   api.2        h3        Running         Running 5 seconds ago",
        "t10apixxxxxx   api.10       h2        Running         Preparing 5 seconds ago",
        'toldxxxxxxxx    \\_ api.10   h1        Shutdown        Failed 2 minutes ago      "cannot run: exit code 3, and'
        ' …"',
    )
    full = cluster.ok("service", "ps", "--no-trunc", "--format", "{{.ID}} {{.Error}}", "api").split("\n", 3)[3]
    assert full == 'toldxxxxxxxxxxxxxxxxxxxx "cannot run: exit code 3, and much more to say\nabout it"\n'
    assert "much more to say\\nabout it" in cluster.ok("service", "ps", "--no-trunc", "api")


def test_node_ps_and_task_ls(cluster: Mesh) -> None:
    assert cluster.ok("node", "ps") == lines(
        "ID             NAME                 NODE      DESIRED STATE   CURRENT STATE           ERROR"
        "                              PORTS",
        "tgxxxxxxxxxx   agent.node1xxxxxxx   h1        Running         Running 5 seconds ago"
        "                                      *:53->53/udp",
        "t1apixxxxxxx   api.1                h1        Running         Running 5 seconds ago",
        "toldxxxxxxxx   api.10               h1        Shutdown        Failed 2 minutes ago    "
        '"cannot run: exit code 3, and …"',
    )
    assert cluster.ok("node", "ps", "h2", "self", "-q") == lines(
        "tgxxxxxxxxxx", "t1apixxxxxxx", "t10apixxxxxx", "toldxxxxxxxx"
    )
    assert cluster.ok("task", "ls", "--format", "table {{.Name}}\\t{{.Node}}\\t{{.Addresses}}") == lines(
        "NAME                 NODE      ADDRESSES",
        "agent.node1xxxxxxx   h1        10.128.16.1",
        "api.1                h1        10.128.16.2",
        "api.2                h3        10.128.16.3",
        "api.10               h2        10.128.16.11",
        "api.10               h1        10.128.16.11",
    )
    found = json.loads(cluster.ok("task", "ls", "--format", "json"))
    assert [(t["name"], t["node_name"], t["status"]["state"]) for t in found][3:] == [
        ("api.10", "h2", "preparing"),
        ("api.10", "h1", "failed"),
    ]


def test_empty_lists_are_tables_and_arrays_too(mesh: Mesh) -> None:
    assert mesh.ok("service", "ls") == "ID        NAME      MODE      REPLICAS   RUNS      PORTS\n"
    assert mesh.ok("service", "ls", "--format", "json") == "[]\n"
    assert mesh.ok("service", "ls", "--format", "{{.Name}}") == ""
    assert mesh.ok("service", "ls", "-q") == ""


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (
            ["--format", "yaml"],
            'format "yaml" is not one of table, json, jsonl, nor a template such as {{.Name}}',
        ),
        (
            ["--format", "{{.Foo}}"],
            "template: no field Foo: there are ID, Name, Mode, Replicas, Runs, Ports, Image, Labels",
        ),
        (["--format", "{{.Name"], "template: {{ without }}"),
        (["--filter", "name"], '"name" is not a filter: such as name=api'),
    ],
)
def test_mistakes_of_formats_are_usage_errors(mesh: Mesh, arguments: list[str], sentence: str) -> None:
    result = mesh("service", "ls", *arguments)
    assert (result.code, result.out, result.err) == (2, "", f"error: {sentence}\n")


def test_filters_go_to_the_manager(mesh: Mesh) -> None:
    mesh.ok("task", "ls", "-f", "service=a", "-f", "service=b", "-f", "desired-state=running")
    filters = mesh.daemon.requests("List")[0].filters
    assert {key: list(values.values) for key, values in filters.items()} == {
        "service": ["a", "b"],
        "desired-state": ["running"],
    }


INSPECTED: list[tuple[list[str], Any]] = [
    (["network", "inspect", "web", "--format", "{{.Spec.Name}} {{.Subnet}} {{.VNI}}"], "web 10.128.16.0/20 4097\n"),
    (["service", "inspect", "api", "-f", "{{.Spec.Mode.Replicated.Replicas}} {{.SpecVersion}}"], "3 1\n"),
    (["service", "inspect", "agent", "-f", "{{json .Spec.Mode.Global}}"], "{}\n"),
    (["task", "inspect", "api.1", "-f", "{{.Status.State}} {{.DesiredState}} {{.NodeName}}"], "running running h1\n"),
    (["node", "inspect", "-f", "{{.Description.Hostname}}"], "h1\n"),
    (["node", "inspect", "h2", "self", "-f", "{{.Spec.Labels.zone}}|{{.Self}}"], "b|false\n|true\n"),
]


@pytest.mark.parametrize(("arguments", "text"), INSPECTED)
def test_inspect_with_a_template(cluster: Mesh, arguments: list[str], text: str) -> None:
    assert cluster.ok(*arguments) == text


def test_inspect_prints_whole_objects(cluster: Mesh) -> None:
    (found,) = json.loads(cluster.ok("service", "inspect", "api"))
    assert found["spec"]["task"]["process"]["command"] == ["python3", "-m", "http.server", "80"]
    assert found["spec"]["ports"] == [
        {"target": 80, "published": 8080, "protocol": "tcp", "mode": "ingress", "address": "", "constraints": []}
    ]
    assert found["spec"]["update"]["order"] == "stop-first"
    assert found["meta"]["version"] == 7
    result = cluster("service", "inspect", "nope")
    assert (result.code, result.out, result.err) == (3, "", 'error: no service "nope"\n')
