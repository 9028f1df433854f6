"""From the flags of `service create` and `service update` to a spec. Pure.

Flags that simply set one field are in the table `FIELDS`; what has more to it (mode, command, lists) is below. A flag
that was not given is None or empty.
"""

from __future__ import annotations

import shlex
import signal
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar, cast

import msgspec
from msgspec.structs import replace

from control.model import (
    ContainerSpec,
    GlobalMode,
    HealthCheck,
    NamedPort,
    NetworkAttachment,
    PortSpec,
    ProcessSpec,
    ReplicatedMode,
    ServiceMode,
    ServiceSpec,
    TaskSpec,
)
from mesh.cli.container import with_container
from mesh.cli.text import TextError
from mesh.cli.text.pairs import Attachment, parse_env, parse_labels
from mesh.cli.text.port import parse_publish

Flags = Mapping[str, Any]
S = TypeVar("S", bound=msgspec.Struct)

# Flag (with underscores) -> the field it sets; "work" is the process or container of the task.
FIELDS: dict[str, str] = {
    "endpoint_mode": "endpoint_mode",
    "scheduler": "balance.scheduler",
    "affinity": "balance.affinity_s",
    "idle_timeout": "balance.idle_s",
    "dns_ttl": "names.ttl_s",
    "dns_local_first": "names.local_first",
    "hostname": "task.work.hostname",
    "user": "task.work.user",
    "workdir": "task.work.workdir",
    "rootfs": "task.process.rootfs",
    "image": "task.container.image",
    "limit_cpu": "task.resources.limits.cpus",
    "limit_memory": "task.resources.limits.memory_bytes",
    "limit_pids": "task.resources.limits.pids",
    "reserve_cpu": "task.resources.reservations.cpus",
    "reserve_memory": "task.resources.reservations.memory_bytes",
    "replicas_max_per_node": "task.placement.max_replicas_per_node",
    "restart_condition": "task.restart.condition",
    "restart_delay": "task.restart.delay_s",
    "restart_max_attempts": "task.restart.max_attempts",
    "restart_window": "task.restart.window_s",
    "drain_period": "task.drain_s",
    "stop_grace_period": "task.stop_grace_s",
    "stop_signal": "task.stop_signal",
    **{
        f"{policy}_{flag}": f"{policy}.{name}"
        for policy in ("update", "rollback")
        for flag, name in (
            ("parallelism", "parallelism"),
            ("delay", "delay_s"),
            ("failure_action", "failure_action"),
            ("monitor", "monitor_s"),
            ("max_failure_ratio", "max_failure_ratio"),
            ("order", "order"),
        )
    },
}


def parse_signal(text: str) -> str:
    """SIGTERM from SIGTERM, TERM, term or 15. Raises TextError."""
    names = {s.value: s.name for s in signal.Signals}
    name = names.get(int(text)) if text.isascii() and text.isdigit() else f"SIG{text.upper().removeprefix('SIG')}"
    if name not in signal.Signals.__members__:
        raise TextError(f'"{text}" is not a signal: such as SIGTERM')
    return cast(str, name)


def new_service(flags: Flags, command: Sequence[str], environment: Mapping[str, str]) -> ServiceSpec:
    """The spec of a new service; `environment` is the caller's own. Raises TextError."""
    image = flags.get("image")
    env = {**flags["env_files"], **parse_env(flags["env"], environment)}
    if image is None:
        if not command:
            raise TextError("nothing to run: write the command at the end, after --")
        task = TaskSpec(process=ProcessSpec(command=tuple(command), env=env))
    else:
        task = TaskSpec(container=ContainerSpec(image=image, args=tuple(command), env=env))
    task = replace(
        task,
        networks=tuple(attached(a) for a in flags["network"]),
        placement=replace(
            task.placement,
            constraints=tuple(flags["constraint"]),
            preferences=tuple(flags["placement_pref"]),
        ),
    )
    spec = ServiceSpec(
        name=flags["name"],
        labels=parse_labels(flags["label"]),
        mode=_mode(flags["mode"], flags.get("replicas")),
        task=task,
        ports=tuple(port for ports in flags["publish"] for port in ports),
        named_ports=tuple(flags["port"]),
    )
    return with_fields(spec, flags)


