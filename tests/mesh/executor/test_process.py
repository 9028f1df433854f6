"""Process tasks for real: what a command sees, how it ends, its limits, and a life longer than the daemon's."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from control.model import ContainerSpec, Resources, TaskSpec
from mesh.executor.process import ProcessExecutor
from mesh.executor.protocol import LOST, ExecutorError, Exit, Launch
from mesh.executor.shim import LOG_MAX_BYTES
from tests.mesh.executor.launches import has_run, launch, until

pytestmark = pytest.mark.root


async def run(executor: ProcessExecutor, what: Launch) -> Exit:
    await executor.prepare(what)
    await executor.start(what)
    return await executor.wait(what.task_id)


async def started(executor: ProcessExecutor, what: Launch) -> int:
    await executor.prepare(what)
    return await executor.start(what)


def log_of(tmp_path: Path, name: str = "t1") -> str:
    return (tmp_path / "tasks" / name / "log").read_text()


def until_log(tmp_path: Path, text: str) -> None:
    until(lambda: (tmp_path / "tasks/t1/log").exists() and text in log_of(tmp_path))


def processes(marker: str) -> list[int]:
    """All processes of the machine with `marker` among their arguments."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                arguments = (entry / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            found += [int(entry.name)] if marker.encode() in arguments else []
    return found


# --- what it sees ---------------------------------------------------------------------------------------------------


async def test_a_task_sees_a_world_of_its_own(executor: ProcessExecutor, tmp_path: Path) -> None:
    script = "hostname; cat /etc/resolv.conf /etc/hostname; ls -x /sys/class/net; ip -br link show up; ps ax | wc -l"
    assert await run(executor, launch("sh", "-c", script)) == Exit(0)
    lines = log_of(tmp_path).splitlines()
    assert lines[:5] == ["api.1", "nameserver 10.1.0.1", "search web.mesh", "options ndots:1", "api.1"]
    assert lines[5] == "lo"
    assert lines[6].split()[0] == "lo"  # up
    assert int(lines[7]) < 10  # its own processes only


async def test_run_is_its_own_and_no_namespace_of_others_is_in_sight(executor: ProcessExecutor, tmp_path: Path) -> None:
    await executor.prepare(launch("true", name="t2"))
    script = f"ls -A /run /dev/shm; grep -c {tmp_path}/netns /proc/self/mountinfo; touch /run/mine /dev/shm/mine"
    assert await run(executor, launch("sh", "-c", script)) == Exit(0)
    assert log_of(tmp_path).split() == ["/dev/shm:", "/run:", "0"]
    assert not Path("/run/mine").exists()
    assert not Path("/dev/shm/mine").exists()


async def test_a_running_task_does_not_keep_the_namespace_of_a_removed_one(executor: ProcessExecutor) -> None:
    other = await executor.prepare(launch("true", name="t2"))
    init = await started(executor, launch("sleep", "1000"))
    inside = ["nsenter", "-t", str(init), "-n"]
    subprocess.run([*inside, "ip", "link", "add", "v0", "type", "veth", "peer", "v1"], check=True)
    with open(other.netns) as file:
        command = ["ip", "link", "set", "v1", "netns", f"/proc/{os.getpid()}/fd/{file.fileno()}"]
        subprocess.run([*inside, *command], check=True)
    await executor.remove("t2")

    def veth_is_there() -> bool:
        return b"v0" in subprocess.run([*inside, "ip", "link"], capture_output=True, check=True).stdout

    until(lambda: not veth_is_there())  # it goes with its peer's namespace, which the kernel takes down by and by


