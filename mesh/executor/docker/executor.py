"""The executor "docker": a task is a container of this machine's engine, which outlives this daemon.

`<state_dir>/containers/<task id>/` holds a task's files: resolv.conf and hosts, its gate (`mesh.executor.docker.gate`),
`container.json` (the container's name, written before it is made), `launch.json` (id and process of the container that
stands at its gate; its presence says "prepared"), `started.json` (written before it is let through), `exit.json`. What
is there, and whether somebody stands at the gate, is the state: each call looks at it and does what is missing, so it
may be repeated after a crash of either side.

`prepare` makes and starts the container, whose process waits at the gate in a network namespace of its own; that is
given a name, `<netns_dir>/mesh-t-<task id>`, and the agent puts interfaces into it. `start` opens the gate. Signals and
waiting need no engine: both go by pidfd; only how a container ended is the engine's to say.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import shutil
import signal
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from control.model import ContainerSpec, HealthCheck, RegistryAuth
from control.registry import is_pinned
from mesh.executor import namespaces, netns, records
from mesh.executor.docker import gate, plan
from mesh.executor.docker.engine import Engine, EngineAway, EngineRefused
from mesh.executor.docker.lookup import find_program
from mesh.executor.docker.plan import Image, State
from mesh.executor.pidfd import ended, ends_within, send, signal_number
from mesh.executor.protocol import NEVER, Adopted, ExecutorError, Exit, Launch, Sandbox

log = logging.getLogger(__name__)

# A container that was started stands at its gate within this time, or not at all.
GATE_TIMEOUT_S = 15.0
# After SIGKILL the kernel needs a moment to take the whole PID namespace down.
KILL_TIMEOUT_S = 10.0
# The engine hears from the kernel, through two processes of its own, that a container has ended; under load it is slow.
EXIT_TIMEOUT_S = 30.0
POLL_S = 0.02
# An image is asked for anew after this time; replicas that start together ask its registry once.
PULL_MEMORY_S = 30.0
IMAGES_MAX = 256  # whose pulls are remembered
AWAY = Exit(137, "it has ended, and no Docker Engine answers that could say how")
RESTARTED = Exit(137, "its container was restarted behind meshd's back")


@dataclass(slots=True)
class _Pull:
    """What is known of an image's registry."""

    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    asked_s: float | None = None  # by the loop's clock


