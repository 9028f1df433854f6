"""Hosts that look like machines, die like machines, and leave nothing."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from mesh.executor import records
from mesh.lab.lab import CLIENT, Daemon, Lab, LabConflictError, LabError, LabMissingError, LabRefusedError

pytestmark = [pytest.mark.root, pytest.mark.skipif(os.geteuid() != 0, reason="needs root")]

SLEEP = Daemon(("sleep", "infinity"))


def said(lab: Lab, host: str, script: str) -> list[str]:
    """The words that a script prints in a host."""
    done = lab.exec(host, ["sh", "-c", script])
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def until(condition: Callable[[], object], timeout_s: float = 10.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it does not come"
        time.sleep(0.01)


def processes(marker: str) -> list[str]:
    """The command lines of this machine's processes in which `marker` occurs."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except OSError:
                continue
            found += [f"{entry.name} {command}"] if marker in command else []
    return found


# --- what a host is -------------------------------------------------------------------------------------------------


def test_hosts_have_names_processes_and_directories_of_their_own(lab: Lab) -> None:
    for host in ("h1", "h2"):
        assert said(lab, host, "hostname; cat /etc/hostname") == [host, host]
        assert said(lab, host, "cat /proc/1/comm")[0].startswith("python")
        assert len(said(lab, host, "ls -d /proc/[0-9]*")) < 8
        assert said(lab, host, "ls /run/netns 2>/dev/null || echo none") == ["none"]
        assert said(lab, host, "ls /sys/class/net") == ["eth0", "lo"]
    said(lab, "h1", "mkdir -p /run/meshd; echo mine > /run/meshd/x; echo mine > /var/lib/meshd/x")
    assert said(lab, "h2", "ls /run/meshd/x /var/lib/meshd/x 2>/dev/null | wc -l") == ["0"]
    assert not Path("/run/meshd/x").exists()
    assert not Path("/var/lib/meshd/x").exists()
    assert (lab.directory / "h1/disk/x").read_text() == "mine\n"
    others = {name for name in os.listdir("/var/lib") if not name.startswith(("mesh", "."))}
    assert others <= set(said(lab, "h1", "ls /var/lib"))


def test_hosts_have_no_name_server_and_know_each_other(lab: Lab) -> None:
    assert said(lab, "h1", "grep -c ^nameserver /etc/resolv.conf || true") == ["0"]
    assert said(lab, "h1", "getent ahostsv4 h2 | head -n1")[0] == "10.66.0.12"


def test_the_underlay_joins_the_hosts_and_the_outside(lab: Lab) -> None:
    for source, target in (("h1", "10.66.0.12"), ("h2", "10.66.0.1"), (CLIENT, "10.66.0.12"), ("h1", "198.51.100.2")):
        assert lab.exec(source, ["ping", "-c1", "-W2", target]).returncode == 0, (source, target)
    assert lab.exec("h1", ["ping", "-c1", "-W1", "198.51.100.77"]).returncode != 0


def test_a_host_sees_the_clients_address(lab: Lab) -> None:
    command, environment = lab.command("h1", [sys.executable, "-m", "mesh.lab.whoami", "--port", "8080"])
    server = subprocess.Popen(command, env=environment | {"PYTHONPATH": os.getcwd()})
    try:
        ask = ["curl", "-s", "--retry-connrefused", "--retry", "20", "--retry-delay", "0", "http://10.66.0.11:8080/x"]
        answer = lab.exec(CLIENT, ask).stdout
    finally:
        lab.exec("h1", ["sh", "-c", "kill $(pgrep -f mesh.lab.whoami)"])
        server.wait(10)
    fields = dict(field.split("=") for field in answer.split())
    assert (fields["host"], fields["address"], fields["path"]) == ("h1", "10.66.0.11", "/x")
    assert fields["client"].startswith("198.51.100.2:")