async def test_environment_workdir_and_user_are_as_asked(executor: ProcessExecutor, tmp_path: Path) -> None:
    what = launch("sh", "-c", "echo $COLOUR $HOSTNAME $HOME; pwd; id -un; id -gn; id -G; umask",
                  env={"COLOUR": "red"}, workdir="/tmp", user="nobody")  # fmt: skip
    os.environ["SECRET_OF_THE_DAEMON"] = "x"
    try:
        assert await run(executor, what) == Exit(0)
        assert await run(executor, launch("env", name="t2")) == Exit(0)
    finally:
        del os.environ["SECRET_OF_THE_DAEMON"]
    expected = ["red", "api.1", "/nonexistent", "/tmp", "nobody", "nogroup", "65534", "0022"]
    assert log_of(tmp_path).split() == expected
    assert {line.partition("=")[0] for line in log_of(tmp_path, "t2").split()} == {"PATH", "HOSTNAME", "HOME"}


@pytest.mark.parametrize(
    ("user", "ids"), [("", "0:0"), ("1234", "1234:1234"), ("nobody:daemon", "65534:1"), ("7:8", "7:8")]
)
async def test_users_by_name_and_number(executor: ProcessExecutor, tmp_path: Path, user: str, ids: str) -> None:
    assert await run(executor, launch("sh", "-c", "echo $(id -u):$(id -g)", user=user)) == Exit(0)
    assert log_of(tmp_path).strip() == ids


async def test_any_user_may_listen_on_a_low_port(executor: ProcessExecutor) -> None:
    listen = "import socket; socket.create_server(('127.0.0.1', 80))"
    # Not the interpreter of the tests: a clone in /root is nothing that others may look into.
    assert await run(executor, launch("/usr/bin/python3", "-c", listen, user="nobody")) == Exit(0)


async def test_no_descriptor_and_no_ignored_signal_of_the_daemon_is_inherited(
    executor: ProcessExecutor, tmp_path: Path
) -> None:
    with open("/dev/null") as leak:
        os.set_inheritable(leak.fileno(), True)
        what = launch("bash", "-c", "ls /proc/self/fd; grep -E 'Sig(Blk|Ign)' /proc/self/status")
        assert await run(executor, what) == Exit(0)
    *descriptors, _, blocked, _, ignored = log_of(tmp_path).split()
    assert descriptors == ["0", "1", "2", "3"]
    of_libc = 0b11 << 31  # signals 32 and 33 belong to the C library, no program can set them
    assert (int(blocked, 16) & ~of_libc, int(ignored, 16) & ~of_libc) == (0, 0)


async def test_a_root_file_system_of_its_own(executor: ProcessExecutor, tmp_path: Path) -> None:
    root = tmp_path / "root"
    (root / "bin").mkdir(parents=True)
    (root / "bin/busybox").write_bytes(Path("/bin/busybox").read_bytes())
    (root / "bin/busybox").chmod(0o755)
    (root / "etc").mkdir()
    (root / "etc/resolv.conf").symlink_to("/run/elsewhere/resolv.conf")  # as systemd-resolved has it, dangling
    (root / "etc/hostname").write_text("the image's\n")
    script = "b=/bin/busybox; $b ls /; $b cat /etc/hostname; $b head -n1 /etc/resolv.conf; $b wc -l < /proc/mounts"
    assert await run(executor, launch("/bin/busybox", "sh", "-c", script, rootfs=f"{root}/")) == Exit(0)
    *seen, mounts = log_of(tmp_path).split("\n")[:-1]
    assert seen == ["bin", "dev", "etc", "proc", "run", "sys", "api.1", "nameserver 10.1.0.1"]
    assert int(mounts) < 15  # of the machine's own, nothing but its devices
    assert (root / "etc/hostname").read_text() == "the image's\n"
    assert not Path("/run/elsewhere").exists()


# --- how it ends ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("script", "code"), [("exit 0", 0), ("exit 7", 7), ("kill -9 $$", 137), ("kill $$", 143)])
async def test_a_task_ends_with_its_exit_code(executor: ProcessExecutor, script: str, code: int) -> None:
    assert await run(executor, launch("sh", "-c", script)) == Exit(code)


