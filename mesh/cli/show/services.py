"""Services as rows, records, and at length."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from control.model import (
    BalancePolicy,
    ContainerSpec,
    NamePolicy,
    PortSpec,
    Resources,
    Service,
    ServiceSpec,
    Task,
    TaskSpec,
    UpdatePolicy,
)
from mesh.cli.show.names import ago, mode_name, named, runs
from mesh.cli.show.plain import record
from mesh.cli.show.pretty import Line, aligned
from mesh.cli.show.tasks import counts
from mesh.cli.text.duration import format_duration
from mesh.cli.text.port import format_port
from mesh.cli.text.size import format_size
from mesh.cli.text.table import short_id
from mesh.cli.text.template import Record

COLUMNS = {"ID": "ID", "Name": "NAME", "Mode": "MODE", "Replicas": "REPLICAS", "Runs": "RUNS", "Ports": "PORTS"}
MORE = {"Image": "IMAGE", "Labels": "LABELS"}


def service_rows(
    services: Sequence[Service], tasks: Mapping[str, Sequence[Task]], down: frozenset[str], *, no_trunc: bool
) -> list[Record]:
    """Rows of `sorted_services`; `tasks` by service id, `down` the ids of nodes that are away."""
    return [
        Record(
            ID=service.id if no_trunc else short_id(service.id),
            Name=service.spec.name,
            Mode=mode_name(service.spec),
            Replicas=replicas_text(service, tasks.get(service.id, ()), down),
            Runs=runs(service.spec.task, no_trunc=no_trunc),
            Ports=", ".join(format_port(port) for port in published(service) if port.mode == "ingress"),
            Image=service.spec.task.container.image if service.spec.task.container is not None else "",
            Labels=service.spec.labels,
        )
        for service in services
    ]


def sorted_services(services: Sequence[Service]) -> list[Service]:
    """By name."""
    return sorted(services, key=lambda service: service.spec.name)


def replicas_text(service: Service, tasks: Sequence[Task], down: frozenset[str]) -> str:
    """running/wanted, as Docker writes it."""
    running, wanted = counts(service, tasks, down)
    most = service.spec.task.placement.max_replicas_per_node
    return f"{running}/{wanted}" + (f" (max {most} per node)" if most else "")


def published(service: Service) -> tuple[PortSpec, ...]:
    """Its ports with the automatic ones filled in, or as asked for while they are not."""
    return service.ports or service.spec.ports


def service_records(
    services: Sequence[Service], tasks: Mapping[str, Sequence[Task]], down: frozenset[str]
) -> list[Record]:
    """Whole objects for JSON, with how many of their tasks run."""
    records = []
    for service in services:
        running, wanted = counts(service, tasks.get(service.id, ()), down)
        records.append(record(service, status=Record(running_tasks=running, desired_tasks=wanted)))
    return records


# --- at length ------------------------------------------------------------------------------------------------------


def pretty_service(service: Service, networks: Mapping[str, str], now_ms: int) -> str:
    """`service inspect --pretty`; `networks` are names by id."""
    spec = service.spec
    lines: list[Line] = [(0, "ID", service.id), (0, "Name", spec.name)]
    lines += _labels(spec.labels)
    lines += _mode(spec)
    lines += _update_status(service, now_ms)
    lines += _placement(spec.task)
    lines += _policy("Update", spec.update)
    lines += _policy("Rollback", spec.rollback)
    lines += _work(spec.task)
    lines += _resources(spec.task)
    if spec.task.networks:
        names = [named(networks, attachment.network_id) for attachment in spec.task.networks]
        lines.append((0, "Networks", " ".join(names)))
    lines.append((0, "Endpoint Mode", spec.endpoint_mode))
    lines += [(1, named(networks, vip.network_id), vip.address) for vip in service.vips]
    lines += _balance(spec)
    lines += _ports(published(service))
    return aligned(lines)


def _labels(labels: Mapping[str, str]) -> list[Line]:
    if not labels:
        return []
    return [(0, "Labels", ""), *((1, key, value) for key, value in sorted(labels.items()))]


def _mode(spec: ServiceSpec) -> list[Line]:
    lines: list[Line] = [(0, "Service Mode", mode_name(spec).capitalize())]
    if spec.mode.replicated is not None:
        lines.append((1, "Replicas", str(spec.mode.replicated.replicas)))
    return lines


def _update_status(service: Service, now_ms: int) -> list[Line]:
    status = service.update_status
    if not status.state:
        return []
    lines: list[Line] = [(0, "UpdateStatus", ""), (1, "State", status.state)]
    lines += [(1, "Started", ago(status.started_ms, now_ms))] if status.started_ms else []
    lines += [(1, "Completed", ago(status.completed_ms, now_ms))] if status.completed_ms else []
    lines += [(1, "Message", status.message)] if status.message else []
    return lines


def _placement(task: TaskSpec) -> list[Line]:
    placement = task.placement
    lines: list[Line] = []
    lines += [(1, "Constraints", ", ".join(placement.constraints))] if placement.constraints else []
    lines += [(1, "Preferences", ", ".join(placement.preferences))] if placement.preferences else []
    if placement.max_replicas_per_node:
        lines.append((1, "Max Replicas Per Node", str(placement.max_replicas_per_node)))
    return [(0, "Placement", ""), *lines] if lines else []


def _policy(name: str, policy: UpdatePolicy) -> list[Line]:
    return [
        (0, f"{name}Config", ""),
        (1, "Parallelism", str(policy.parallelism) if policy.parallelism else "all at once"),
        *([(1, "Delay", format_duration(policy.delay_s))] if policy.delay_s else []),
        (1, "On failure", policy.failure_action),
        (1, "Monitoring Period", format_duration(policy.monitor_s)),
        (1, "Max failure ratio", f"{policy.max_failure_ratio:g}"),
        (1, f"{name} order", policy.order),
    ]


def _work(task: TaskSpec) -> list[Line]:
    lines: list[Line] = []
    if task.process is not None:
        process = task.process
        lines = [(0, "ProcessSpec", ""), (1, "Command", " ".join(process.command))]
        lines += [(1, "Root file system", process.rootfs)] if process.rootfs else []
        env, workdir, user, hostname = process.env, process.workdir, process.user, process.hostname
    elif task.container is not None:
        container = task.container
        lines = [(0, "ContainerSpec", ""), (1, "Image", container.image)]
        lines += [(1, "Command", " ".join(container.command))] if container.command else []
        lines += [(1, "Args", " ".join(container.args))] if container.args else []
        lines += _surroundings(container)
        env, workdir, user, hostname = container.env, container.workdir, container.user, container.hostname
    else:
        return []
    lines += [(1, "Env", " ".join(f"{key}={value}" for key, value in env.items()))] if env else []
    lines += [(1, "Dir", workdir)] if workdir else []
    lines += [(1, "User", user)] if user else []
    lines += [(1, "Hostname", hostname)] if hostname else []
    return lines


def _surroundings(container: ContainerSpec) -> list[Line]:
    """What only containers have, where it differs from what every container has."""
    mounts = [
        f"{m.kind} {m.source or '-'} at {m.target}" + (", read only" if m.read_only else "") for m in container.mounts
    ]
    said = {
        "Mounts": "; ".join(mounts),
        "Groups": " ".join(container.groups),
        "Hosts": "; ".join(container.hosts),
        "Limits": " ".join(f"{limit.name}={limit.soft}:{limit.hard}" for limit in container.ulimits),
        "Sysctls": " ".join(f"{name}={value}" for name, value in container.sysctls.items()),
        "Capabilities added": " ".join(container.cap_add),
        "Capabilities dropped": " ".join(container.cap_drop),
        "Root file system": "read only" if container.read_only else "",
        "Init": "yes" if container.init else "",
        "Terminal": "yes" if container.tty else "",
        "Log driver": container.log_driver,
        "Log options": " ".join(f"{name}={value}" for name, value in container.log_options.items()),
        "Pulled": container.pull if container.pull != "always" else "",
    }
    return [(1, name, text) for name, text in said.items() if text]


def _resources(task: TaskSpec) -> list[Line]:
    lines = [
        *_amount("Reservations", task.resources.reservations),
        *_amount("Limits", task.resources.limits),
    ]
    return [(0, "Resources", ""), *lines] if lines else []


def _amount(name: str, amount: Resources) -> list[Line]:
    lines: list[Line] = []
    lines += [(2, "CPU", f"{amount.cpus:g}")] if amount.cpus else []
    lines += [(2, "Memory", format_size(amount.memory_bytes))] if amount.memory_bytes else []
    lines += [(2, "Processes", str(amount.pids))] if amount.pids else []
    return [(1, name, ""), *lines] if lines else []


def _balance(spec: ServiceSpec) -> list[Line]:
    """How connections and names are spread, where it differs from what everybody has."""
    policy, names = spec.balance, spec.names
    lines: list[Line] = []
    if policy != BalancePolicy():
        lines += [(0, "Balancing", ""), (1, "Scheduler", policy.scheduler)]
        lines += [(1, "Affinity", format_duration(policy.affinity_s))] if policy.affinity_s else []
        lines.append((1, "Idle time-out", format_duration(policy.idle_s)))
    if names != NamePolicy():
        lines += [(0, "DNS", ""), (1, "TTL", f"{names.ttl_s}s")]
        lines += [(1, "Local first", "true")] if names.local_first else []
    if spec.named_ports:
        named = " ".join(f"{port.name}={port.port}/{port.protocol}" for port in spec.named_ports)
        lines.append((0, "Named ports", named))
    return lines


def _ports(ports: Sequence[PortSpec]) -> list[Line]:
    if not ports:
        return []
    return [(0, "Ports", ""), *((1, p.mode, format_port(p)) for p in ports)]