def test_a_host_has_control_groups_of_its_own_which_go_with_it(lab: Lab) -> None:
    pids = "/sys/fs/cgroup" if Path("/sys/fs/cgroup/cgroup.controllers").exists() else "/sys/fs/cgroup/pids"
    assert said(lab, "h1", f"ls -d {pids}/*/ 2>/dev/null | wc -l") == ["0"]
    said(
        lab, "h1", f"mkdir -p {pids}/meshd/t1; sleep infinity >/dev/null 2>&1 & echo $! > {pids}/meshd/t1/cgroup.procs"
    )
    assert said(lab, "h2", f"ls -d {pids}/*/ 2>/dev/null | wc -l") == ["0"]
    (group,) = Path("/sys/fs/cgroup").glob(f"**/mesh-lab.{lab.name}.h1/meshd/t1")
    lab.kill("h1")
    assert not group.exists()
    assert not list(Path("/sys/fs/cgroup").glob(f"**/mesh-lab.{lab.name}.h1"))


# --- power ----------------------------------------------------------------------------------------------------------


def test_a_host_that_loses_power_is_gone_at_once_but_for_its_disk(lab: Lab) -> None:
    marker = f"31415.{os.getpid()}"
    said(lab, "h1", f"setsid sleep {marker} >/dev/null 2>&1 & echo kept > /var/lib/meshd/file; echo lost > /run/file")
    said(lab, "h1", "ip netns add inner && ip link add v0 type veth peer name v1 netns inner")
    assert processes(marker)
    lab.kill("h1")
    assert not processes(marker)
    first = lab.status()[0]
    assert (first.name, first.state, first.daemon, first.pid) == ("h1", "off", "stopped", 0)
    assert lab.exec("h2", ["ping", "-c1", "-W1", "10.66.0.11"]).returncode != 0
    with pytest.raises(LabError, match=f"h1 is off: mesh lab --name {lab.name} start h1"):
        lab.exec("h1", ["true"])
    with pytest.raises(LabConflictError, match="h1 is off already"):
        lab.kill("h1")
    lab.start("h1")
    assert said(lab, "h1", "cat /var/lib/meshd/file; ls /run/file /run/netns 2>/dev/null; ls /sys/class/net") == [
        "kept", "eth0", "lo",
    ]  # fmt: skip
    assert lab.exec("h2", ["ping", "-c1", "-W2", "10.66.0.11"]).returncode == 0
    assert lab.status()[0].daemon == "running"
    with pytest.raises(LabConflictError, match="h1 is up already"):
        lab.start("h1")


def test_signals_from_inside_do_not_end_a_host(lab: Lab) -> None:
    for number in ("TERM", "INT", "HUP", "KILL"):
        lab.exec("h1", ["kill", f"-{number}", "1"])
    assert said(lab, "h1", "echo alive") == ["alive"]


def test_orphans_in_a_host_are_reaped(lab: Lab) -> None:
    said(lab, "h1", "for i in 1 2 3; do (sleep 0.05 &); done")
    until(lambda: said(lab, "h1", "ps -eo stat=,comm= | grep -E 'Z|sleep 0' | wc -l") == ["0"])


def test_a_command_that_takes_too_long_is_ended_inside(lab: Lab) -> None:
    marker = f"27182.{os.getpid()}"
    with pytest.raises(subprocess.TimeoutExpired):
        lab.exec("h1", ["sleep", marker], timeout=0.3)
    until(lambda: not processes(marker))


# --- daemons --------------------------------------------------------------------------------------------------------


def test_a_daemon_can_be_killed_started_and_restarted_alone(lab: Lab) -> None:
    first = lab.daemon_pid("h1")
    lab.kill_daemon("h1")
    assert lab.status()[0].state == "up"
    assert lab.daemon_pid("h1") is None
    with pytest.raises(LabConflictError, match="no daemon runs in h1"):
        lab.kill_daemon("h1")
    lab.start_daemon("h1")
    second = lab.daemon_pid("h1")
    with pytest.raises(LabConflictError, match="runs already"):
        lab.start_daemon("h1")
    lab.restart_daemon("h1")
    assert None not in (first, second, lab.daemon_pid("h1"))
    assert len({first, second, lab.daemon_pid("h1")}) == 3
    assert said(lab, "h1", f"ps -o ppid= -p {lab.daemon_pid('h1')}") == ["1"]


