"""Encrypted networks on the real kernel: nothing of them in the clear, neither out nor in, whatever happens.

With the kernel's WireGuard where there is one (`make test-vm`), else with wireguard-go.
"""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address
from pathlib import Path

import pytest

from overlay import names, wireguard
from overlay.kernel import Kernel
from overlay.keys import LINGER_S, OVERLAP_MIN_S, KeyFile
from overlay.plan import OverlayPlan
from overlay.rtnl import Namespace
from tests.netns.crash import killed_after
from tests.netns.world import Host, Task, World, inside, run

pytestmark = [pytest.mark.root, pytest.mark.hosts(2)]
SECRET, PLAIN = IPv4Network("10.1.0.0/24"), IPv4Network("10.2.0.0/24")
VNI, PLAIN_VNI = 4096, 4097
MARKER = "6d6573682d706c61696e74657874"  # of `ping -p`: "mesh-plaintext"
DAY_S = 86400.0
ON_THE_WAY = 15  # packets that may be unanswered when pinging ends, which goes on for 0.2 s after the last step


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
    argv = ["tcpdump", "-Z", "root", "--immediate-mode", "-nUi", "h1", "-w", str(file)]
    process = subprocess.Popen(["nsenter", f"--net={world.switch}", *argv], stderr=subprocess.PIPE)
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
            assert ping(one, other, "-p", MARKER)
            assert ping(other, one, "-p", MARKER)
    packets = rdpcap(str(file))
    ports = {packet[UDP].dport for packet in packets if UDP in packet}
    assert ports == {7947}
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
        assert ping(one, other, "-p", MARKER)
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


# --- closed -------------------------------------------------------------------------------------------------------


def inject(world: World, host: Host, target: Task, port: int = 4789) -> None:
    """Send a host VXLAN frames with a datagram for a task, in the clear, from the switch; to both families."""
    mac = names.router_mac(2 if host.number == 1 else 1)
    code = f"""
from scapy.all import Ether, IP, IPv6, UDP, VXLAN, Raw, sendp, getmacbyip
inner = Ether(src="{mac}", dst="{names.router_mac(host.number)}")/IP(src="10.1.0.77", dst="{target.address}")
frame = UDP(sport=40000, dport={port})/VXLAN(vni={VNI}, flags=8)/inner/UDP(sport=7, dport=9999)/Raw(b"injected")
to = "{_mac(host)}"
for outer in (IP(src="10.66.0.1", dst="{host.address}"),
              IP(src="{names.tunnel_address(3, 0)}", dst="{names.tunnel_address(host.number, 0)}"),
              IPv6(src="fe80::1", dst="{_link_local(host)}")):
    sendp(Ether(dst=to)/outer/frame, iface="h{host.number}", count=3, verbose=False)
"""
    inside(world.switch, sys.executable, "-c", code, timeout_s=60)


def _mac(host: Host) -> str:
    words = inside(host.netns, "ip", "link", "show", "eth0").split()
    return words[words.index("link/ether") + 1]


def _link_local(host: Host) -> str:
    out = inside(host.netns, "ip", "-6", "addr", "show", "dev", "eth0", "scope", "link").split()
    return out[out.index("inet6") + 1].partition("/")[0]