_HEALTH = ("health_cmd", "health_tcp", "health_http")


def with_health(check: HealthCheck | None, flags: Flags) -> HealthCheck | None:
    """A health check with what the flags change. Raises TextError."""
    kinds = [flag for flag in _HEALTH if flags.get(flag) is not None]
    if flags.get("no_healthcheck"):
        if kinds:
            raise TextError(f"--no-healthcheck and --{kinds[0].replace('_', '-')} contradict each other")
        return None
    if len(kinds) > 1:
        raise TextError("a health check is one of --health-cmd, --health-tcp and --health-http")
    if kinds:
        old = check or HealthCheck()
        command = ("/bin/sh", "-c", flags["health_cmd"]) if flags.get("health_cmd") else ()
        check = replace(old, command=command, tcp=flags.get("health_tcp") or 0, http=flags.get("health_http") or "")
    for flag, name in _HEALTH_TIMES.items():
        if flags.get(flag) is not None:
            if check is None:
                raise TextError(f"--{flag.replace('_', '-')} needs a health check: --health-http, for instance")
            check = replace(check, **{name: flags[flag]})
    return check


_HEALTH_TIMES = {
    "health_interval": "interval_s",
    "health_timeout": "timeout_s",
    "health_retries": "retries",
    "health_start_period": "start_period_s",
}


def attached(attachment: Attachment) -> NetworkAttachment:
    """As the model has it; the name is resolved by the manager."""
    return NetworkAttachment(network_id=attachment.network, aliases=attachment.aliases)


def _mode(mode: str, replicas: int | None) -> ServiceMode:
    if mode == "global":
        if replicas is not None:
            raise TextError("--replicas is for --mode replicated: a global service has one task on every node")
        return ServiceMode(global_=GlobalMode())
    return ServiceMode(replicated=ReplicatedMode(replicas=1 if replicas is None else replicas))


def with_fields(spec: ServiceSpec, flags: Flags) -> ServiceSpec:
    """The spec with every field that a given flag of `FIELDS` sets. Raises TextError."""
    for flag, path in FIELDS.items():
        if flags.get(flag) is not None:
            spec = _with(spec, path.split("."), flags[flag], "--" + flag.replace("_", "-"))
    spec = with_container(spec, flags)
    return replace(spec, task=replace(spec.task, health=with_health(spec.task.health, flags)))


def _with(value: S, path: Sequence[str], new: object, flag: str) -> S:
    name, *rest = path
    if name == "work":
        name = "process" if getattr(value, "process", None) is not None else "container"
    if not rest:
        return replace(value, **{name: new})
    inner = getattr(value, name)
    if inner is None:
        raise TextError(f"{flag} is for tasks of another kind: this service runs {_other_kind(name)}")
    return replace(value, **{name: _with(inner, rest, new, flag)})


def _other_kind(name: str) -> str:
    return "containers" if name == "process" else "processes"


# --- update ---------------------------------------------------------------------------------------------------------


def changed_service(
    spec: ServiceSpec,
    flags: Flags,
    environment: Mapping[str, str],
    network_id: Callable[[str], str],
) -> ServiceSpec:
    """A service's spec with what the flags change; `network_id` resolves names of networks. Raises TextError."""
    spec = with_fields(spec, flags)
    spec = _with_replicas(spec, flags.get("replicas"))
    spec = replace(
        spec,
        labels=_merged(spec.labels, parse_labels(flags["label_add"]), flags["label_rm"]),
        ports=_ports(spec.ports, [p for ports in flags["publish_add"] for p in ports], flags["publish_rm"]),
        named_ports=_named_ports(spec.named_ports, flags["port_add"], flags["port_rm"]),
        task=_changed_task(spec.task, flags, environment, network_id),
    )
    if flags["force"]:
        spec = replace(spec, task=replace(spec.task, force_update=spec.task.force_update + 1))
    return spec


def _with_replicas(spec: ServiceSpec, replicas: int | None) -> ServiceSpec:
    if replicas is None:
        return spec
    if spec.mode.replicated is None:
        raise TextError(f'service "{spec.name}" is global: it has one task on every node, and cannot be scaled')
    return replace(spec, mode=ServiceMode(replicated=ReplicatedMode(replicas=replicas)))