async def test_stop_sends_the_signal_and_kills_what_does_not_listen(executor: ProcessExecutor, tmp_path: Path) -> None:
    await started(executor, launch("sh", "-c", "trap 'echo bye; exit 3' USR1; echo up; while :; do sleep 0.05; done"))
    until_log(tmp_path, "up")
    await executor.stop("t1", "SIGUSR1", 5)
    assert await executor.wait("t1") == Exit(3)
    assert log_of(tmp_path) == "up\nbye\n"
    marker = f"{os.getpid()}.25"  # a daemon of its own, in a session of its own, that must not survive
    script = f"trap '' TERM; setsid sleep {marker} & while :; do sleep 0.05; done"
    await started(executor, launch("sh", "-c", script, name="t2"))
    until(lambda: processes(marker))
    began = time.monotonic()
    await executor.stop("t2", "SIGTERM", 0.3)
    assert time.monotonic() - began >= 0.3
    assert await executor.wait("t2") == Exit(137)
    assert processes(marker) == []


async def test_the_default_action_of_sigterm_ends_a_task_at_any_moment(executor: ProcessExecutor) -> None:
    """A PID 1 without a handler would not hear it."""
    for name in ("t1", "t2", "t3"):
        await started(executor, launch("sleep", "1000", name=name))
        await executor.stop(name, "SIGTERM", 60)
        assert await executor.wait(name) == Exit(143)


async def test_orphans_are_reaped(executor: ProcessExecutor, tmp_path: Path) -> None:
    what = launch("sh", "-c", "(sleep 0.05 &); (sleep 0.05 &); sleep 0.3; ps -eo stat= | grep -c Z")
    assert await run(executor, what) == Exit(1)  # of grep: none found
    assert log_of(tmp_path) == "0\n"


async def test_a_task_whose_shim_is_killed_dies_with_it_and_is_lost(executor: ProcessExecutor, tmp_path: Path) -> None:
    marker = f"{os.getpid()}.75"
    await started(executor, launch("sleep", marker))
    shim = json.loads((tmp_path / "tasks/t1/shim.json").read_text())["pid"]
    os.kill(shim, signal.SIGKILL)
    assert await executor.wait("t1") == LOST
    until(lambda: not processes(marker))
    (found,) = await executor.adopt()
    assert found.exit == LOST


async def test_a_shim_that_is_asked_to_end_passes_it_on(executor: ProcessExecutor, tmp_path: Path) -> None:
    await started(executor, launch("sh", "-c", "trap 'exit 5' TERM; echo up; while :; do sleep 0.05; done"))
    until_log(tmp_path, "up")
    os.kill(json.loads((tmp_path / "tasks/t1/shim.json").read_text())["pid"], signal.SIGTERM)
    assert await executor.wait("t1") == Exit(5)


async def test_a_record_of_an_earlier_boot_or_process_means_nobody(executor: ProcessExecutor, tmp_path: Path) -> None:
    await started(executor, launch("sleep", "1000"))
    for file, field, value in (("shim.json", "boot", "another"), ("shim.json", "start", 1)):
        path = tmp_path / "tasks/t1" / file
        true = path.read_text()
        path.write_text(json.dumps(json.loads(true) | {field: value}))
        async with asyncio.timeout(5):
            assert await executor.wait("t1") == LOST
        await executor.stop("t1", "SIGKILL", 0)  # must not hit whoever has the pid now
        path.write_text(true)
    (found,) = await executor.adopt()
    assert found.exit is None


# --- refusals -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("what", "sentence"),
    [
        (launch("no-such-command"), 'task api.1: command "no-such-command" not found on this node'),
        (launch("/no/such"), 'task api.1: command "/no/such" not found on this node'),
        (launch("/etc/passwd"), 'task api.1: command "/etc/passwd" cannot be executed on this node'),
        (launch("true", rootfs="/no/root"), "task api.1: root file system /no/root does not exist on this node"),
        (
            Launch("t1", "api", 1, "api.1", TaskSpec(container=ContainerSpec(image="nginx")), (), ()),
            "task api.1: it is a container, and this node runs only processes",
        ),
    ],
)
async def test_what_cannot_be_prepared_is_said(
    executor: ProcessExecutor, what: Launch, sentence: str, tmp_path: Path
) -> None:
    with pytest.raises(ExecutorError) as refused:
        await executor.prepare(what)
    assert str(refused.value) == sentence
    assert not list(tmp_path.glob("tasks/*"))


