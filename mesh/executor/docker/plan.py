"""What the engine is asked for a task: from a launch to the body of the call that creates its container. Pure.

The body is that of `POST /containers/create` of the Engine API, version 1.40 and later.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from control.model import ContainerSpec, HealthCheck, Mount, RegistryAuth, Resources
from mesh.executor.docker import gate
from mesh.executor.protocol import Exit, Launch

# On every container of ours: which task it is, and of which daemon (an engine may serve several, in tests).
TASK_LABEL = "com.meshd.task"
OWNER_LABEL = "com.meshd.state-dir"
SERVICE_LABEL = "com.meshd.service"
DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_KILLED = 137
_NANO = 1_000_000_000


@dataclass(frozen=True, slots=True)
class Image:
    """What an engine knows of an image that it has."""

    id: str  # "sha256:…": of its configuration, so of this machine
    entrypoint: tuple[str, ...] = ()
    command: tuple[str, ...] = ()
    env: tuple[str, ...] = ()
    digests: tuple[str, ...] = ()  # "nginx@sha256:…": what the registry calls it
    health: HealthCheck | None = None  # its HEALTHCHECK


@dataclass(frozen=True, slots=True)
class State:
    """What an engine knows of a container of ours."""

    id: str
    running: bool
    pid: int
    exit_code: int
    oom_killed: bool
    error: str
    labels: Mapping[str, str]


def container_name(launch: Launch) -> str:
    """Its name in `docker ps`, the same each time it is asked: a second container of a task cannot be made."""
    return f"{launch.service_name}.{launch.slot}.{launch.task_id}"


def words(spec: ContainerSpec, image: Image) -> tuple[str, ...]:
    """The command line. A command given takes the place of the image's entry point and command, as with engines."""
    if spec.command:
        return (*spec.command, *spec.args)
    return (*image.entrypoint, *(spec.args or image.command))


def environment(launch: Launch, spec: ContainerSpec, image: Image) -> dict[str, str]:
    """All variables of the command."""
    own = dict(entry.partition("=")[::2] for entry in image.env)
    return {"PATH": DEFAULT_PATH, **own, "HOSTNAME": launch.hostname, **spec.env}


def search_path(launch: Launch, spec: ContainerSpec, image: Image) -> tuple[str, ...]:
    """The directories in which the command is looked for."""
    return tuple(part for part in environment(launch, spec, image)["PATH"].split(":") if part.startswith("/"))


def files(launch: Launch, spec: ContainerSpec) -> dict[str, str]:
    """The container's own files in /etc: they name the gateway, and no resolver of the engine stands between."""
    resolver = "".join(f"nameserver {address}\n" for address in launch.nameservers)
    if launch.search:
        resolver += f"search {' '.join(launch.search)}\noptions ndots:1\n"
    hosts = ("127.0.0.1 localhost", "::1 localhost ip6-localhost ip6-loopback", *spec.hosts)
    return {"resolv.conf": resolver, "hosts": "".join(f"{line}\n" for line in hosts)}


def body(launch: Launch, spec: ContainerSpec, image: Image, directory: str, owner: str) -> dict[str, Any]:
    """What creates the container; `directory` holds its files and its gate."""
    return {
        "Image": image.id,
        "Hostname": launch.hostname,
        "User": spec.user,
        "Env": [f"{name}={value}" for name, value in environment(launch, spec, image).items()],
        "Entrypoint": [gate.PROGRAM],
        "Cmd": list(words(spec, image)),
        "WorkingDir": spec.workdir,
        "Labels": {TASK_LABEL: launch.task_id, OWNER_LABEL: owner, SERVICE_LABEL: launch.service_name},
        "Tty": spec.tty,
        "OpenStdin": spec.tty,  # a shell on a terminal that nobody writes to must not end at once
        "StopSignal": launch.spec.stop_signal,
        "Healthcheck": {"Test": ["NONE"]},  # meshd probes its tasks itself
        "HostConfig": _host_config(launch, spec, directory),
    }


def auth_config(auth: RegistryAuth | None) -> dict[str, str] | None:
    """Who pulls, as the engine is told it."""
    if auth is None:
        return None
    if auth.identity_token:
        return {"identitytoken": auth.identity_token, "serveraddress": auth.registry}
    return {"username": auth.username, "password": auth.password, "serveraddress": auth.registry}


