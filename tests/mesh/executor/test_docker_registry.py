"""Pulling from a real registry that asks who one is (Debian's docker-registry, with a password file)."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from docker.errors import ImageNotFound

from control.model import ContainerSpec, RegistryAuth, ServiceSpec, TaskSpec
from mesh.cli.pin import pinned_service
from mesh.executor.docker.engine import Engine
from mesh.executor.docker.executor import DockerExecutor
from mesh.executor.protocol import ExecutorError, Exit
from tests.mesh.executor.engines import IMAGE, RealEngine, container, real_engine
from tests.mesh.executor.launches import until

pytestmark = [pytest.mark.root, pytest.mark.timeout(120)]

# In namespaces of the engine's own, where nobody else listens.
HOST = "127.0.0.1:5001"
NAME = f"{HOST}/test/box"
RIGHT = RegistryAuth(registry=HOST, username="ann", password="right")
WRONG = RegistryAuth(registry=HOST, username="ann", password="sesame-wrong")
# "right", by bcrypt with its least cost.
PASSWORDS = "ann:$2b$04$V9wKg3uCUzYl9EKKKqoCfePblu6Xh0jfGQ1bx/vfzOH7PWXCJlEi6\n"


@dataclass
class Registry:
    """One that can be ended and started anew, with the digest of its only image."""

    engine: RealEngine
    directory: Path
    digest: str = ""
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self.process = self.engine.inside("docker-registry", "serve", str(self.directory / "config.json"))
        until(self._answers, 30)

    def end(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait(10)
            self.process = None

    def forget(self) -> None:
        """The engine has the image no more."""
        with self.engine.client() as client:
            for image in client.images():
                for name in (*(image["RepoTags"] or ()), *(image["RepoDigests"] or ())):
                    if name.startswith(HOST):
                        with contextlib.suppress(ImageNotFound):  # with a name before it
                            client.remove_image(name, force=True)

    def push(self) -> None:
        with self.engine.client() as client:
            client.tag(IMAGE, NAME, "1")
            auth = {"username": RIGHT.username, "password": RIGHT.password}
            lines = list(client.push(NAME, tag="1", stream=True, decode=True, auth_config=auth))
            assert not any("error" in line for line in lines), lines
            self.digest = next(line["aux"]["Digest"] for line in lines if "aux" in line)
        self.forget()

    def _answers(self) -> bool:
        with self.engine.inside("curl", "-s", "-o", "/dev/null", f"http://{HOST}/v2/") as asked:
            return asked.wait(10) == 0


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    if os.geteuid() != 0:
        pytest.skip("needs root")
    assert shutil.which("docker-registry"), "no registry is installed: apt-get install docker-registry"
    directory = tmp_path_factory.mktemp("registry")
    (directory / "passwords").write_text(PASSWORDS)
    config = {
        "version": 0.1,
        "log": {"level": "error"},
        "storage": {"filesystem": {"rootdirectory": str(directory / "data")}},
        "http": {"addr": HOST},
        "auth": {"htpasswd": {"realm": "test", "path": str(directory / "passwords")}},
    }
    (directory / "config.json").write_text(json.dumps(config))
    with real_engine(tmp_path_factory.mktemp("engine")) as engine:
        made = Registry(engine, directory)
        try:
            made.start()
            made.push()
            yield made
        finally:
            made.end()


@pytest.fixture
async def executor(registry: Registry, tmp_path: Path) -> AsyncIterator[DockerExecutor]:
    if registry.process is None:
        registry.start()
    made = DockerExecutor(tmp_path, Engine(registry.engine.socket), netns_dir=str(tmp_path / "netns"))
    yield made
    for task in await made.adopt():
        await made.remove(task.task_id)
    registry.forget()


async def run(executor: DockerExecutor, image: str, auth: RegistryAuth | None, pull: str = "missing") -> Exit:
    what = container("true", image=image, registry_auth=auth, pull=pull)
    await executor.prepare(what)
    await executor.start(what)
    ended = await executor.wait("t1")
    await executor.remove("t1")
    return ended


async def test_the_right_credentials_pull(executor: DockerExecutor, registry: Registry) -> None:
    assert await run(executor, f"{NAME}:1", RIGHT) == Exit(0)
    image = await executor.engine.image(f"{NAME}:1")
    assert image is not None
    assert image.digests == (f"{NAME}@{registry.digest}",)


async def test_an_image_is_pulled_by_its_digest(executor: DockerExecutor, registry: Registry) -> None:
    assert await run(executor, f"{NAME}@{registry.digest}", RIGHT) == Exit(0)


@pytest.mark.parametrize("auth", [WRONG, None])
async def test_others_are_refused_in_a_sentence(
    executor: DockerExecutor, auth: RegistryAuth | None, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(ExecutorError) as refused:
        await executor.prepare(container("true", image=f"{NAME}:1", registry_auth=auth))
    assert f'cannot pull image "{NAME}:1"' in str(refused.value)
    assert "no basic auth credentials" in str(refused.value) or "unauthorized" in str(refused.value)
    for said in (str(refused.value), repr(refused.value), caplog.text):
        assert "sesame" not in said
    await executor.remove("t1")


async def test_a_digest_that_the_registry_does_not_have(executor: DockerExecutor) -> None:
    with pytest.raises(ExecutorError, match="cannot pull image"):
        await executor.prepare(container("true", image=f"{NAME}@sha256:{'0' * 64}", registry_auth=RIGHT))
    await executor.remove("t1")


async def test_an_image_that_is_here_will_do_while_the_registry_is_down(
    executor: DockerExecutor, registry: Registry
) -> None:
    registry.end()
    with pytest.raises(ExecutorError, match="cannot pull image"):
        await executor.prepare(container("true", image=f"{NAME}:1", registry_auth=RIGHT, pull="always"))
    await executor.remove("t1")
    registry.start()
    assert await run(executor, f"{NAME}:1", RIGHT, pull="always") == Exit(0)
    registry.end()
    other = RegistryAuth(registry=HOST, username="ann", password="another")  # asked for anew, at nobody
    assert await run(executor, f"{NAME}:1", other, pull="always") == Exit(0)


async def test_credentials_leave_nothing_at_the_engine(executor: DockerExecutor, registry: Registry) -> None:
    what = container("sleep", "1000", image=f"{NAME}:1", registry_auth=RIGHT)
    await executor.prepare(what)
    with registry.engine.client() as client:
        said = json.dumps(client.inspect_container("api.1.t1"))
    assert RIGHT.username not in said
    await executor.remove("t1")


def service(image: str, auth: RegistryAuth | None) -> ServiceSpec:
    return ServiceSpec(name="s", task=TaskSpec(container=ContainerSpec(image=image, registry_auth=auth)))


async def test_a_service_says_which_image_was_meant_when_it_was_made(
    executor: DockerExecutor, registry: Registry
) -> None:
    spec, warning = pinned_service(service(f"{NAME}:1", RIGHT), registry.engine.socket)
    assert warning == ""
    assert spec.task.container is not None
    assert spec.task.container.image == f"{NAME}:1@{registry.digest}"
    assert await run(executor, spec.task.container.image, RIGHT) == Exit(0)
    assert pinned_service(spec, registry.engine.socket) == (spec, "")


def test_where_nobody_can_say_which_image_is_meant_the_user_hears_of_it(registry: Registry) -> None:
    for auth, name in ((WRONG, f"{NAME}:1"), (RIGHT, f"{NAME}:2")):
        spec, warning = pinned_service(service(name, auth), registry.engine.socket)
        assert spec == service(name, auth)
        assert f'image "{name}" is not pinned to a digest' in warning
        assert WRONG.password not in warning
    spec, warning = pinned_service(service(f"{NAME}:1", RIGHT), "/nowhere.sock")
    assert spec == service(f"{NAME}:1", RIGHT)
    assert "no Docker Engine here" in warning


def test_an_image_that_is_in_no_registry_is_left_alone(registry: Registry) -> None:
    assert pinned_service(service(IMAGE, None), registry.engine.socket) == (service(IMAGE, None), "")
