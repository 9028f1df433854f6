"""Process tasks for real: namespaces, exit codes, signals, limits, and a life longer than the daemon's."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from ipaddress import IPv4Address
from pathlib import Path

import pytest

from control.model import ProcessSpec, ResourceRequirements, Resources, TaskSpec
from mesh.executor.process import LOST, ProcessExecutor
from mesh.executor.protocol import ExecutorError, Exit, Launch

pytestmark = pytest.mark.root


@pytest.fixture
async def executor(tmp_path: Path) -> AsyncIterator[ProcessExecutor]:
    if os.geteuid() != 0:
        pytest.skip("needs root")
    made = ProcessExecutor(tmp_path, netns_dir=str(tmp_path / "netns"))
    yield made
    for task in await made.adopt():
        await made.stop(task.task_id, "SIGKILL", 0)
        await made.remove(task.task_id)
    subprocess.run(["umount", str(tmp_path / "netns")], check=False, capture_output=True)


def launch(*command: str, name: str = "t1", limits: Resources | None = None, **fields: object) -> Launch:
    spec = TaskSpec(
        process=ProcessSpec(command=command, **fields),  # type: ignore[arg-type]
        resources=ResourceRequirements(limits=limits or Resources()),
    )
    return Launch(name, "api", 1, "api.1", spec, (IPv4Address("10.1.0.1"),), ("web.mesh",))


async def run(executor: ProcessExecutor, what: Launch) -> Exit:
    await executor.prepare(what)
    await executor.start(what)
    return await executor.wait(what.task_id)


def log_of(tmp_path: Path, name: str = "t1") -> str:
    return (tmp_path / "tasks" / name / "log").read_text()


@pytest.mark.parametrize(("script", "code"), [("exit 0", 0), ("exit 7", 7), ("kill -9 $$", 137), ("kill $$", 143)])
async def test_a_task_ends_with_its_exit_code(executor: ProcessExecutor, script: str, code: int) -> None:
    assert await run(executor, launch("sh", "-c", script)) == Exit(code)


async def test_a_task_sees_a_world_of_its_own(executor: ProcessExecutor, tmp_path: Path) -> None:
    script = (
        "hostname; cat /etc/resolv.conf /etc/hostname; ls /sys/class/net >/dev/null; ip -o link | wc -l; ps ax | wc -l"
    )
    assert await run(executor, launch("sh", "-c", script)) == Exit(0)
    lines = log_of(tmp_path).splitlines()
    assert lines[:5] == ["api.1", "nameserver 10.1.0.1", "search web.mesh", "options ndots:1", "api.1"]
    assert lines[5] == "1"  # lo and nothing else
    assert int(lines[6]) < 10  # its own processes only


async def test_environment_workdir_and_user_are_as_asked(executor: ProcessExecutor, tmp_path: Path) -> None:
    what = launch("sh", "-c", "echo $COLOUR $HOSTNAME; pwd; id -un; id -gn", env={"COLOUR": "red"}, workdir="/tmp",
                  user="nobody")  # fmt: skip
    assert await run(executor, what) == Exit(0)
    assert log_of(tmp_path).split() == ["red", "api.1", "/tmp", "nobody", "nogroup"]


async def test_a_root_file_system_of_its_own(executor: ProcessExecutor, tmp_path: Path) -> None:
    root = tmp_path / "root"
    (root / "bin").mkdir(parents=True)
    (root / "bin" / "busybox").write_bytes(Path("/bin/busybox").read_bytes())
    (root / "bin" / "busybox").chmod(0o755)
    what = launch("/bin/busybox", "sh", "-c", "/bin/busybox ls /; /bin/busybox cat /etc/hostname", rootfs=str(root))
    assert await run(executor, what) == Exit(0)
    assert log_of(tmp_path).split() == ["bin", "dev", "etc", "proc", "api.1"]


async def test_stop_sends_the_signal_and_kills_what_does_not_listen(executor: ProcessExecutor, tmp_path: Path) -> None:
    polite = launch("sh", "-c", "trap 'echo bye; exit 3' TERM; while :; do sleep 0.05; done")
    await executor.prepare(polite)
    await executor.start(polite)
    await asyncio.sleep(0.2)
    await executor.stop("t1", "SIGTERM", 5)
    assert await executor.wait("t1") == Exit(3)
    assert log_of(tmp_path) == "bye\n"
    deaf = launch("sh", "-c", "trap '' TERM; while :; do sleep 0.05; done", name="t2")
    await executor.prepare(deaf)
    await executor.start(deaf)
    await asyncio.sleep(0.2)
    began = time.monotonic()
    await executor.stop("t2", "SIGTERM", 0.3)
    assert 0.2 < time.monotonic() - began < 3
    assert await executor.wait("t2") == Exit(137)


async def test_a_task_with_the_default_action_for_sigterm_ends_by_it(executor: ProcessExecutor) -> None:
    what = launch("sleep", "1000")
    await executor.prepare(what)
    await executor.start(what)
    await executor.stop("t1", "SIGTERM", 5)
    assert await executor.wait("t1") == Exit(143)


@pytest.mark.parametrize(
    ("what", "sentence"),
    [
        (launch("no-such-command"), 'command "no-such-command" not found on this node'),
        (launch("true", rootfs="/no/such/root"), "root file system /no/such/root does not exist on this node"),
    ],
)
async def test_what_cannot_be_prepared_is_said(executor: ProcessExecutor, what: Launch, sentence: str) -> None:
    with pytest.raises(ExecutorError, match=sentence):
        await executor.prepare(what)


@pytest.mark.parametrize(
    ("what", "sentence"),
    [
        (launch("true", user="nobody-of-that-name"), "nobody-of-that-name"),
        (launch("true", workdir="/no/such/dir"), "No such file|not found"),
    ],
)
async def test_what_cannot_be_started_is_said(executor: ProcessExecutor, what: Launch, sentence: str) -> None:
    await executor.prepare(what)
    with pytest.raises(ExecutorError, match=sentence):
        await executor.start(what)


async def test_a_new_daemon_finds_running_ended_and_prepared_tasks(executor: ProcessExecutor, tmp_path: Path) -> None:
    for name, script in (("t1", "sleep 1000"), ("t2", "exit 4")):
        await executor.prepare(launch("sh", "-c", script, name=name))
        await executor.start(launch("sh", "-c", script, name=name))
    await executor.wait("t2")
    await executor.prepare(launch("true", name="t3"))
    (tmp_path / "tasks" / "t4").mkdir()  # a crash in the middle of preparing
    fresh = ProcessExecutor(tmp_path, netns_dir=str(tmp_path / "netns"))
    found = {t.task_id: t for t in await fresh.adopt()}
    assert set(found) == {"t1", "t2", "t3"}
    assert found["t1"].pid is not None
    assert found["t1"].exit is None
    assert found["t2"].exit == Exit(4)
    assert (found["t3"].pid, found["t3"].exit) == (None, None)
    assert await fresh.start(launch("sh", "-c", "sleep 1000", name="t1")) == found["t1"].pid
    waiting = asyncio.get_running_loop().create_task(fresh.wait("t1"))
    await fresh.stop("t1", "SIGTERM", 5)
    assert await waiting == Exit(143)
    await fresh.remove("t4")


async def test_a_task_killed_with_its_shim_is_lost_and_said_so(executor: ProcessExecutor, tmp_path: Path) -> None:
    what = launch("sleep", "1000")
    await executor.prepare(what)
    init = await executor.start(what)
    shim = int(Path(f"/proc/{init}/stat").read_text().rpartition(")")[2].split()[1])
    os.kill(shim, signal.SIGKILL)
    with contextlib.suppress(ProcessLookupError):
        os.kill(init, signal.SIGKILL)
    assert await executor.wait("t1") == LOST


async def test_the_shim_lives_on_when_the_process_that_started_it_is_killed(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root")
    script = (
        "import asyncio,sys,os,signal;from pathlib import Path\n"
        "from mesh.executor.process import ProcessExecutor\n"
        "from mesh.executor.protocol import Launch\n"
        "from control.model import TaskSpec,ProcessSpec\n"
        "e=ProcessExecutor(Path(sys.argv[1]),netns_dir=sys.argv[1]+'/netns')\n"
        "l=Launch('t1','api',1,'api.1',TaskSpec(process=ProcessSpec(command=('sleep','1000'))),(),())\n"
        "async def go():\n"
        "  await e.prepare(l); print(await e.start(l),flush=True); os.kill(os.getpid(),signal.SIGKILL)\n"
        "asyncio.run(go())\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, check=False, timeout=30
    )
    assert done.returncode == -9, done.stderr
    init = int(done.stdout)
    executor = ProcessExecutor(tmp_path, netns_dir=str(tmp_path / "netns"))
    (found,) = await executor.adopt()
    assert (found.pid, found.exit) == (init, None)
    await executor.stop("t1", "SIGTERM", 5)
    await executor.remove("t1")
    subprocess.run(["umount", str(tmp_path / "netns")], check=False, capture_output=True)


async def test_limits_are_set_in_the_tasks_groups(executor: ProcessExecutor, tmp_path: Path) -> None:
    limits = Resources(cpus=0.5, memory_bytes=64 << 20, pids=20)
    what = launch("sh", "-c", "cat /proc/self/cgroup", limits=limits)
    assert await run(executor, what) == Exit(0)
    assert "meshd/t1" in log_of(tmp_path)
    await executor.remove("t1")
    assert not list(Path("/sys/fs/cgroup").glob("*/meshd/t1"))


async def test_remove_takes_everything_and_may_be_repeated(executor: ProcessExecutor, tmp_path: Path) -> None:
    await run(executor, launch("true"))
    await executor.remove("t1")
    await executor.remove("t1")
    assert list((tmp_path / "tasks").iterdir()) == []
    assert list((tmp_path / "netns").iterdir()) == []


async def test_output_is_bounded(executor: ProcessExecutor, tmp_path: Path) -> None:
    assert await run(executor, launch("sh", "-c", "head -c 25000000 /dev/zero")) == Exit(0)
    sizes = [(tmp_path / "tasks" / "t1" / name).stat().st_size for name in ("log", "log.1")]
    assert max(sizes) <= 10 << 20
