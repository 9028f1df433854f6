"""create, update, scale, rollback: what is sent for what is typed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import grpc
import pytest
from msgspec.structs import replace

from control.model import (
    ContainerSpec,
    GlobalMode,
    NetworkAttachment,
    Placement,
    PortSpec,
    ProcessSpec,
    ReplicatedMode,
    ResourceRequirements,
    Resources,
    RestartPolicy,
    Service,
    ServiceMode,
    ServiceSpec,
    TaskSpec,
    UpdatePolicy,
    UpdateStatus,
    VirtualAddress,
)
from tests.mesh.cli.fake import Mesh, make_network, make_service


def created(mesh: Mesh, *arguments: str) -> ServiceSpec:
    assert mesh.ok("service", "create", "-d", *arguments) == "newservice\n"
    spec = mesh.daemon.specs("CreateService")[-1]
    assert isinstance(spec, ServiceSpec)
    return spec


def updated(mesh: Mesh, *arguments: str) -> ServiceSpec:
    assert mesh.ok("service", "update", "-d", *arguments, "api") == "api\n"
    spec = mesh.daemon.specs("UpdateService")[-1]
    assert isinstance(spec, ServiceSpec)
    return spec


def test_the_least_service(mesh: Mesh) -> None:
    assert created(mesh, "--name", "api", "--", "sleep", "1", "--", "-x") == ServiceSpec(
        name="api", task=TaskSpec(process=ProcessSpec(command=("sleep", "1", "--", "-x")))
    )
    assert created(mesh, "--name", "api", "sh", "-c", "exit") == ServiceSpec(
        name="api", task=TaskSpec(process=ProcessSpec(command=("sh", "-c", "exit")))
    )


def test_every_flag_of_create(mesh: Mesh, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TAKEN", "over")
    (tmp_path / "e1").write_text("FILE=1\nBOTH=file\n")
    spec = created(
        mesh, "--name", "api", "--replicas", "4", "--network", "web", "--network", "name=back,alias=db,alias=store",
        "-p", "8080:80", "--publish", "published=53,target=53,protocol=udp,mode=host", "--endpoint-mode", "dnsrr",
        "--constraint", "node.role==worker", "--constraint", "node.labels.zone!=b",
        "--placement-pref", "spread=node.labels.zone", "--replicas-max-per-node", "2",
        "-e", "A=1", "--env", "TAKEN", "-e", "BOTH=flag", "--env-file", str(tmp_path / "e1"),
        "-w", "/srv", "-u", "www:www", "--hostname", "web", "--rootfs", "/roots/web", "-l", "tier=front",
        "--label", "x",
        "--restart-condition", "on-failure", "--restart-delay", "1s", "--restart-max-attempts", "3",
        "--restart-window", "1m30s", "--update-parallelism", "2", "--update-delay", "500ms",
        "--update-failure-action", "rollback", "--update-max-failure-ratio", "0.25", "--update-monitor", "2s",
        "--update-order", "start-first", "--rollback-parallelism", "0", "--rollback-delay", "0",
        "--rollback-failure-action", "continue", "--rollback-max-failure-ratio", "1", "--rollback-monitor", "1s",
        "--rollback-order", "start-first", "--limit-cpu", "1.5", "--limit-memory", "64M", "--limit-pids", "100",
        "--reserve-cpu", "0.5", "--reserve-memory", "32M", "--stop-signal", "int", "--stop-grace-period", "3s",
        "-q", "--", "python3", "-m", "http.server",
    )  # fmt: skip
    assert spec == ServiceSpec(
        name="api",
        labels={"tier": "front", "x": ""},
        mode=ServiceMode(replicated=ReplicatedMode(replicas=4)),
        task=TaskSpec(
            process=ProcessSpec(
                command=("python3", "-m", "http.server"),
                env={"FILE": "1", "BOTH": "flag", "A": "1", "TAKEN": "over"},
                workdir="/srv",
                user="www:www",
                hostname="web",
                rootfs="/roots/web",
            ),
            resources=ResourceRequirements(
                limits=Resources(cpus=1.5, memory_bytes=64 << 20, pids=100),
                reservations=Resources(cpus=0.5, memory_bytes=32 << 20),
            ),
            restart=RestartPolicy(condition="on-failure", delay_s=1.0, max_attempts=3, window_s=90.0),
            placement=Placement(
                constraints=("node.role==worker", "node.labels.zone!=b"),
                preferences=("spread=node.labels.zone",),
                max_replicas_per_node=2,
            ),
            networks=(
                NetworkAttachment(network_id="web"),
                NetworkAttachment(network_id="back", aliases=("db", "store")),
            ),
            stop_signal="SIGINT",
            stop_grace_s=3.0,
        ),
        endpoint_mode="dnsrr",
        ports=(PortSpec(target=80, published=8080), PortSpec(target=53, published=53, protocol="udp", mode="host")),
        update=UpdatePolicy(
            parallelism=2, delay_s=0.5, failure_action="rollback", monitor_s=2.0, max_failure_ratio=0.25,
            order="start-first",
        ),
        rollback=UpdatePolicy(
            parallelism=0, delay_s=0.0, failure_action="continue", monitor_s=1.0, max_failure_ratio=1.0,
            order="start-first",
        ),
    )  # fmt: skip


def test_containers_and_global_services(mesh: Mesh) -> None:
    spec = created(
        mesh, "--name", "c", "--image", "nginx:1", "-e", "A=1", "-w", "/w", "--mode", "global", "--", "-g", "x"
    )
    assert spec.task.container == ContainerSpec(image="nginx:1", args=("-g", "x"), env={"A": "1"}, workdir="/w")
    assert spec.task.process is None
    assert spec.mode == ServiceMode(global_=GlobalMode())


def test_warnings_go_to_standard_error(mesh: Mesh) -> None:
    mesh.daemon.warnings = ('service "a" is on no network',)
    result = mesh("service", "create", "-d", "--name", "a", "true")
    assert (result.code, result.out) == (0, "newservice\n")
    assert result.err == 'warning: service "a" is on no network\n'


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--name", "a"], "nothing to run: write the command at the end, after --"),
        (
            ["--name", "a", "--mode", "global", "--replicas", "2", "true"],
            "--replicas is for --mode replicated: a global service has one task on every node",
        ),
        (
            ["--name", "a", "--image", "x", "--rootfs", "/r"],
            "--rootfs is for tasks of another kind: this service runs containers",
        ),
        (["--name", "a", "-l", "=x", "true"], '"=x" is not a label: such as zone=a'),
        (["true"], "Missing option '--name'\nsee \"mesh service create --help\""),
        (
            ["--name", "a", "--replicas", "-3", "true"],
            "Invalid value for '--replicas': -3 is not in the range x>=0\nsee \"mesh service create --help\"",
        ),
        (
            ["--name", "a", "--stop-signal", "bye", "true"],
            (
                "Invalid value for '--stop-signal': \"bye\" is not a signal: such as SIGTERM\n"
                'see "mesh service create --help"'
            ),
        ),
    ],
)
def test_create_refuses_nonsense_before_asking(mesh: Mesh, arguments: list[str], sentence: str) -> None:
    result = mesh("service", "create", "-d", *arguments)
    assert (result.code, result.out, result.err) == (2, "", f"error: {sentence}\n")
    assert mesh.daemon.calls == []


def test_environment_files_that_cannot_be_used(mesh: Mesh, tmp_path: Path) -> None:
    bad = tmp_path / "bad"
    for content, sentence in (
        (b"=1", f'{bad}, line 1: "=1" is not an environment variable: such as NAME=value'),
        (b"\xff", f"{bad} is not UTF-8 text"),
        (b"#" * ((1 << 20) + 1), f"{bad} is larger than 1048576 bytes"),
    ):
        bad.write_bytes(content)
        result = mesh("service", "create", "-d", "--name", "a", "--env-file", str(bad), "true")
        assert (result.code, result.err) == (2, f"error: {sentence}\n")


# --- update ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def api(mesh: Mesh) -> Mesh:
    web, back = make_network("web", 1), make_network("back", 2)
    service = make_service("api", 3)
    task = replace(
        service.spec.task,
        process=ProcessSpec(command=("run",), env={"A": "1", "B": "2"}),
        networks=(NetworkAttachment(network_id=web.id, aliases=("x",)),),
        placement=Placement(constraints=("node.labels.zone == a",), preferences=("spread=node.labels.rack",)),
    )
    ports = (PortSpec(target=80, published=8080), PortSpec(target=53, published=53, protocol="udp"))
    spec = replace(service.spec, labels={"keep": "1", "drop": "2"}, task=task, ports=ports)
    mesh.daemon.add(web, back, replace(service, spec=spec))
    return mesh


def spec_of(mesh: Mesh) -> ServiceSpec:
    (service,) = (obj for obj in mesh.daemon.objects.values() if isinstance(obj, Service))
    return service.spec


def test_update_changes_what_it_is_told_and_nothing_else(api: Mesh) -> None:
    before = spec_of(api)
    assert updated(api) == before
    (request,) = api.daemon.requests("UpdateService")
    assert (request.reference, request.version) == (make_service("api").id, 7)
    assert updated(api, "--env-add", "B=3", "--env-add", "C=4", "--env-rm", "A").task == replace(
        before.task, process=ProcessSpec(command=("run",), env={"B": "3", "C": "4"})
    )


UPDATES: list[tuple[list[str], Any, Any]] = [
    (["--label-add", "new=3", "--label-rm", "drop"], lambda s: s.labels, {"keep": "1", "new": "3"}),
    (["--replicas", "0"], lambda s: s.mode.replicated.replicas, 0),
    (["--args", "sh -c 'echo a b'"], lambda s: s.task.process.command, ("sh", "-c", "echo a b")),
    (["--force"], lambda s: s.task.force_update, 1),
    (["--limit-memory", "1G"], lambda s: s.task.resources.limits.memory_bytes, 1 << 30),
    (["--hostname", "h"], lambda s: s.task.process.hostname, "h"),
    (["--update-order", "start-first"], lambda s: s.update.order, "start-first"),
    (
        ["--constraint-add", "node.role==worker", "--constraint-rm", "node.labels.zone==a"],
        lambda s: s.task.placement.constraints,
        ("node.role==worker",),
    ),
    (["--constraint-add", "node.labels.zone==a"], lambda s: s.task.placement.constraints, ("node.labels.zone == a",)),
    (["--placement-pref-rm", "spread=node.labels.rack"], lambda s: s.task.placement.preferences, ()),
    (
        ["--network-add", "name=back,alias=y"],
        lambda s: [(n.network_id[:7], n.aliases) for n in s.task.networks],
        [("netwebx", ("x",)), ("netback", ("y",))],
    ),
    (
        ["--network-add", "web"],
        lambda s: [(n.network_id[:7], n.aliases) for n in s.task.networks],
        [("netwebx", ())],
    ),
    (["--network-rm", "web"], lambda s: s.task.networks, ()),
    (["--publish-rm", "80"], lambda s: [p.target for p in s.ports], [53]),
    (["--publish-rm", "8080:80", "--publish-rm", "53/udp"], lambda s: s.ports, ()),
    (
        ["--publish-add", "8080:8000"],
        lambda s: [(p.published, p.target) for p in s.ports],
        [(53, 53), (8080, 8000)],
    ),
]


@pytest.mark.parametrize(("flags", "look", "expected"), UPDATES, ids=[" ".join(u[0]) for u in UPDATES])
def test_updates(api: Mesh, flags: list[str], look: Any, expected: Any) -> None:
    assert look(updated(api, *flags)) == expected


@pytest.mark.parametrize(
    ("flags", "code", "sentence"),
    [
        (["--publish-rm", "81"], 2, "port 81 is not published"),
        (["--network-rm", "back"], 2, "it is not on network back"),
        (["--network-add", "nope"], 3, 'no network "nope"'),
        (["--image", "x"], 2, "--image is for tasks of another kind: this service runs processes"),
        (["--args", "'"], 2, "cannot read the command ': No closing quotation"),
    ],
)
def test_updates_that_make_no_sense(api: Mesh, flags: list[str], code: int, sentence: str) -> None:
    result = api("service", "update", "-d", *flags, "api")
    assert (result.code, result.out, result.err) == (code, "", f"error: {sentence}\n")
    assert api.daemon.requests("UpdateService") == []


def test_an_update_that_was_overtaken_is_made_again_on_what_is_now_there(api: Mesh) -> None:
    api.daemon.refuse_once["UpdateService"] = (grpc.StatusCode.ABORTED, "changed meanwhile")

    def somebody_else(method: str) -> None:
        if method == "UpdateService" and not api.daemon.requests("UpdateService"):
            service = next(obj for obj in api.daemon.objects.values() if isinstance(obj, Service))
            theirs = replace(service, spec=replace(service.spec, labels={"theirs": "1"}))
            api.daemon.add(replace(theirs, meta=replace(service.meta, version=8)))

    api.daemon.before = somebody_else
    assert updated(api, "--label-add", "mine=1").labels == {"theirs": "1", "mine": "1"}
    assert [r.version for r in api.daemon.requests("UpdateService")] == [7, 8]


def test_scale(api: Mesh) -> None:
    api.daemon.add(make_service("worker", 1))
    assert api.ok("service", "scale", "-d", "api=5", "worker=0") == "api scaled to 5\nworker scaled to 0\n"
    assert [s.mode.replicated.replicas for s in api.daemon.specs("UpdateService")] == [5, 0]
    for bad in ("api", "api=", "api=x", "=3", "api=-1"):
        result = api("service", "scale", "-d", bad)
        assert (result.code, result.err) == (2, f'error: "{bad}" must be SERVICE=REPLICAS, such as api=5\n')


def test_a_global_service_cannot_be_scaled(mesh: Mesh) -> None:
    agent = make_service("agent")
    mesh.daemon.add(replace(agent, spec=replace(agent.spec, mode=ServiceMode(global_=GlobalMode()))))
    result = mesh("service", "scale", "-d", "agent=2")
    assert (result.code, result.err) == (
        2,
        'error: service "agent" is global: it has one task on every node, and cannot be scaled\n',
    )


def test_rollback(api: Mesh) -> None:
    assert api.ok("service", "rollback", "-d", "api") == "api\n"
    api.daemon.refuse["RollbackService"] = (
        grpc.StatusCode.FAILED_PRECONDITION,
        'service "api" has no previous version',
    )
    result = api("service", "rollback", "-d", "api")
    assert (result.code, result.err) == (1, 'error: service "api" has no previous version\n')


def test_inspect_pretty(api: Mesh) -> None:
    service = next(obj for obj in api.daemon.objects.values() if isinstance(obj, Service))
    work = replace(service.spec.task.process or ProcessSpec(command=()), workdir="/srv", user="www")
    task = replace(
        service.spec.task,
        process=work,
        resources=ResourceRequirements(limits=Resources(cpus=1.5, memory_bytes=64 << 20)),
    )
    api.daemon.add(
        replace(
            service,
            spec=replace(service.spec, task=task),
            vips=(VirtualAddress(network_id=task.networks[0].network_id, address="10.128.16.2"),),
            update_status=UpdateStatus(state="paused", message="update paused", started_ms=1_790_000_000_000 - 60_000),
        )
    )
    assert api.ok("service", "inspect", "--pretty", "api") == (
        "ID:             svcapixxxxxxxxxxxxxxxxxxxx\n"
        "Name:           api\n"
        "Labels:\n"
        " drop:              2\n"
        " keep:              1\n"
        "Service Mode:   Replicated\n"
        " Replicas:          3\n"
        "UpdateStatus:\n"
        " State:             paused\n"
        " Started:           About a minute ago\n"
        " Message:           update paused\n"
        "Placement:\n"
        " Constraints:       node.labels.zone == a\n"
        " Preferences:       spread=node.labels.rack\n"
        "UpdateConfig:\n"
        " Parallelism:       1\n"
        " On failure:        pause\n"
        " Monitoring Period: 5s\n"
        " Max failure ratio: 0\n"
        " Update order:      stop-first\n"
        "RollbackConfig:\n"
        " Parallelism:       1\n"
        " On failure:        pause\n"
        " Monitoring Period: 5s\n"
        " Max failure ratio: 0\n"
        " Rollback order:    stop-first\n"
        "ProcessSpec:\n"
        " Command:           run\n"
        " Env:               A=1 B=2\n"
        " Dir:               /srv\n"
        " User:              www\n"
        "Resources:\n"
        " Limits:\n"
        "  CPU:    1.5\n"
        "  Memory: 64MiB\n"
        "Networks:       web\n"
        "Endpoint Mode:  vip\n"
        " web:               10.128.16.2\n"
        "Ports:\n"
        " ingress:           *:8080->80/tcp\n"
        " ingress:           *:53->53/udp\n"
    )
