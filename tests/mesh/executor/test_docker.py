"""Tasks as containers of a real engine: what they get, how they end, and what happens behind our back."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from control.model import HealthCheck, Mount, Resources, Ulimit
from mesh.executor.docker.engine import CALL_TIMEOUT_S, Engine, EngineAway
from mesh.executor.docker.executor import AWAY, RESTARTED, DockerExecutor
from mesh.executor.probe import probe
from mesh.executor.protocol import Executor, ExecutorError, Exit, Launch
from mesh.lab.image import busybox_image
from tests.mesh.executor import test_contract
from tests.mesh.executor.engines import IMAGE, Containers, RealEngine, container, real_engine

pytestmark = [pytest.mark.root, pytest.mark.timeout(120)]


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealEngine]:
    if os.geteuid() != 0:
        pytest.skip("needs root")
    with real_engine(tmp_path_factory.mktemp("engine")) as made:
        yield made


@pytest.fixture
async def executor(engine: RealEngine, tmp_path: Path) -> AsyncIterator[DockerExecutor]:
    if not engine.running():
        engine.start()
    made = DockerExecutor(tmp_path, Engine(engine.socket), netns_dir=str(tmp_path / "netns"))
    yield made
    if not engine.running():
        engine.start()
    for task in await made.adopt():
        await made.remove(task.task_id)


@pytest.fixture
def either(executor: DockerExecutor) -> Executor:
    return Containers(executor)


# What holds for every executor.
test_each_call_may_be_repeated = test_contract.test_each_call_may_be_repeated
test_adopt_tells_prepared_running_and_ended_apart = test_contract.test_adopt_tells_prepared_running_and_ended_apart
test_many_may_wait = test_contract.test_many_may_wait
test_what_was_never_started_has_ended = test_contract.test_what_was_never_started_has_ended
test_removing_a_running_task_kills_it = test_contract.test_removing_a_running_task_kills_it


async def run(executor: DockerExecutor, what: Launch) -> Exit:
    """A task from beginning to end."""
    await executor.prepare(what)
    await executor.start(what)
    async with asyncio.timeout(30):
        return await executor.wait(what.task_id)


async def printed(executor: DockerExecutor, engine: RealEngine, what: Launch) -> str:
    """What a task prints that ends well."""
    ended = await run(executor, what)
    with engine.client() as client:
        said = client.logs(f"api.1.{what.task_id}").decode()
    assert ended == Exit(0), said
    return str(said)


# --- what a container gets ------------------------------------------------------------------------------------------


async def test_its_command_starts_only_when_it_is_told_to(executor: DockerExecutor, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    script = "echo ran > /out/ran; ls /sys/class/net > /out/net"
    out = Mount(kind="bind", source=str(tmp_path / "out"), target="/out")
    what = container("sh", "-c", script, mounts=(out,))
    sandbox = await executor.prepare(what)
    await asyncio.sleep(0.3)
    assert not (tmp_path / "out" / "ran").exists()
    await asyncio.to_thread(_add_device, sandbox.netns)
    assert await run(executor, what) == Exit(0)
    assert (tmp_path / "out" / "net").read_text().split() == ["eth0", "lo"]


def _add_device(netns: str) -> None:
    subprocess.run(["nsenter", f"--net={netns}", "ip", "link", "add", "eth0", "type", "bridge"], check=True)


async def test_what_the_service_says_of_its_surroundings(executor: DockerExecutor, engine: RealEngine) -> None:
    script = """
        hostname; pwd; id -u; id -G; echo $LEVEL $HOSTNAME; ulimit -n; cat /proc/sys/net/ipv4/ip_unprivileged_port_start
        grep CapBnd /proc/self/status; cat /etc/resolv.conf /etc/hosts; ls -l /run/secret | cut -c1-10
        touch /x 2>/dev/null || echo read-only; touch /mem/x && echo written
        grep -q ' /vol ' /proc/self/mounts && echo volume; df /mem | tail -1 | tr -s ' ' | cut -d' ' -f2
        test -e /.mesh/door && echo door
    """
    said = await printed(
        executor,
        engine,
        container(
            "sh", "-c", script,
            env={"LEVEL": "info"}, workdir="/var/tmp", user="1234:55", groups=("77",), read_only=True,
            ulimits=(Ulimit(name="nofile", soft=99, hard=100),), sysctls={"net.ipv4.ip_unprivileged_port_start": "0"},
            cap_drop=("ALL",), cap_add=("CHOWN",), hosts=("10.9.9.9 store db",),
            mounts=(
                Mount(kind="tmpfs", target="/mem", size_bytes=1 << 20),
                Mount(kind="volume", target="/vol"),
                Mount(kind="bind", source="/etc/passwd", target="/run/secret", read_only=True),
            ),
        ),
    )  # fmt: skip
    lines = [line for line in said.splitlines() if line]
    assert lines[:7] == ["api.1", "/var/tmp", "1234", "55 77", "info api.1", "99", "0"]
    assert lines[7].endswith("0000000000000001")  # CAP_CHOWN alone
    assert lines[8:11] == ["nameserver 10.1.0.1", "search web.mesh", "options ndots:1"]
    assert "10.9.9.9 store db" in lines
    assert "read-only" in lines
    assert {"1024", "written", "volume"} <= set(lines)
    assert lines[-1] == "door"


async def test_image_and_service_together_make_the_command(executor: DockerExecutor, engine: RealEngine) -> None:
    with engine.client() as client:
        made = client.create_container(IMAGE, ["x"])["Id"]
        changes = {"Entrypoint": ["echo", "entry"], "Cmd": ["default"], "Env": ["PATH=/bin", "COLOUR=red"]}
        client.commit(made, "box", "2", conf=changes)
        client.remove_container(made)
    assert await printed(executor, engine, container(image="box:2", name="a")) == "entry default\n"
    assert await printed(executor, engine, container("own", image="box:2", name="b")) == "entry own\n"
    own = container("-c", "echo $COLOUR", image="box:2", name="c", command=("sh",))
    assert await printed(executor, engine, own) == "red\n"


async def test_a_terminal_and_an_init(executor: DockerExecutor, engine: RealEngine) -> None:
    said = await printed(executor, engine, container("sh", "-c", "tty; cat /proc/1/comm", tty=True, init=True))
    assert said.split() == ["/dev/console", "docker-init"] or said.split()[0].startswith("/dev/")
    assert "docker-init" in said


# --- how containers end ---------------------------------------------------------------------------------------------


async def test_exit_codes_are_told(executor: DockerExecutor) -> None:
    assert await run(executor, container("sh", "-c", "exit 3")) == Exit(3)


async def test_who_ignores_the_signal_is_killed_after_the_grace(executor: DockerExecutor, tmp_path: Path) -> None:
    what = container("sh", "-c", "trap '' TERM; while :; do sleep 0.1; done")
    await executor.prepare(what)
    await executor.start(what)
    await asyncio.sleep(0.2)
    began = time.monotonic()
    await executor.stop("t1", "SIGTERM", 0.5)
    assert time.monotonic() - began >= 0.5
    assert (await executor.wait("t1")).code == 137


async def test_want_of_memory_is_named(executor: DockerExecutor) -> None:
    eats = container(
        "sh", "-c", 'x=$(head -c 100000000 /dev/zero | tr "\\0" x)', limits=Resources(memory_bytes=16 << 20)
    )
    ended = await run(executor, eats)
    assert ended == Exit(137, "it was killed for want of memory")


async def test_its_health_is_probed_inside(executor: DockerExecutor) -> None:
    what = container("sh", "-c", "sleep 0.3; touch /well; exec sleep 1000")
    netns = (await executor.prepare(what)).netns
    pid = await executor.start(what)
    check = HealthCheck(command=("/bin/sh", "-c", "ls /well"))
    assert "ls: /well: No such file or directory" in await probe(check, netns, "127.0.0.1", pid)
    await asyncio.sleep(0.5)
    assert await probe(check, netns, "127.0.0.1", pid) == ""
    assert await probe(HealthCheck(tcp=80), netns, "127.0.0.1", pid) == "Connection refused"


async def test_the_healthcheck_of_an_image_is_told_and_kept(
    executor: DockerExecutor, engine: RealEngine, tmp_path: Path
) -> None:
    with engine.client() as client:
        change = 'HEALTHCHECK --interval=2s --timeout=1s --retries=5 CMD ["ls", "/well"]'
        client.import_image_from_data(busybox_image(), repository="checked", tag="1", changes=[change])
    wanted = HealthCheck(command=("ls", "/well"), interval_s=2, timeout_s=1, retries=5)
    what = container("sleep", "1000", image="checked:1", init=True)
    assert (await executor.prepare(what)).health == wanted
    pid = await executor.start(what)
    sandbox = await executor.prepare(what)
    assert "ended with 1" in await probe(wanted, sandbox.netns, "127.0.0.1", pid)
    assert [found.sandbox.health for found in await executor.adopt()] == [wanted]


# --- what cannot be -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("what", "sentence"),
    [
        (container("x", image="nobody/has:it"), 'cannot pull image "nobody/has:it"'),
        (container("x", image="nobody/has:it", pull="never"), "is not on this node, and may not be pulled"),
        (container(), "names no command, and the service gives none"),
        (container("x", mounts=(Mount(kind="bind", source="/not/there", target="/x"),)), "/not/there"),
        (container("x", user="stranger"), "stranger"),
        (container("x", sysctls={"net.no.such": "1"}), "net/no/such"),
    ],
)
async def test_what_cannot_be_prepared_is_said_in_a_sentence(
    executor: DockerExecutor, what: Launch, sentence: str
) -> None:
    with pytest.raises(ExecutorError, match=r"^task api\.1: ") as refused:
        await executor.prepare(what)
    assert sentence in str(refused.value)
    await executor.remove("t1")
    assert await executor.engine.owned(str(executor._owner)) == []


@pytest.mark.parametrize(
    ("command", "sentence"),
    [("nothing", 'command "nothing" is not found in its image'), ("/etc/passwd", "cannot be executed in its image")],
)
async def test_a_command_that_the_image_lacks(executor: DockerExecutor, command: str, sentence: str) -> None:
    await executor.prepare(container(command))
    with pytest.raises(ExecutorError, match=sentence):
        await executor.start(container(command))
    await executor.remove("t1")


async def test_an_image_that_is_here_does_when_its_registry_is_away(executor: DockerExecutor) -> None:
    assert await run(executor, container("true", pull="always")) == Exit(0)


@pytest.fixture
def registry(engine: RealEngine, tmp_path: Path) -> Iterator[str]:
    """A registry where the engine is; the digest of its one image."""
    (tmp_path / "layer.tar").write_bytes(busybox_image())
    with engine.inside(
        sys.executable, str(Path(__file__).with_name("registry.py")), "5000", f"{tmp_path}/layer.tar"
    ) as it:
        assert it.stdout is not None
        yield it.stdout.readline().decode().strip()
        it.kill()


async def test_an_image_is_pulled_and_known_by_what_its_registry_calls_it(
    executor: DockerExecutor, engine: RealEngine, registry: str
) -> None:
    name = "127.0.0.1:5000/test/box"
    assert await run(executor, container(image=f"{name}:1", pull="always", name="a")) == Exit(0)
    image = await executor.engine.image(f"{name}:1")
    assert image is not None
    assert image.digests == (f"{name}@{registry}",)
    with engine.client() as client:
        assert client.inspect_container("api.1.a")["Image"] == image.id
    assert await run(executor, container(image=f"{name}@{registry}", name="b")) == Exit(0)
    wrong = f"{name}@sha256:{'0' * 64}"
    with pytest.raises(ExecutorError, match="cannot pull image"):
        await executor.prepare(container(image=wrong, name="c"))
    with pytest.raises(ExecutorError, match="cannot pull image"):
        await executor.prepare(container(image=f"{name}:broken", name="c"))
    await executor.remove("c")


async def test_a_machine_without_a_gate(engine: RealEngine, tmp_path: Path) -> None:
    executor = DockerExecutor(tmp_path, Engine(engine.socket), netns_dir=str(tmp_path / "netns"), machine="s390x")
    with pytest.raises(ExecutorError, match="containers can be run on x86_64 and aarch64, and this machine is s390x"):
        await executor.prepare(container("true"))
    await executor.remove("t1")


# --- behind our back ------------------------------------------------------------------------------------------------


async def running(executor: DockerExecutor, name: str = "t1") -> asyncio.Task[Exit]:
    """A task that runs, and somebody who waits for its end."""
    what = container("sleep", "1000", name=name)
    await executor.prepare(what)
    await executor.start(what)
    return asyncio.get_running_loop().create_task(executor.wait(name))


async def test_a_container_removed_behind_our_back(executor: DockerExecutor, engine: RealEngine) -> None:
    waiting = await running(executor)
    with engine.client() as client:
        client.remove_container("api.1.t1", force=True)
    assert await waiting == Exit(137, "its container was removed behind meshd's back")
    await executor.remove("t1")


async def test_a_container_restarted_behind_our_back_does_not_pass_for_the_task(
    executor: DockerExecutor, engine: RealEngine
) -> None:
    waiting = await running(executor)
    with engine.client() as client:
        await asyncio.to_thread(client.restart, "api.1.t1", 0)
    # Seen when it had ended, when it ran again, or when that had ended, too.
    assert (await waiting) in (Exit(137), RESTARTED, Exit(127))
    await executor.remove("t1")
    assert await executor.engine.owned(executor._owner) == []


async def test_a_name_that_somebody_else_took(executor: DockerExecutor, engine: RealEngine) -> None:
    with engine.client() as client:
        theirs = client.create_container(IMAGE, ["sleep", "1000"], name="api.1.t1")["Id"]
        with pytest.raises(ExecutorError, match="a container that is not ours is called"):
            await executor.prepare(container("true"))
        await executor.remove("t1")
        assert client.inspect_container("api.1.t1")["Id"] == theirs
        client.remove_container(theirs)


async def test_containers_of_tasks_that_are_gone_are_removed_at_start(
    executor: DockerExecutor, engine: RealEngine, tmp_path: Path
) -> None:
    waiting = await running(executor)
    shutil.rmtree(tmp_path / "containers")  # as when a node's state was wiped
    other = DockerExecutor(tmp_path / "other", Engine(engine.socket), netns_dir=str(tmp_path / "netns"))
    assert await other.adopt() == []
    assert len(await executor.engine.owned(executor._owner)) == 1
    assert await executor.adopt() == []
    assert await executor.engine.owned(executor._owner) == []
    assert list((tmp_path / "netns").iterdir()) == []
    await waiting


# --- engines that go ------------------------------------------------------------------------------------------------


async def test_an_engine_that_is_starting_is_not_waited_for_as_long_as_for_its_answers(tmp_path: Path) -> None:
    """It takes connections, and may itself be waiting for this daemon, which its containers' networks belong to."""
    with socket.socket(socket.AF_UNIX) as door:
        door.bind(f"{tmp_path}/docker.sock")
        door.listen()
        starting = Engine(f"{tmp_path}/docker.sock", away_max_s=1.0)
        async with asyncio.timeout(CALL_TIMEOUT_S / 2):
            with pytest.raises(EngineAway, match=r"no Docker Engine answers at .*docker\.sock: cannot list containers"):
                await starting.owned("n1")