def scaled_service(spec: ServiceSpec, replicas: int) -> ServiceSpec:
    """The spec with another number of replicas. Raises TextError."""
    return _with_replicas(spec, replicas)


def _changed_task(
    task: TaskSpec, flags: Flags, environment: Mapping[str, str], network_id: Callable[[str], str]
) -> TaskSpec:
    placement = task.placement
    task = replace(
        task,
        networks=_networks(task.networks, flags["network_add"], flags["network_rm"], network_id),
        placement=replace(
            placement,
            constraints=_list(placement.constraints, flags["constraint_add"], flags["constraint_rm"]),
            preferences=_list(placement.preferences, flags["placement_pref_add"], flags["placement_pref_rm"]),
        ),
    )
    added, removed = parse_env(flags["env_add"], environment), flags["env_rm"]
    words = _words(flags["args"])
    if task.process is not None:
        env = _merged(task.process.env, added, removed)
        task = replace(task, process=replace(task.process, env=env, command=words or task.process.command))
    elif task.container is not None:
        args = task.container.args if words is None else words
        env = _merged(task.container.env, added, removed)
        task = replace(task, container=replace(task.container, env=env, args=args))
    return task


def _words(text: str | None) -> tuple[str, ...] | None:
    """A command line as words, as a shell splits them."""
    if text is None:
        return None
    try:
        return tuple(shlex.split(text))
    except ValueError as error:
        raise TextError(f"cannot read the command {text}: {error}") from error


def _merged(old: Mapping[str, str], added: Mapping[str, str], removed: Sequence[str]) -> dict[str, str]:
    return {key: value for key, value in {**old, **added}.items() if key not in removed or key in added}


def _list(old: Sequence[str], added: Sequence[str], removed: Sequence[str]) -> tuple[str, ...]:
    """Without `removed`, then `added`, no value twice; blanks do not tell values apart."""
    gone = {_squeezed(value) for value in removed}
    kept = [value for value in old if _squeezed(value) not in gone]
    have = {_squeezed(value) for value in kept}
    return (*kept, *(value for value in dict.fromkeys(added) if _squeezed(value) not in have))


def _squeezed(text: str) -> str:
    return "".join(text.split())


def _networks(
    old: Sequence[NetworkAttachment],
    added: Sequence[Attachment],
    removed: Sequence[str],
    network_id: Callable[[str], str],
) -> tuple[NetworkAttachment, ...]:
    if not added and not removed:
        return tuple(old)
    gone = {network_id(name) for name in removed}
    missing = gone - {a.network_id for a in old}
    if missing:
        names = [name for name in removed if network_id(name) in missing]
        raise TextError(f"it is not on network {', '.join(names)}")
    new = [NetworkAttachment(network_id=network_id(a.network), aliases=a.aliases) for a in added]
    gone |= {a.network_id for a in new}  # added again: with the aliases given now
    return (*(a for a in old if a.network_id not in gone), *new)


def _ports(old: Sequence[PortSpec], added: Sequence[PortSpec], removed: Sequence[str]) -> tuple[PortSpec, ...]:
    """`removed` names target ports, as in Docker: 80, 80/udp, or 8080:80."""
    kept = list(old)
    for text in removed:
        found = [port for port in kept for wanted in parse_publish(text) if _names(wanted, port)]
        if not found:
            raise TextError(f"port {text} is not published")
        kept = [port for port in kept if port not in found]
    taken = {(port.published, port.protocol) for port in added if port.published}
    kept = [port for port in kept if (port.published, port.protocol) not in taken and port not in added]
    return (*kept, *added)


def _named_ports(old: Sequence[NamedPort], added: Sequence[NamedPort], removed: Sequence[str]) -> tuple[NamedPort, ...]:
    missing = [name for name in removed if all(port.name != name for port in old)]
    if missing:
        raise TextError(f"it has no port named {', '.join(missing)}")
    replaced = {(port.name, port.protocol) for port in added}
    kept = [port for port in old if port.name not in removed and (port.name, port.protocol) not in replaced]
    return (*kept, *added)


def _names(wanted: PortSpec, port: PortSpec) -> bool:
    return wanted.target == port.target and wanted.protocol == port.protocol and wanted.published in (0, port.published)