@pytest.mark.parametrize(
    ("what", "sentence"),
    [
        (launch("true", user="nobody-at-all"), 'task api.1: user "nobody-at-all" does not exist'),
        (launch("true", user="0:no-group"), 'task api.1: group "no-group" does not exist'),
        (launch("true", workdir="/no/dir"), "task api.1: working directory /no/dir does not exist"),
        (launch("./no-such", workdir="/tmp"), 'task api.1: command "./no-such" not found'),
        (launch("./passwd", workdir="/etc"), 'task api.1: cannot run "./passwd": Permission denied'),
    ],
)
async def test_what_cannot_be_started_is_said(executor: ProcessExecutor, what: Launch, sentence: str) -> None:
    await executor.prepare(what)
    for _ in range(2):  # also when it is tried again
        with pytest.raises(ExecutorError) as refused:
            await executor.start(what)
        assert str(refused.value) == sentence
    assert (await executor.wait("t1")).code == 127
    assert (await executor.adopt())[0].exit == Exit(127, sentence.removeprefix("task api.1: "))


# --- limits ---------------------------------------------------------------------------------------------------------


async def test_limits_are_those_of_the_tasks_groups(executor: ProcessExecutor, tmp_path: Path) -> None:
    name = f"limits-{os.getpid()}"
    what = launch("cat", "/proc/self/cgroup", name=name, limits=Resources(cpus=0.5, memory_bytes=64 << 20, pids=20))
    assert await run(executor, what) == Exit(0)
    assert f"meshd/{name}" in log_of(tmp_path, name)
    assert len(list(Path("/sys/fs/cgroup").glob(f"**/meshd/{name}"))) in (1, 3)
    await executor.remove(name)
    assert not list(Path("/sys/fs/cgroup").glob(f"**/meshd/{name}"))


async def test_a_task_that_takes_too_much_memory_is_killed_and_told_why(executor: ProcessExecutor) -> None:
    name = f"memory-{os.getpid()}"
    ended = await run(executor, launch("tail", "/dev/zero", name=name, limits=Resources(memory_bytes=32 << 20)))
    assert ended == Exit(137, "it used more memory than its limit")
    await executor.remove(name)


async def test_a_task_cannot_have_more_processes_than_its_limit(executor: ProcessExecutor) -> None:
    name = f"pids-{os.getpid()}"
    script = "import os\nfor _ in range(20):\n  if not os.fork(): __import__('time').sleep(9)"
    ended = await run(executor, launch(sys.executable, "-c", script, name=name, limits=Resources(pids=10)))
    assert ended.code == 1  # BlockingIOError
    await executor.remove(name)


async def test_output_is_bounded_and_its_end_is_kept(executor: ProcessExecutor, tmp_path: Path) -> None:
    script = "head -c 25000000 /dev/zero; echo the end; echo an error >&2"
    assert await run(executor, launch("sh", "-c", script)) == Exit(0)
    directory = tmp_path / "tasks/t1"
    sizes = [(directory / name).stat().st_size for name in ("log", "log.1")]
    assert all(0 < size <= LOG_MAX_BYTES for size in sizes)
    assert len(list(directory.glob("log*"))) == 2
    assert (directory / "log").read_bytes().endswith(b"the end\nan error\n")


# --- a life longer than the daemon's ---------------------------------------------------------------------------------


