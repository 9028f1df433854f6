"""A real Docker Engine for tests, in network and mount namespaces of its own, and containers to launch on it."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from ipaddress import IPv4Address
from pathlib import Path

from docker import APIClient

from control.model import ContainerSpec, ResourceRequirements, Resources, TaskSpec
from mesh.executor.docker.engine import Engine
from mesh.executor.docker.executor import DockerExecutor
from mesh.executor.protocol import Adopted, Exit, Launch, Sandbox
from mesh.lab.image import busybox_image
from tests.mesh.executor.launches import until

IMAGE = "box:1"
START_TIMEOUT_S = 60.0
# The engine's own /run, and no mount of it seen outside.
_BEGIN = 'ip link set lo up && mount --make-rprivate / && mount -t tmpfs none /run && exec "$0" "$@"'


class RealEngine:
    """One engine below a directory."""

    def __init__(self, directory: Path) -> None:
        assert shutil.which("dockerd"), "no Docker Engine is installed: apt-get install docker.io"
        self.directory = directory
        directory.mkdir(exist_ok=True)
        self.socket = str(directory / "docker.sock")
        self.group = f"mesh-test-{os.getpid()}-{directory.name}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, and wait until it answers."""
        options = (
            f"--data-root={self.directory}/data", "--exec-root=/run/docker", f"--pidfile={self.directory}/pid",
            f"--host=unix://{self.socket}", "--bridge=none", "--iptables=false", "--ip-forward=false",
            "--ip-masq=false", "--userland-proxy=false", f"--cgroup-parent=/{self.group}",
        )  # fmt: skip
        if self._process is None:
            enter = ["unshare", "--net", "--mount", "sh", "-c", _BEGIN]
        else:  # it has the namespaces of the one before it, where that one's containers are
            enter = ["nsenter", f"--net=/proc/{self._keeper.pid}/ns/net", f"--mount=/proc/{self._keeper.pid}/ns/mnt"]
        with (self.directory / "log").open("ab") as log:
            command = [*enter, "dockerd", *options]
            self._process = subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
        until(self._answers, START_TIMEOUT_S)
        if not hasattr(self, "_keeper"):
            inside = ["nsenter", "-t", str(self._process.pid), "--net", "--mount", "sleep", "100000"]
            self._keeper = subprocess.Popen(inside, stdin=subprocess.DEVNULL)

    def end(self, number: signal.Signals = signal.SIGTERM) -> None:
        """End it: in order, with its containers; or by SIGKILL, which leaves them."""
        assert self._process is not None
        self._process.send_signal(number)
        self._process.wait(30)

    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def close(self) -> None:
        """Remove its containers, end it, and all processes that have its mounts."""
        if self._process is None:
            return
        if not self.running():
            self.start()
        with self.client() as client:
            for container in client.containers(all=True):
                client.remove_container(container["Id"], force=True, v=True)
        self.end()
        mounts = os.readlink(f"/proc/{self._keeper.pid}/ns/mnt")
        for entry in Path("/proc").iterdir():
            with contextlib.suppress(OSError):
                if entry.name.isdigit() and os.readlink(entry / "ns/mnt") == mounts:
                    os.kill(int(entry.name), signal.SIGKILL)
        self._keeper.wait(10)
        for place in (Path("/sys/fs/cgroup"), *Path("/sys/fs/cgroup").iterdir()):
            for group, _, _ in os.walk(place / self.group, topdown=False):
                with contextlib.suppress(OSError):
                    os.rmdir(group)

    def inside(self, *command: str) -> subprocess.Popen[bytes]:
        """A process in the engine's namespaces."""
        enter = ["nsenter", f"--net=/proc/{self._keeper.pid}/ns/net", "--"]
        return subprocess.Popen([*enter, *command], stdout=subprocess.PIPE, stdin=subprocess.DEVNULL)

    def client(self) -> APIClient:
        return APIClient(base_url=f"unix://{self.socket}", version="auto", timeout=30)

    def _answers(self) -> bool:
        assert self.running(), (self.directory / "log").read_text()[-2000:]
        return Engine(self.socket).ask() == ""


@contextlib.contextmanager
def real_engine(directory: Path) -> Iterator[RealEngine]:
    """An engine with the image IMAGE: busybox alone."""
    engine = RealEngine(directory)
    try:
        engine.start()
        with engine.client() as client:
            client.import_image_from_data(busybox_image(), repository="box", tag="1")
        yield engine
    finally:
        engine.close()


def container(
    *command: str, name: str = "t1", limits: Resources | None = None, image: str = IMAGE, **fields: object
) -> Launch:
    """A task of the service "api"; `fields` are those of a ContainerSpec. It is not pulled unless that is asked for."""
    fields.setdefault("pull", "missing")
    spec = TaskSpec(
        container=ContainerSpec(image=image, args=command, **fields),  # type: ignore[arg-type]
        resources=ResourceRequirements(limits=limits or Resources()),
    )
    return Launch(name, "api", 1, "api.1", spec, (IPv4Address("10.1.0.1"),), ("web.mesh",))


class Containers:
    """An executor that runs the commands of processes in containers, so that both can be tried alike."""

    name = "docker"

    def __init__(self, executor: DockerExecutor) -> None:
        self.executor = executor

    async def adopt(self) -> list[Adopted]:
        return await self.executor.adopt()

    async def prepare(self, launch: Launch) -> Sandbox:
        return await self.executor.prepare(self._container(launch))

    async def start(self, launch: Launch) -> int:
        return await self.executor.start(self._container(launch))

    async def wait(self, task_id: str) -> Exit:
        return await self.executor.wait(task_id)

    async def stop(self, task_id: str, signal: str, grace_s: float) -> None:
        await self.executor.stop(task_id, signal, grace_s)

    async def remove(self, task_id: str) -> None:
        await self.executor.remove(task_id)

    def _container(self, launch: Launch) -> Launch:
        assert launch.spec.process is not None
        return container(*launch.spec.process.command, name=launch.task_id, init=True)