def _host_config(launch: Launch, spec: ContainerSpec, directory: str) -> dict[str, Any]:
    limits = launch.spec.resources.limits
    return {
        "NetworkMode": "none",
        "RestartPolicy": {"Name": "no"},
        "Binds": [*_own_binds(directory)],
        "Mounts": [_mount(mount) for mount in spec.mounts],
        "GroupAdd": list(spec.groups),
        "Ulimits": [{"Name": limit.name, "Soft": limit.soft, "Hard": limit.hard} for limit in spec.ulimits],
        "Sysctls": dict(spec.sysctls),
        "CapAdd": list(spec.cap_add),
        "CapDrop": list(spec.cap_drop),
        "ReadonlyRootfs": spec.read_only,
        "Init": spec.init,
        **({"LogConfig": {"Type": spec.log_driver, "Config": dict(spec.log_options)}} if spec.log_driver else {}),
        **_limits(limits),
    }


def _own_binds(directory: str) -> Sequence[str]:
    """With "z", a system with SELinux lets the container have them; elsewhere it means nothing."""
    return (
        f"{directory}/gate/gate:{gate.PROGRAM}:ro,z",
        f"{directory}/gate/door:{gate.DOOR}:z",
        f"{directory}/hosts:/etc/hosts:z",
        f"{directory}/resolv.conf:/etc/resolv.conf:z",
    )


def _mount(mount: Mount) -> dict[str, Any]:
    made: dict[str, Any] = {"Type": mount.kind, "Target": mount.target, "ReadOnly": mount.read_only}
    if mount.source:
        made["Source"] = mount.source
    if mount.size_bytes:
        made["TmpfsOptions"] = {"SizeBytes": mount.size_bytes}
    return made


def _limits(limits: Resources) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if limits.cpus:
        found["NanoCpus"] = int(limits.cpus * _NANO)
    if limits.memory_bytes:
        found["Memory"] = limits.memory_bytes
        found["MemorySwap"] = limits.memory_bytes  # else as much again on disk
    if limits.pids:
        found["PidsLimit"] = limits.pids
    return found


# --- what engines answer --------------------------------------------------------------------------------------------


def read_image(answer: Mapping[str, Any]) -> Image:
    """From `GET /images/{name}/json`."""
    config = answer.get("Config") or {}
    return Image(
        id=str(answer["Id"]),
        entrypoint=tuple(config.get("Entrypoint") or ()),
        command=tuple(config.get("Cmd") or ()),
        env=tuple(config.get("Env") or ()),
        digests=tuple(answer.get("RepoDigests") or ()),
        health=read_health(config.get("Healthcheck") or {}),
    )


def read_health(said: Mapping[str, Any]) -> HealthCheck | None:
    """An image's HEALTHCHECK; what it leaves out is as Docker has it."""
    kind, *words = said.get("Test") or [""]
    if kind not in ("CMD", "CMD-SHELL") or not words:
        return None  # none, or of a kind to come
    return HealthCheck(
        command=tuple(words) if kind == "CMD" else ("/bin/sh", "-c", words[0]),
        interval_s=(said.get("Interval") or 30 * _NANO) / _NANO,
        timeout_s=(said.get("Timeout") or 30 * _NANO) / _NANO,
        retries=said.get("Retries") or 3,
        start_period_s=(said.get("StartPeriod") or 0) / _NANO,
    )


def read_state(answer: Mapping[str, Any]) -> State:
    """From `GET /containers/{id}/json`."""
    state = answer["State"]
    return State(
        id=str(answer["Id"]),
        running=bool(state["Running"]),
        pid=int(state["Pid"]),
        exit_code=int(state["ExitCode"]),
        oom_killed=bool(state.get("OOMKilled")),
        error=str(state.get("Error") or ""),
        labels=answer.get("Config", {}).get("Labels") or {},
    )


def how_it_ended(state: State | None) -> Exit:
    """From what an engine says of a container that runs no more; None: it has no such container."""
    if state is None:
        return Exit(_KILLED, "its container was removed behind meshd's back")
    if state.oom_killed:
        return Exit(state.exit_code or _KILLED, "it was killed for want of memory")
    return Exit(state.exit_code, state.error)
