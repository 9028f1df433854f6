"""What the engine is asked for: bodies, command lines, gates and look-ups, without an engine."""

from __future__ import annotations

import os
import platform
import struct
import subprocess
import threading
from pathlib import Path

import pytest

from control.model import HealthCheck, Resources
from mesh.executor.docker import gate, plan
from mesh.executor.docker.engine import local_socket
from mesh.executor.docker.lookup import LINKS_MAX, Program, find_program, resolve
from mesh.executor.docker.plan import Image, State
from mesh.executor.protocol import Exit
from tests.mesh.executor.engines import container

IMAGE = Image("sha256:1", entrypoint=("entry",), command=("default",), env=("PATH=/opt/bin:relative", "A=b=c"))


@pytest.mark.parametrize(
    ("launch", "words"),
    [
        (container(), ("entry", "default")),
        (container("own"), ("entry", "own")),
        (container(command=("other",)), ("other",)),
        (container("own", command=("other",)), ("other", "own")),
    ],
)
def test_the_command_line(launch: plan.Launch, words: tuple[str, ...]) -> None:
    assert launch.spec.container is not None
    assert plan.words(launch.spec.container, IMAGE) == words


def test_a_body_is_of_the_image_s_id_without_network_and_restarts() -> None:
    launch = container("x", env={"A": "1"}, limits=Resources(cpus=0.5, memory_bytes=1 << 20, pids=7))
    assert launch.spec.container is not None
    body = plan.body(launch, launch.spec.container, IMAGE, "/d", "/state")
    assert body["Image"] == "sha256:1"
    assert body["Env"] == ["PATH=/opt/bin:relative", "A=1", "HOSTNAME=api.1"]
    assert body["Entrypoint"] == ["/.mesh/gate"]
    assert body["Labels"] == {
        "com.meshd.task": "t1", "com.meshd.state-dir": "/state", "com.meshd.service": "api",
    }  # fmt: skip
    host = body["HostConfig"]
    assert host["NetworkMode"] == "none"
    assert host["RestartPolicy"] == {"Name": "no"}
    assert (host["NanoCpus"], host["Memory"], host["MemorySwap"], host["PidsLimit"]) == (5 * 10**8, 1 << 20, 1 << 20, 7)
    assert "LogConfig" not in host
    assert plan.search_path(launch, launch.spec.container, IMAGE) == ("/opt/bin",)


def test_containers_without_networks_have_no_name_server() -> None:
    launch = container("x", hosts=("10.0.0.9 store",))
    assert launch.spec.container is not None
    bare = plan.Launch("t1", "api", 1, "api.1", launch.spec, (), ())
    files = plan.files(bare, launch.spec.container)
    assert files["resolv.conf"] == ""
    assert files["hosts"].endswith("\n10.0.0.9 store\n")


@pytest.mark.parametrize(
    ("said", "check"),
    [
        ({}, None),
        ({"Test": []}, None),
        ({"Test": ["NONE"]}, None),
        ({"Test": ["CMD"]}, None),
        ({"Test": ["NEW", "x"]}, None),
        ({"Test": ["CMD", "a", "b"]}, HealthCheck(command=("a", "b"), interval_s=30, timeout_s=30, retries=3)),
        (
            {"Test": ["CMD-SHELL", "a b"], "Interval": 5 * 10**8, "Timeout": 10**9, "Retries": 7, "StartPeriod": 10**9},
            HealthCheck(command=("/bin/sh", "-c", "a b"), interval_s=0.5, timeout_s=1, retries=7, start_period_s=1),
        ),
    ],
)
def test_healthchecks_of_images(said: dict[str, object], check: HealthCheck | None) -> None:
    assert plan.read_health(said) == check


def test_how_containers_end() -> None:
    state = State("c", running=False, pid=0, exit_code=3, oom_killed=False, error="", labels={})
    assert plan.how_it_ended(state) == Exit(3)
    assert plan.how_it_ended(None).code == 137
    killed = State("c", running=False, pid=0, exit_code=0, oom_killed=True, error="", labels={})
    assert plan.how_it_ended(killed) == Exit(137, "it was killed for want of memory")