async def test_an_engine_that_is_killed_keeps_nobody_from_stopping(
    executor: DockerExecutor, engine: RealEngine, tmp_path: Path
) -> None:
    waiting = await running(executor)
    engine.end(signal.SIGKILL)
    impatient = DockerExecutor(tmp_path, Engine(engine.socket, away_max_s=0.3), netns_dir=str(tmp_path / "netns"))
    (found,) = await impatient.adopt()
    assert found.pid is not None
    assert not waiting.done()
    with pytest.raises(ExecutorError, match=r"task api\.1: no Docker Engine answers at .*docker\.sock: "):
        await impatient.prepare(container("true", name="t2"))
    await impatient.stop("t1", "SIGKILL", 0)
    assert await impatient.wait("t1") == AWAY
    with pytest.raises(EngineAway):
        await impatient.remove("t1")
    engine.start()  # within the time that the first one waits
    assert (await waiting).code == 137
    await impatient.remove("t1")
    await impatient.remove("t2")
    assert await impatient.adopt() == []


async def test_an_engine_that_is_restarted_ends_its_containers(executor: DockerExecutor, engine: RealEngine) -> None:
    waiting = await running(executor)
    await asyncio.to_thread(_restart, engine)
    assert (await waiting).code == 137  # it ignored the engine's SIGTERM, as first processes do
    (found,) = await executor.adopt()
    assert found.exit is not None
    await executor.remove("t1")
    assert await run(executor, container("true", name="t2")) == Exit(0)