class DockerExecutor:
    """See the module and `mesh.executor.protocol.Executor`."""

    name = "docker"

    def __init__(self, state_dir: Path, engine: Engine, netns_dir: str = "/run/netns", machine: str = "") -> None:
        self.engine = engine
        self._containers = state_dir / "containers"
        self._owner = str(state_dir)
        self._netns_dir = netns_dir
        self._machine = machine or os.uname().machine
        self._images: dict[tuple[str, RegistryAuth | None], _Pull] = {}  # who may pull it for one may not for another

    def has(self, task_id: str) -> bool:
        """Whether a task is, or was until it was removed, a container."""
        return (self._containers / task_id).is_dir()

    async def adopt(self) -> list[Adopted]:
        """All prepared tasks. What a crash left half done is removed, and containers of ours that are no task's."""
        names = sorted(os.listdir(self._containers)) if self._containers.is_dir() else []
        if not names and await asyncio.to_thread(self.engine.ask) != "":
            return []
        await self._remove_orphans(set(names))
        found = []
        for task_id in names:
            adopted = await self._adopted(task_id)
            if adopted is not None:
                found.append(adopted)
            else:
                with contextlib.suppress(ExecutorError):  # found again at the next start
                    await self.remove(task_id)
        return found

    async def prepare(self, launch: Launch) -> Sandbox:
        """Have the image, make the container, and start it as far as its gate."""
        if self._is_prepared(launch.task_id):
            return self._sandbox(launch.task_id)
        spec = _spec(launch)
        try:
            image = await self._image(spec)
            if not plan.words(spec, image):
                raise ExecutorError(f'image "{spec.image}" names no command, and the service gives none')
            await asyncio.to_thread(self._write_files, launch, spec)
            body = plan.body(launch, spec, image, str(self._directory(launch.task_id)), self._owner)
            container, pid = await self._make(launch, body)
            ready = {
                "id": container,
                "command": plan.words(spec, image)[0],
                "search": list(plan.search_path(launch, spec, image)),
                "health": msgspec.to_builtins(image.health),
                **records.identify(pid),
            }
            records.write(str(self._directory(launch.task_id) / "launch.json"), ready)
        except OSError as error:
            raise ExecutorError(f"task {launch.hostname}: cannot be prepared: {error}") from error
        except ExecutorError as error:
            raise ExecutorError(f"task {launch.hostname}: {error}") from error
        return self._sandbox(launch.task_id)

    async def start(self, launch: Launch) -> int:
        """Open the gate, once and for all; returns the pid of the container's first process."""
        try:
            return await asyncio.to_thread(self._start, launch)
        except OSError as error:
            raise ExecutorError(f"task {launch.hostname}: cannot be started: {error}") from error

    async def wait(self, task_id: str) -> Exit:
        """Wait for the container's first process to end, then ask the engine how."""
        if not self._was_started(task_id):
            return NEVER
        with self._open(task_id) as process:
            if process is not None:
                await ended(process)
        return await self._exit(task_id)

    async def stop(self, task_id: str, signal_name: str, grace_s: float) -> None:
        """Signal the first process; kill all after `grace_s`. What still stands at its gate is killed at once."""
        with self._open(task_id) as process:
            if process is None:
                return
            if self._was_started(task_id):
                send(process, signal_number(signal_name))
                if await ends_within(process, grace_s):
                    return
            send(process, signal.SIGKILL)
            if not await ends_within(process, KILL_TIMEOUT_S):
                raise ExecutorError(f"task {task_id} does not end after SIGKILL; is its container paused?")

    async def remove(self, task_id: str) -> None:
        """Remove container, namespace and directory; a task that still runs is killed."""
        if not self.has(task_id):
            return
        await self.stop(task_id, "SIGKILL", 0)
        name = (self._read(task_id, "container.json") or {}).get("name", "")
        await asyncio.to_thread(self._begin_removal, task_id)
        state = await self.engine.state(name) if name else None
        if state is not None and self._is_ours(state, task_id):
            await self.engine.remove(state.id)
        await asyncio.to_thread(self._remove, task_id)

    # --- preparing --------------------------------------------------------------------------------------------------

    async def _image(self, spec: ContainerSpec) -> Image:
        """The image that is to run, by now on this machine. Raises ExecutorError."""
        here = await self.engine.image(spec.image)
        if here is not None and (spec.pull != "always" or is_pinned(spec.image)):
            return here
        if spec.pull == "never":
            raise ExecutorError(f'image "{spec.image}" is not on this node, and may not be pulled')
        pull = self._images.setdefault((spec.image, spec.registry_auth), _Pull())
        while len(self._images) > IMAGES_MAX:
            del self._images[next(iter(self._images))]
        clock = asyncio.get_running_loop().time
        async with pull.lock:
            here = await self.engine.image(spec.image)
            if here is not None and pull.asked_s is not None and clock() - pull.asked_s < PULL_MEMORY_S:
                return here
            try:
                await self.engine.pull(spec.image, spec.registry_auth)
            except ExecutorError as error:
                if here is None:
                    raise
                log.warning("an image that is here already will do", extra={"image": spec.image, "error": str(error)})
            pull.asked_s = clock()
        found = await self.engine.image(spec.image)
        if found is None:
            raise ExecutorError(f'image "{spec.image}" was pulled, and is not there')
        log.info("image", extra={"image": spec.image, "is": found.digests[0] if found.digests else found.id})
        return found

    def _write_files(self, launch: Launch, spec: ContainerSpec) -> None:
        directory = self._directory(launch.task_id)
        directory.mkdir(parents=True, exist_ok=True, mode=0o755)
        for name, text in plan.files(launch, spec).items():
            (directory / name).write_text(text)
            (directory / name).chmod(0o644)
        if not gate.make(directory / "gate", self._machine):
            known = " and ".join(gate.CODE)
            raise ExecutorError(f"containers can be run on {known}, and this machine is {self._machine}")
        records.write(str(directory / "container.json"), {"name": plan.container_name(launch)})

    async def _make(self, launch: Launch, body: dict[str, Any]) -> tuple[str, int]:
        """The container, at its gate, and its namespace with a name: (id, pid)."""
        name, task_id = plan.container_name(launch), launch.task_id
        there = await self.engine.state(name)
        if there is not None and not self._is_ours(there, task_id):
            raise ExecutorError(f'a container that is not ours is called "{name}": rename or remove it')
        if there is not None:  # of a daemon that did not come further
            await self.engine.remove(there.id)
        made = await self.engine.create(name, body)
        await self.engine.start(made)
        state = await self._at_gate(task_id, made)
        await asyncio.to_thread(self._name_netns, task_id, state.pid)
        return made, state.pid

    async def _at_gate(self, task_id: str, container: str) -> State:
        deadline = asyncio.get_running_loop().time() + GATE_TIMEOUT_S
        while True:
            state = await self.engine.state(container)
            if state is None or not state.running:
                said = state.error if state is not None else "it was removed"
                raise ExecutorError(f"its container ended before it began: {said or 'the engine does not say why'}")
            if gate.knock(self._directory(task_id) / "gate"):
                return state
            if asyncio.get_running_loop().time() > deadline:
                raise ExecutorError("its container does not come to its gate")
            await asyncio.sleep(POLL_S)

    def _name_netns(self, task_id: str, pid: int) -> None:
        path = Path(self._netns(task_id))
        netns.remove(str(path))  # of a container before this one
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        namespaces.mount(f"/proc/{pid}/ns/net", str(path), flags=namespaces.MS_BIND)

    # --- starting and ending ----------------------------------------------------------------------------------------

    def _start(self, launch: Launch) -> int:
        task_id, directory = launch.task_id, self._directory(launch.task_id)
        prepared = self._read(task_id, "launch.json")
        if prepared is None:
            raise ExecutorError(f"task {launch.hostname}: it is not prepared")
        pid = int(prepared["pid"])
        if self._was_started(task_id):
            return pid
        if records.living(prepared) is None:
            raise ExecutorError(f"task {launch.hostname}: its container ended before it was started")
        command = str(prepared["command"])
        program = find_program(f"/proc/{pid}/root", command, prepared["search"])
        if not program.path:
            raise ExecutorError(f'task {launch.hostname}: command "{command}" {program.error} in its image')
        records.write(str(directory / "started.json"), {})
        if not gate.let_through(directory / "gate", program.path):
            raise ExecutorError(f"task {launch.hostname}: its container ended before it was started")
        return pid

    async def _exit(self, task_id: str) -> Exit:
        """How a container ended whose process is gone. Remembered, unless nobody could be asked."""
        written, prepared = self._read(task_id, "exit.json"), self._read(task_id, "launch.json")
        if written is not None:
            return Exit(int(written["code"]), str(written["message"]))
        if prepared is None:
            return NEVER
        try:
            found = await self._asked(prepared)
        except ExecutorError as error:
            log.warning("how a task ended is not known", extra={"task": task_id, "error": str(error)})
            return AWAY
        with contextlib.suppress(OSError):  # it is being removed, or the disk is full: then it is asked again
            records.write(str(self._directory(task_id) / "exit.json"), {"code": found.code, "message": found.message})
        return found

    async def _asked(self, prepared: dict[str, Any]) -> Exit:
        deadline = asyncio.get_running_loop().time() + EXIT_TIMEOUT_S
        while True:
            state = await self.engine.state(str(prepared["id"]))
            if state is None or not state.running:
                return plan.how_it_ended(state)
            if state.pid != int(prepared["pid"]):
                return RESTARTED
            if asyncio.get_running_loop().time() > deadline:
                raise EngineAway("the Docker Engine does not notice that a container has ended")
            await asyncio.sleep(POLL_S)

    def _begin_removal(self, task_id: str) -> None:
        """From here on it is not prepared."""
        try:
            (self._directory(task_id) / "launch.json").unlink(missing_ok=True)
        except OSError as error:
            raise ExecutorError(f"task {task_id}: cannot remove what is left of it: {error}") from error

    def _remove(self, task_id: str) -> None:
        try:
            netns.remove(self._netns(task_id))
            shutil.rmtree(self._directory(task_id))
        except OSError as error:
            raise ExecutorError(f"task {task_id}: cannot remove what is left of it: {error}") from error

    def _sandbox(self, task_id: str) -> Sandbox:
        """Of a prepared task; with its image's health check, which its service has no word of."""
        said = (self._read(task_id, "launch.json") or {}).get("health")
        health = msgspec.convert(said, type=HealthCheck) if said else None
        return Sandbox(task_id, self._netns(task_id), health)

    # --- adopting ---------------------------------------------------------------------------------------------------

    async def _adopted(self, task_id: str) -> Adopted | None:
        """A task as it is found; None if it must be made anew."""
        prepared = self._read(task_id, "launch.json")
        if prepared is None:
            return None
        sandbox, pid = self._sandbox(task_id), records.living(prepared)
        if pid is not None and not netns.exists(sandbox.netns):
            try:
                await asyncio.to_thread(self._name_netns, task_id, pid)
            except OSError as error:  # it runs on; the overlay will say what it lacks
                log.warning("cannot name a task's namespace", extra={"task": task_id, "error": str(error)})
        if self._was_started(task_id):
            return Adopted(task_id, sandbox, pid, None if pid is not None else await self._exit(task_id))
        return Adopted(task_id, sandbox, None, None) if pid is not None else None

    async def _remove_orphans(self, known: set[str]) -> None:
        """Containers of ours whose tasks are not known here any more."""
        try:
            for container, name, labels in await self.engine.owned(self._owner):
                task_id = labels.get(plan.TASK_LABEL, "")
                if task_id not in known:
                    log.warning("removing a container of a task that is gone", extra={"container": name})
                    await self.engine.remove(container)
                    await asyncio.to_thread(netns.remove, self._netns(task_id))
        except (EngineAway, EngineRefused, OSError) as error:
            log.warning("cannot remove containers of tasks that are gone", extra={"error": str(error)})

    # --- what is there ----------------------------------------------------------------------------------------------

    def _directory(self, task_id: str) -> Path:
        return self._containers / task_id

    def _netns(self, task_id: str) -> str:
        return f"{self._netns_dir}/mesh-t-{task_id}"

    def _read(self, task_id: str, file: str) -> dict[str, Any] | None:
        return records.read(str(self._directory(task_id) / file))

    def _is_ours(self, state: State, task_id: str) -> bool:
        return state.labels.get(plan.TASK_LABEL) == task_id and state.labels.get(plan.OWNER_LABEL) == self._owner

    def _is_prepared(self, task_id: str) -> bool:
        return self._read(task_id, "launch.json") is not None and netns.exists(self._netns(task_id))

    def _was_started(self, task_id: str) -> bool:
        """It was let through; between the note that it will be and that, it still stands at its gate."""
        if self._read(task_id, "launch.json") is None or self._read(task_id, "started.json") is None:
            return False
        return not gate.knock(self._directory(task_id) / "gate")

    @contextlib.contextmanager
    def _open(self, task_id: str) -> Iterator[int | None]:
        """A pidfd of the container's first process while it lives, or None."""
        record = self._read(task_id, "launch.json")
        pid = records.living(record)
        descriptor = None
        if pid is not None:
            with contextlib.suppress(ProcessLookupError):
                descriptor = os.pidfd_open(pid)
        try:
            # Looked at again: now the descriptor keeps the pid from being given to another process.
            yield descriptor if records.living(record) is not None else None
        finally:
            if descriptor is not None:
                os.close(descriptor)


def container_of(state_dir: Path, task_id: str) -> str | None:
    """The name of a task's container in `docker ps`; None when the task is none. Raises PermissionError."""
    record = records.read(str(state_dir / "containers" / task_id / "container.json"))
    if record is None and (state_dir / "containers" / task_id).is_dir():
        raise PermissionError(f"{state_dir}/containers/{task_id}")
    return str(record["name"]) if record is not None else None


def _spec(launch: Launch) -> ContainerSpec:
    if launch.spec.container is None:
        raise ExecutorError(f"task {launch.hostname}: it is a process, and no container")
    return launch.spec.container