async def test_a_new_daemon_finds_running_ended_and_prepared_tasks(executor: ProcessExecutor, tmp_path: Path) -> None:
    running = await started(executor, launch("sleep", "1000"))
    await run(executor, launch("sh", "-c", "exit 4", name="t2"))
    await executor.prepare(launch("true", name="t3"))
    (tmp_path / "tasks" / "t4").mkdir()  # a crash in the middle of preparing
    fresh = ProcessExecutor(tmp_path, netns_dir=str(tmp_path / "netns"))
    found = {t.task_id: t for t in await fresh.adopt()}
    assert {name: (t.pid, t.exit) for name, t in found.items()} == {
        "t1": (running, None),
        "t2": (None, Exit(4)),
        "t3": (None, None),
    }
    assert not (tmp_path / "tasks" / "t4").exists()
    assert await fresh.start(launch("sleep", "1000")) == running
    async with asyncio.TaskGroup() as group:
        waiting = group.create_task(fresh.wait("t1"))
        await asyncio.sleep(0)
        await fresh.stop("t1", "SIGTERM", 5)
    assert waiting.result() == Exit(143)


async def test_a_task_lives_on_when_the_daemon_is_killed(executor: ProcessExecutor, tmp_path: Path) -> None:
    script = (
        "import asyncio, os, signal, sys\n"
        "from pathlib import Path\n"
        "from mesh.executor.process import ProcessExecutor\n"
        "from tests.mesh.executor.launches import launch\n"
        "executor = ProcessExecutor(Path(sys.argv[1]), netns_dir=sys.argv[1] + '/netns')\n"
        "async def main():\n"
        "  await executor.prepare(launch('sleep', '1000'))\n"
        "  print(await executor.start(launch('sleep', '1000')), flush=True)\n"
        "  os.killpg(0, signal.SIGKILL)\n"
        "asyncio.run(main())\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, check=False, timeout=30,
        start_new_session=True,
    )  # fmt: skip
    assert done.returncode == -9, done.stderr
    (found,) = await executor.adopt()
    assert (found.pid, found.exit) == (int(done.stdout), None)
    await executor.stop("t1", "SIGTERM", 5)
    assert await executor.wait("t1") == Exit(143)


async def test_daemons_that_start_a_task_at_the_same_time_start_it_once(
    executor: ProcessExecutor, tmp_path: Path
) -> None:
    what = launch("sh", "-c", f"echo once >> {tmp_path}/runs; exec sleep 1000")
    await executor.prepare(what)
    others = [ProcessExecutor(tmp_path, netns_dir=str(tmp_path / "netns")) for _ in range(4)]
    async with asyncio.TaskGroup() as group:
        starts = [group.create_task(other.start(what)) for other in others]
    assert len({start.result() for start in starts}) == 1
    until(lambda: has_run(tmp_path / "runs"))
    await executor.stop("t1", "SIGTERM", 5)
    assert (tmp_path / "runs").read_text() == "once\n"


async def test_a_half_removed_task_is_not_reported_but_removed(executor: ProcessExecutor, tmp_path: Path) -> None:
    await run(executor, launch("true"))
    (tmp_path / "tasks/t1/launch.json").unlink()  # what a removal does first
    (tmp_path / "tasks/t1/exit.json").unlink()
    assert await executor.adopt() == []
    assert list((tmp_path / "tasks").iterdir()) == list((tmp_path / "netns").iterdir()) == []


async def test_a_task_survives_no_reboot(executor: ProcessExecutor, tmp_path: Path) -> None:
    """After one, directories are there, namespaces and processes are not."""
    for name in ("t1", "t2"):
        await executor.prepare(launch("true", name=name))
    await executor.start(launch("true"))
    await executor.wait("t1")
    (tmp_path / "tasks/t1/exit.json").unlink()
    for name in ("t1", "t2"):
        subprocess.run(["umount", str(tmp_path / "netns" / f"mesh-t-{name}")], check=True)
    (found,) = await executor.adopt()
    assert (found.task_id, found.exit) == ("t1", LOST)
    assert not (tmp_path / "tasks/t2").exists()
    await executor.remove("t1")
    assert list((tmp_path / "netns").iterdir()) == []