@contextmanager
def heard(task: Task) -> Iterator[list[str]]:
    """What reaches a task on UDP port 9999, by tcpdump; in the list afterwards."""
    argv = ["tcpdump", "-Z", "root", "--immediate-mode", "-lni", "eth0", "udp port 9999"]
    process = subprocess.Popen(
        ["nsenter", f"--net={task.netns}", *argv], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    found: list[str] = []
    try:
        assert process.stderr is not None
        while "listening" not in process.stderr.readline():
            pass
        yield found
        time.sleep(0.5)
    finally:
        process.terminate()
        found += [line for line in process.communicate(timeout=10)[0].splitlines() if line]


def test_cleartext_vxlan_of_a_foreign_host_reaches_no_task(world: World, tasks: tuple[Task, Task]) -> None:
    one, _ = tasks
    with heard(one) as found:
        inject(world, world.hosts[0], one)
    assert found == []


def test_the_same_frames_reach_the_task_of_a_plain_network(world: World, clock: Clock) -> None:
    del clock
    world.encrypted.clear()
    one = world.task(world.hosts[0], "secret", "10.1.0.11")
    world.apply()
    with heard(one) as found:
        inject(world, world.hosts[0], one)
    assert len(found) >= 3, "those to the host's own address on IPv4"


def take_routes(world: World) -> None:
    for host in world.hosts:
        inside(crypt(host), "ip", "route", "flush", "table", "main")


def take_devices_down(world: World) -> None:
    for host in world.hosts:
        inside(crypt(host), "ip", "link", "set", "mesh-wg0", "down")


def take_devices(world: World) -> None:
    for host in world.hosts:
        inside(crypt(host), "ip", "link", "del", "mesh-wg0")


def take_namespaces(world: World) -> None:
    for host in world.hosts:
        run("umount", crypt(host))
        Path(crypt(host)).unlink()


def crypt(host: Host) -> str:
    return str(host.directory / names.ENCRYPTION_NETNS)


DAMAGES = [take_routes, take_devices_down, take_devices, take_namespaces]


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_what_others_break_sends_nothing_in_the_clear_and_is_repaired(
    world: World, tasks: tuple[Task, Task], clock: Clock, damage: Callable[[World], None]
) -> None:
    one, other = tasks
    # The host has a way to everywhere, and also to the addresses inside.
    inside(world.hosts[0].netns, "ip", "route", "add", "169.254.0.0/16", "dev", "eth0")
    with capture(world) as file:
        damage(world)
        answered = ping(one, other, "-p", MARKER)
    assert answered == (damage is take_namespaces), "which live on while a process has them open"
    assert_nothing_of_it(file, one, other)
    for host in world.hosts:
        host.kernel.close()
        host.kernel = fresh(world, host, clock)
    world.apply()
    assert ping(one, other, wait_s=10)


def test_what_a_living_process_finds_broken_it_repairs(world: World, tasks: tuple[Task, Task]) -> None:
    one, other = tasks
    for damage in DAMAGES:
        damage(world)
        world.apply()
        assert ping(one, other, wait_s=10), damage.__name__


def assert_nothing_of_it(file: Path, one: Task, other: Task) -> None:
    from scapy.all import UDP, rdpcap  # noqa: PLC0415

    raw = file.read_bytes()
    assert bytes.fromhex(MARKER) not in raw
    assert one.address.packed + other.address.packed not in raw
    assert {packet[UDP].dport for packet in rdpcap(str(file)) if UDP in packet} <= {7947, 7948}


def test_from_its_first_moment_nothing_is_in_the_clear(world: World, clock: Clock) -> None:
    """Tasks that speak while their network is made, node by node, and unmade."""
    del clock
    one, other = (world.task(h, "secret", f"10.1.0.{10 + h.number}") for h in world.hosts[:2])
    with capture(world) as file:
        speak = f"while :; do ping -c 1 -w 1 -p {MARKER} {other.address} >/dev/null 2>&1; done"
        speaker = subprocess.Popen(["nsenter", f"--net={one.netns}", "timeout", "60", "sh", "-c", speak])
        try:
            for host in world.hosts[:2]:
                assert host.kernel.apply(world.plan(host)).errors == []
            assert ping(one, other, wait_s=10)
            empty = [replace(world.plan(h), networks=()) for h in world.hosts[:2]]
            for host, plan in zip(world.hosts, empty, strict=False):
                assert host.kernel.prune(plan).errors == []
        finally:
            speaker.terminate()
            speaker.wait(10)
    assert_nothing_of_it(file, one, other)


def test_a_network_that_is_in_the_clear_is_closed_before_anything_else(world: World, tasks: tuple[Task, Task]) -> None:
    """As an earlier version left it: the flag came while the router was up."""
    one, other = tasks
    world.encrypted.clear()
    world.apply()
    assert ping(one, other)
    world.encrypted.add("secret")
    with capture(world) as file:
        host = world.hosts[0]
        host.kernel.apply(world.plan(host))
        assert not ping(one, other, "-p", MARKER), "the other still has it in the clear"
    assert_nothing_of_it(file, one, other)
    world.apply()
    assert ping(one, other, wait_s=10)


# --- without ------------------------------------------------------------------------------------------------------


def test_when_the_daemon_is_dead_traffic_goes_on_encrypted(world: World, tasks: tuple[Task, Task]) -> None:
    one, other = tasks
    for host in world.hosts:
        host.kernel.close()
    with capture(world) as file:
        for _ in range(3):
            assert ping(one, other, "-p", MARKER)
    assert_nothing_of_it(file, one, other)


def test_when_wireguard_dies_with_the_daemon_dead_nothing_is_sent(world: World, tasks: tuple[Task, Task]) -> None:
    one, other = tasks
    for host in world.hosts:
        host.kernel.close()
    take_devices(world)
    with capture(world) as file:
        assert not ping(one, other, "-p", MARKER)
    assert_nothing_of_it(file, one, other)


def test_a_node_without_a_key_is_refused_at_once_and_reached_when_it_has_one(
    world: World, tasks: tuple[Task, Task], clock: Clock
) -> None:
    one, other = tasks
    second = world.hosts[1]
    kept = world.keys.pop(second.number)
    world.hosts[0].kernel.apply(world.plan(world.hosts[0]))
    assert world.hosts[0].kernel.prune(world.plan(world.hosts[0])).errors == []
    with capture(world) as file:
        out = inside(one.netns, "ping", "-c", "1", "-W", "3", "-p", MARKER, str(other.address), check=False)
    assert "Unreachable" in out
    assert_nothing_of_it(file, one, other)
    assert inside(crypt(world.hosts[0]), "ip", "route", "show", "proto", "109").strip() == ""
    world.keys[second.number] = kept
    world.apply()
    assert ping(one, other, wait_s=10)


def test_a_host_without_wireguard_makes_no_router_and_says_why(
    world: World, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wireguard, "kernel_lacks", lambda _: "Protocol not supported")
    monkeypatch.setattr(wireguard, "PROGRAM", "wireguard-none")
    host = world.hosts[0]
    world.networks["plain"] = (PLAIN_VNI, PLAIN)
    world.task(host, "plain", "10.2.0.11")
    task = world.task(host, "secret", "10.1.0.11")
    report = host.kernel.apply(world.plan(host))
    reason = "not in its kernel (Protocol not supported), and wireguard-none is not installed"
    assert report.errors == [
        f"cannot carry network secret, which is encrypted: this machine has no WireGuard: {reason}",
        f"cannot attach task {task.id} to network secret, which is encrypted: this machine has no WireGuard: {reason}",
    ]
    assert not Path(world.router(host, "secret")).exists()
    assert Path(world.router(host, "plain")).exists(), "what is not encrypted is not concerned"
    monkeypatch.undo()
    assert host.kernel.apply(world.plan(host)).errors == []
    assert Path(world.router(host, "secret")).exists()


def test_a_live_router_is_closed_when_wireguard_is_missing(
    world: World, tasks: tuple[Task, Task], clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = tasks
    world.encrypted.clear()
    world.apply()
    world.encrypted.add("secret")
    monkeypatch.setattr(wireguard, "kernel_lacks", lambda _: "Protocol not supported")
    monkeypatch.setattr(wireguard, "PROGRAM", "wireguard-none")
    host = world.hosts[0]
    assert fresh(world, host, clock).apply(world.plan(host)).errors != []
    with capture(world) as file:
        assert not ping(one, other, "-p", MARKER)
    assert_nothing_of_it(file, one, other)


def test_when_the_last_encrypted_network_goes_nothing_of_it_is_left(world: World, tasks: tuple[Task, Task]) -> None:
    del tasks
    before = processes()
    for host in world.hosts:
        assert host.kernel.prune(replace(world.plan(host), networks=())).errors == []
        assert not Path(crypt(host)).exists()
        host.kernel.close()
    deadline = time.monotonic() + 5
    while processes() == before != 0 and time.monotonic() < deadline:
        time.sleep(0.05)
    assert processes() <= max(before - 2, 0), "a process is left"


def processes() -> int:
    """How many of wireguard-go are alive."""
    alive = 0
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            _, _, rest = status.read_text().rpartition(")")
            alive += "(wireguard-go)" in status.read_text() and rest.split()[0] != "Z"
        except OSError:
            continue
    return alive


# --- rotation -----------------------------------------------------------------------------------------------------


@contextmanager
def pinging(source: Task, target: Task) -> Iterator[list[str]]:
    """A hundred packets a second; the program's last lines in the list afterwards."""
    argv = ["ping", "-D", "-O", "-i", "0.01", str(target.address)]
    process = subprocess.Popen(["nsenter", f"--net={source.netns}", *argv], stdout=subprocess.PIPE, text=True)
    said: list[str] = []
    try:
        yield said
    finally:
        time.sleep(0.2)
        process.send_signal(signal.SIGINT)
        said += process.communicate(timeout=10)[0].splitlines()


def answered_all(said: list[str]) -> None:
    """No packet was lost before the last answer; what was sent later was still on its way when the program ended."""
    answered = {int(seq) for seq in re.findall(r"bytes from .* icmp_seq=(\d+)", "\n".join(said))}
    sent = int(re.findall(r"(\d+) packets transmitted", "\n".join(said))[0])
    last = max(answered, default=0)
    assert set(range(1, last + 1)) == answered, [line for line in said if "no answer" in line]
    assert last > 40  # a quick machine has done it within half a second
    assert sent - last <= ON_THE_WAY, "the way is broken at the end"


def step(world: World, *hosts: Host) -> None:
    for host in hosts or world.hosts:
        assert host.kernel.apply(world.plan(host)).errors == []
        assert host.kernel.prune(world.plan(host)).errors == []


def slots(world: World, host: Host) -> list[tuple[int, bool]]:
    return [(key.slot, bool(key.retired_s)) for key in world.keys[host.number].load()]


def met(world: World) -> None:
    """Wait until both see a session by every pair of keys."""
    deadline = time.monotonic() + 15
    while time.monotonic() < deadline:
        step(world)
        seen = [
            peer.handshake_s
            for host in world.hosts
            for slot in names.KEY_SLOTS
            if (device := wireguard.find(host.netns, str(host.directory)).observe(inner(host), slot)) is not None
            for peer in device.peers.values()
        ]
        if all(seen):
            return
        time.sleep(0.2)
    pytest.fail("no session within 15 s")


def inner(host: Host) -> Namespace:
    return Namespace(crypt(host))


def test_a_key_is_replaced_without_losing_a_packet(world: World, tasks: tuple[Task, Task], clock: Clock) -> None:
    """One host's key, seen step by step, while a hundred packets a second go each way."""
    one, other = tasks
    first, second = world.hosts
    with pinging(one, other) as there, pinging(other, one) as back:
        world.keys[first.number] = KeyFile(first.directory.parent / "state1", clock, life_s=0.0)
        first.kernel.close()
        first.kernel = fresh(world, first, clock)
        step(world, first)
        assert slots(world, first) == [(0, False), (1, False)], "the new one is made"
        step(world, second)  # hears of it while its device is not there yet
        step(world, first)
        met(world)
        time.sleep(0.5)
        clock.ahead_s += OVERLAP_MIN_S
        step(world, first)
        assert slots(world, first) == [(0, True), (1, False)], "the old one is told no more"
        step(world, second, first)
        time.sleep(0.5)
        clock.ahead_s += LINGER_S
        world.keys[first.number] = KeyFile(first.directory.parent / "state1", clock)
        first.kernel.close()
        first.kernel = fresh(world, first, clock)
        step(world)
        step(world)
        assert slots(world, first) == [(1, False)]
        assert "mesh-wg0" not in inside(crypt(first), "ip", "-br", "link")
        time.sleep(0.5)
    for said in (there, back):
        answered_all(said)


def test_both_hosts_replace_their_keys_at_the_same_time_without_losing_a_packet(
    world: World, tasks: tuple[Task, Task], clock: Clock
) -> None:
    one, other = tasks
    with pinging(one, other) as said:
        for life_s in (0.0, DAY_S):
            for host in world.hosts:
                world.keys[host.number] = KeyFile(host.directory.parent / f"state{host.number}", clock, life_s)
                host.kernel.close()
                host.kernel = fresh(world, host, clock)
            step(world)
            step(world)
            if life_s == 0.0:
                met(world)
                clock.ahead_s += OVERLAP_MIN_S
        step(world)
        clock.ahead_s += LINGER_S
        step(world)
        step(world)
        assert [slots(world, host) for host in world.hosts] == [[(1, False)], [(1, False)]]
    answered_all(said)


# --- sizes and families -------------------------------------------------------------------------------------------


def test_the_largest_packet_passes_whole_both_ways_and_a_larger_one_is_told_the_mtu(
    world: World, tasks: tuple[Task, Task]
) -> None:
    one, other = tasks
    assert "mtu 1358" in inside(one.netns, "ip", "link", "show", "eth0")
    with capture(world) as file:
        assert ping(one, other, "-M", "do", "-s", str(1358 - 28))
        assert ping(other, one, "-M", "do", "-s", str(1358 - 28))
    assert_whole(file, 1500)
    assert not ping(one, other, "-M", "do", "-s", str(1359 - 28))
    assert ping(one, other, "-s", "4000")


def test_a_smaller_underlay_makes_encrypted_networks_smaller(world: World, tasks: tuple[Task, Task]) -> None:
    one, other = tasks
    for host in world.hosts:
        inside(host.netns, "ip", "link", "set", "eth0", "mtu", "1400")
    world.apply()
    assert "mtu 1262" in inside(one.netns, "ip", "link", "show", "eth0")
    with capture(world) as file:
        assert ping(one, other, "-M", "do", "-s", str(1262 - 28), wait_s=5)
    assert_whole(file, 1400)


def test_an_underlay_of_ipv6_carries_encrypted_networks(world: World, clock: Clock) -> None:
    del clock
    for host in world.hosts:
        own = IPv6Address("fd00:66::10") + host.number
        world.underlays[host.number] = own
        inside(host.netns, "ip", "addr", "add", f"{own}/64", "dev", "eth0", "nodad")
    one, other = (world.task(h, "secret", f"10.1.0.{10 + h.number}") for h in world.hosts)
    world.apply()
    assert ping(one, other, wait_s=10)
    assert "mtu 1358" in inside(one.netns, "ip", "link", "show", "eth0")
    with capture(world) as file:
        assert ping(one, other, "-M", "do", "-s", str(1358 - 28), "-p", MARKER)
    assert_whole(file, 1500)
    assert_nothing_of_it(file, one, other)


def assert_whole(file: Path, mtu: int) -> None:
    """No packet of the underlay is in fragments, and none as large as could be is missing."""
    from scapy.all import IP, UDP, IPv6, IPv6ExtHdrFragment, rdpcap  # noqa: PLC0415

    packets = [p for p in rdpcap(str(file)) if IP in p or IPv6 in p]
    assert not any(p[IP].frag or p[IP].flags.MF for p in packets if IP in p)
    assert not any(IPv6ExtHdrFragment in p for p in packets)
    assert mtu - 40 <= max(len(p) - 14 for p in packets if UDP in p) <= mtu


def test_peers_that_moved_are_found_at_their_new_address(world: World, tasks: tuple[Task, Task]) -> None:
    one, other = tasks
    moved = world.hosts[1]
    inside(moved.netns, "ip", "addr", "del", f"{moved.address}/24", "dev", "eth0")
    inside(moved.netns, "ip", "addr", "add", "10.66.0.99/24", "dev", "eth0")
    inside(moved.netns, "ip", "route", "replace", "default", "via", "10.66.0.1")
    moved.address = IPv4Address("10.66.0.99")
    world.apply()
    assert ping(one, other, wait_s=10)


# --- crashes ------------------------------------------------------------------------------------------------------

# More calls of the kernel than an application has: what never ends would be killed for ever.
MOST_CALLS = 100


@pytest.mark.timeout(300)
def test_killed_after_any_call_of_the_kernel_the_next_process_completes_it(world: World, clock: Clock) -> None:
    """Killed while an encrypted network is made, and while it goes."""
    host = world.hosts[0]
    world.task(host, "secret", "10.1.0.11")
    world.task(world.hosts[1], "secret", "10.1.0.12")
    wanted, nothing = world.plan(host), replace(world.plan(host), peers=(), networks=())

    def apply(plan: OverlayPlan) -> list[str]:
        kernel = fresh(world, host, clock)
        try:
            return [*kernel.apply(plan).errors, *kernel.prune(plan).errors]
        finally:
            kernel.close()

    host.kernel.close()
    for first, second in ((nothing, wanted), (wanted, nothing)):
        for call in range(MOST_CALLS):
            assert apply(first) == []
            was_killed = killed_after(call, lambda plan=second: apply(plan))  # type: ignore[misc]
            assert apply(second) == [], f"killed after call {call}"
            kernel = fresh(world, host, clock)
            again = kernel.apply(second).changes + kernel.prune(second).changes
            kernel.close()
            assert not +again, f"killed after call {call}: {dict(again)}"
            if not was_killed:
                break
        else:
            pytest.fail("it is killed for ever")
    assert not Path(crypt(host)).exists()