def test_a_daemon_is_up_when_it_answers(tmp_path: Path) -> None:
    """Its socket is there from the last time, but nobody listens yet."""
    script = (
        "import socket, time; print('{host} begins', flush=True)\n"
        "s = socket.socket(socket.AF_UNIX); s.bind('/run/s'); time.sleep(0.3); s.listen(); print('ready', flush=True)\n"
        "time.sleep(1000)"
    )
    lab = Lab(f"answers-{os.getpid()}", tmp_path)
    try:
        lab.up(1, Daemon((sys.executable, "-c", script), "/run/s"))
        assert lab.log("h1").read_text() == "h1 begins\nready\n"
        assert said(lab, "h1", "cat /proc/$$/environ | tr '\\0' '\\n' | grep -c ^MESH || true") == ["0"]
    finally:
        lab.down()


def test_a_daemon_that_does_not_come_up_is_quoted_and_nothing_is_left(tmp_path: Path) -> None:
    lab = Lab(f"broken-{os.getpid()}", tmp_path / "labs")
    command = ("sh", "-c", "echo first; sleep 0.1; echo the reason >&2; exit 1")
    with pytest.raises(LabError, match="the daemon does not come up in h1: the reason"):
        lab.up(2, Daemon(command, "/run/never"))
    assert not (tmp_path / "labs").exists()
    assert not processes(str(tmp_path))
    assert not list(Path("/sys/fs/cgroup").glob(f"**/mesh-lab.{lab.name}.*"))


# --- sentences ------------------------------------------------------------------------------------------------------


def test_what_cannot_be_done_is_said_in_a_sentence(lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(LabConflictError, match=f'lab "{lab.name}" is up already, .*mesh lab --name {lab.name} down'):
        lab.up(1, SLEEP)
    for act in (lab.kill, lab.start, lab.kill_daemon, lab.restart_daemon):
        with pytest.raises(LabMissingError, match=f'lab "{lab.name}" has no host "h9": there are h1, h2'):
            act("h9")
    with pytest.raises(LabMissingError, match='has no host "switch": there are h1, h2, client'):
        lab.exec("switch", ["true"])
    with pytest.raises(LabMissingError, match='there is no lab "lab": mesh lab up'):
        Lab(root=tmp_path).status()
    with pytest.raises(LabError, match="a lab has 1 to 20 hosts, not 21"):
        Lab(root=tmp_path).up(21)
    for name in ("", "A", "a/b", "..", "x" * 32):
        with pytest.raises(LabError, match="is no name for a lab"):
            Lab(name)
    assert lab.exec("h1", ["no-such-command"]).returncode == 127
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(LabRefusedError, match="a lab needs root"):
        Lab(root=tmp_path).up(1)
    assert list(tmp_path.iterdir()) == []


# --- the end --------------------------------------------------------------------------------------------------------


def test_down_may_be_repeated_and_spares_whom_it_does_not_know(tmp_path: Path) -> None:
    lab = Lab(f"spare-{os.getpid()}", tmp_path / "labs")
    lab.down()
    lab.up(1, SLEEP)
    with subprocess.Popen(["sleep", "1000"]) as bystander:  # has the pid of a host of long ago
        directory = lab.directory / "h2"
        directory.mkdir()
        records.write(str(directory / "init.json"), records.identify(bystander.pid) | {"start": 1})
        lab.down()
        lab.down()
        assert bystander.poll() is None
        bystander.kill()
    assert not (tmp_path / "labs").exists()


def test_two_labs_live_side_by_side(lab: Lab, tmp_path: Path) -> None:
    other = Lab(f"other-{os.getpid()}", tmp_path)
    try:
        other.up(1, SLEEP)
        assert other.exec("h1", ["ping", "-c1", "-W1", "10.66.0.12"]).returncode != 0
    finally:
        other.down()
    assert said(lab, "h1", "echo alive; ls -d /var/lib/meshd") == ["alive", "/var/lib/meshd"]
