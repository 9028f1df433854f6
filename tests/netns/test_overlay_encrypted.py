"""Encrypted networks on the real kernel: nothing of them in the clear, neither out nor in, whatever happens.

With the kernel's WireGuard where there is one (`make test-vm`), else with wireguard-go.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from ipaddress import IPv4Network, IPv6Address
from pathlib import Path

import pytest

from overlay import names
from overlay.kernel import Kernel, Report
from overlay.keys import KeyFile, told
from overlay.plan import OverlayPlan
from tests.netns.world import Host, Task, World, inside, run

pytestmark = [pytest.mark.root, pytest.mark.hosts(2)]
SECRET, PLAIN = IPv4Network("10.1.0.0/24"), IPv4Network("10.2.0.0/24")
VNI, PLAIN_VNI = 4096, 4097
MARKER = "6d6573682d706c61696e74657874"  # of `ping -p`: "mesh-plaintext"
DAY_S = 86400.0


class Clock:
    """The time of day, which can be put forward."""

    def __init__(self) -> None:
        self.ahead_s = 0.0

    def __call__(self) -> float:
        return time.time() + self.ahead_s  # noqa: TID251 - handshakes are stamped by the kernel's clock


@pytest.fixture
def clock(world: World) -> Clock:
    """Every host with keys of its own, and the network "secret" encrypted."""
    clock = Clock()
    for host in world.hosts:
        world.keys[host.number] = KeyFile(host.directory.parent / f"state{host.number}", clock)
        host.kernel = fresh(world, host, clock)
    world.networks["secret"] = (VNI, SECRET)
    world.encrypted.add("secret")
    return clock


@pytest.fixture
def tasks(world: World, clock: Clock) -> tuple[Task, Task]:
    """A task on each of two hosts."""
    del clock
    made = tuple(world.task(h, "secret", f"10.1.0.{10 + h.number}") for h in world.hosts[:2])
    world.apply()
    one, other = made
    assert ping(one, other, wait_s=10)
    return one, other


def fresh(world: World, host: Host, clock: Clock) -> Kernel:
    """As a new process has it."""
    return Kernel(str(host.directory), host.netns, world.keys.get(host.number), clock)


def ping(source: Task, target: Task, *options: str, wait_s: float = 2.0) -> bool:
    """Whether an answer comes to one of the packets of so many seconds."""
    argv = ["ping", "-c", "1", "-w", f"{wait_s:.0f}", "-i", "0.2", *options, str(target.address)]
    done = subprocess.run(
        ["nsenter", f"--net={source.netns}", *argv], capture_output=True, timeout=wait_s + 10, check=False
    )
    return done.returncode == 0


@contextmanager
def capture(world: World) -> Iterator[Path]:
    """All that passes the port of the first host."""
    file = world.directory / "capture.pcap"
    argv = ["nsenter", f"--net={world.switch}", "tcpdump", "-Z", "root", "--immediate-mode", "-nUi", "h1", "-w", str(file)]
    process = subprocess.Popen(argv, stderr=subprocess.PIPE)
    try:
        assert process.stderr is not None
        assert b"listening" in process.stderr.readline()
        yield file
        time.sleep(0.3)
    finally:
        process.terminate()
        process.communicate(timeout=10)


def test_what_is_on_the_wire_is_wireguard_and_nothing_else(world: World, tasks: tuple[Task, Task]) -> None:
    from scapy.all import UDP, rdpcap  # noqa: PLC0415 - its import takes over a second

    one, other = tasks
    with capture(world) as file:
        for _ in range(3):
            assert ping(one, other, "-p", MARKER[:32])
            assert ping(other, one, "-p", MARKER[:32])
    packets = rdpcap(str(file))
    ports = {packet[UDP].dport for packet in packets if UDP in packet}
    assert ports == {51871}
    assert len([p for p in packets if UDP in p]) >= 12
    raw = file.read_bytes()
    assert bytes.fromhex(MARKER) not in raw
    assert one.address.packed + other.address.packed not in raw, "an inner header"


def test_the_same_capture_finds_the_payload_of_a_plain_network(world: World, tasks: tuple[Task, Task]) -> None:
    del tasks
    world.networks["plain"] = (PLAIN_VNI, PLAIN)
    one, other = (world.task(h, "plain", f"10.2.0.{10 + h.number}") for h in world.hosts[:2])
    world.apply()
    with capture(world) as file:
        assert ping(one, other, "-p", MARKER[:32])
    assert bytes.fromhex(MARKER) in file.read_bytes()


def test_applying_again_changes_nothing_also_from_a_new_process(
    world: World, tasks: tuple[Task, Task], clock: Clock
) -> None:
    one, other = tasks
    for host in world.hosts:
        for kernel in (host.kernel, fresh(world, host, clock)):
            report = kernel.apply(world.plan(host))
            assert (dict(+report.changes), report.errors) == ({}, [])
            assert dict(+kernel.prune(world.plan(host)).changes) == {}
    assert ping(one, other)