def test_only_a_socket_of_this_machine_is_taken_from_the_environment() -> None:
    assert local_socket({}) == "/var/run/docker.sock"
    assert local_socket({"DOCKER_HOST": "unix:///run/other.sock"}) == "/run/other.sock"
    assert local_socket({"DOCKER_HOST": "tcp://10.0.0.1:2375"}) == "/var/run/docker.sock"


# --- the gate -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("machine", "number"), [("x86_64", 62), ("aarch64", 183)])
def test_the_gate_is_an_executable_for_its_machine(machine: str, number: int) -> None:
    made = gate.program(machine)
    assert made is not None
    assert made[:6] == b"\x7fELF\x02\x01"
    kind, wanted, _, entry, headers = struct.unpack_from("<HHIQQ", made, 16)
    assert (kind, wanted, headers) == (2, number, 64)
    assert entry - 0x400000 == 120
    assert made.endswith(gate.DOOR.encode() + b"\0")
    assert gate.program("s390x") is None


@pytest.mark.root
@pytest.mark.skipif(platform.machine() not in gate.CODE, reason="there is no gate for this machine")
@pytest.mark.parametrize(("path", "code"), [("/bin/echo", 0), ("/no/thing", 127), ("/etc/passwd", 126)])
def test_the_gate_becomes_the_program(tmp_path: Path, path: str, code: int) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root")
    assert gate.make(tmp_path / "gate", platform.machine())
    assert not gate.knock(tmp_path / "gate")
    # In a root directory of its own view, where the gate is at its place.
    script = """
        mount -t tmpfs none /mnt && mkdir /mnt/.mesh && mount --bind "$0" /mnt/.mesh
        for d in bin lib lib64 usr etc; do test -e /$d && mkdir /mnt/$d && mount --rbind /$d /mnt/$d; done
        exec chroot /mnt /.mesh/gate argv0 word
    """
    command = ["unshare", "--mount", "sh", "-c", script, str(tmp_path / "gate")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env={"PATH": "/bin:/usr/bin:/sbin:/usr/sbin"}) as process:
        for _ in range(1000):
            if gate.knock(tmp_path / "gate"):
                break
            threading.Event().wait(0.01)
        assert gate.let_through(tmp_path / "gate", path)
        assert process.communicate(timeout=10)[0] == (b"word\n" if code == 0 else b"")
        assert process.returncode == code
    assert not gate.let_through(tmp_path / "gate", path), "the door is closed for ever"


def test_a_message_that_comes_twice_is_read_once(tmp_path: Path) -> None:
    assert gate.make(tmp_path, "x86_64")
    door = os.open(tmp_path / "door", os.O_RDWR)
    threads = [threading.Thread(target=gate.let_through, args=(tmp_path, "/bin/sh")) for _ in range(2)]
    for thread in threads:
        thread.start()
    read = os.read(door, 4095)
    while read.count(b"\0") < 2:
        read += os.read(door, 4095)
    os.close(door)
    for thread in threads:
        thread.join()
    assert read.partition(b"\0")[0] == b"/bin/sh"
    assert not gate.knock(tmp_path)


# --- looking a command up -------------------------------------------------------------------------------------------


def _executable(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("")
    path.chmod(0o755)


def test_a_command_is_looked_for_below_its_root_only(tmp_path: Path) -> None:
    root = tmp_path / "root"
    _executable(root / "usr/bin/tool")
    (root / "bin").symlink_to("/usr/bin")  # an absolute link of the container
    (root / "usr/bin/alias").symlink_to("../../../../../usr/bin/tool")  # does not lead out
    (root / "usr/bin/text").write_text("")
    (root / "usr/bin/loop").symlink_to("loop")
    (root / "usr/bin/outside").symlink_to(str(tmp_path / "secret"))
    _executable(tmp_path / "secret")
    search = ("/sbin", "/bin")
    assert find_program(str(root), "tool", search) == Program("/bin/tool")
    assert find_program(str(root), "alias", search) == Program("/bin/alias")
    assert find_program(str(root), "/usr/bin/tool", ()) == Program("/usr/bin/tool")
    assert find_program(str(root), "./tool", ()) == Program("./tool")
    assert find_program(str(root), "text", search).error == "cannot be executed"
    for missing in ("none", "loop", "outside", "/usr"):
        assert find_program(str(root), missing, search).path == ""
    assert resolve(str(root), "/bin/../bin/./tool") == f"{root}/usr/bin/tool"
    assert LINKS_MAX == 40