def _restart(engine: RealEngine) -> None:
    with engine.client() as client:
        client.stop("api.1.t1", timeout=0)
    engine.end()
    engine.start()


async def test_no_engine_is_said_at_once(tmp_path: Path) -> None:
    absent = Engine(str(tmp_path / "none.sock"))
    assert absent.ask() == f"no Docker Engine answers at {tmp_path}/none.sock: No such file or directory"
    executor = DockerExecutor(tmp_path, absent)
    assert await executor.adopt() == []


async def test_an_engine_that_is_too_old(tmp_path: Path) -> None:
    async def old(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while (await reader.readline()) not in (b"\r\n", b""):
            pass
        body = b'{"Version": "17.03.2-ce", "ApiVersion": "1.27", "MinAPIVersion": "1.12"}'
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nConnection: close\r\n")
        writer.write(b"Content-Length: %d\r\n\r\n" % len(body) + body)
        await writer.drain()
        writer.close()

    server = await asyncio.start_unix_server(old, tmp_path / "old.sock")
    async with server:
        engine = Engine(str(tmp_path / "old.sock"))
        said = await asyncio.to_thread(engine.ask)
        assert said == "the Docker Engine is too old: its API is 1.27, and meshd needs 1.40 (Docker 19.03) or later"
        with pytest.raises(ExecutorError, match="the Docker Engine is too old"):
            await engine.state("x")


async def test_many_at_once(executor: DockerExecutor) -> None:
    async def one(number: int) -> Exit:
        return await run(executor, container("true", name=f"n{number}"))

    async with asyncio.TaskGroup() as group:
        ended = [group.create_task(one(number)) for number in range(8)]
    assert [task.result() for task in ended] == [Exit(0)] * 8
