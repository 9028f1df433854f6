"""What is wrong with a machine, judged from its facts, each finding with what helps. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from mesh.doctor.facts import Facts

Level = Literal["ok", "note", "warning", "error"]

# VXLAN over IPv4 takes 50 bytes, encryption 80 more; IPv6 needs 1280 inside.
MTU_MIN = 1280 + 50 + 80
CONNTRACK_WARN_SHARE = 0.8
DISK_WARN_BYTES = 1 << 30  # managers turn read-only long before a disk is full; nodes keep a copy of what they know
AUTOMATIC_PORTS = (30000, 32767)  # control.allocator.pools


@dataclass(frozen=True, slots=True)
class Wanted:
    """What this machine's meshd uses, or would use."""

    control_port: int
    vxlan_port: int
    data_address: str  # "" when it is not chosen yet
    gossip_port: int = 7946
    running: bool = False  # meshd has its ports
    wireguard_port: int = 7947  # and the next


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing looked at. `fix` is a command or an advice; empty when nothing needs to be done."""

    level: Level
    what: str
    found: str
    fix: str = ""


Check = Callable[[Facts, Wanted], Iterator[Finding]]


def examine(facts: Facts, wanted: Wanted) -> list[Finding]:
    """All findings, in the order of the checks."""
    return [finding for check in CHECKS for finding in check(facts, wanted)]


def _privileges(facts: Facts, wanted: Wanted) -> Iterator[Finding]:
    del wanted
    if not facts.root:
        yield Finding("error", "privileges", "not root: most of what follows cannot be seen", "sudo mesh doctor")


def _kernel(facts: Facts, wanted: Wanted) -> Iterator[Finding]:
    del wanted
    if not facts.kernel_can:
        yield Finding("warning", "kernel", f"{facts.kernel}: what it can do could not be tried out")
        return
    fixes = {
        "namespaces": "use a kernel with CONFIG_NET_NS, and do not run in a container without CAP_SYS_ADMIN",
        "veth": "modprobe veth",
        "vxlan": "modprobe vxlan",
        "nftables": "apt-get install nftables; modprobe nf_tables nft_chain_nat",
    }
    missing = {name: reason for name in fixes if (reason := facts.kernel_can.get(name, ""))}
    for name, reason in missing.items():
        yield Finding("error", "kernel", f"{facts.kernel} has no {name}: {reason}", fixes[name])
    if not missing:
        yield Finding("ok", "kernel", f"{facts.kernel} has namespaces, veth, VXLAN and nftables")
    yield from _optional(facts)


def _optional(facts: Facts) -> Iterator[Finding]:
    reason = facts.kernel_can.get("ipvs", "")
    if reason:
        yield Finding("note", "balancer", f"nftables: the kernel has no IPVS ({reason})", "modprobe ip_vs")
        yield from _flowtable(facts)
    else:
        yield Finding("ok", "balancer", "IPVS: the kernel has it")
    yield from _encryption(facts)
    if reason := facts.kernel_can.get("sctp", ""):
        yield Finding("note", "sctp", f"the kernel has no SCTP ({reason})", "modprobe sctp")


def _flowtable(facts: Facts) -> Iterator[Finding]:
    """Only nftables uses it."""
    reason = facts.kernel_can.get("flowtable")
    if reason == "":
        yield Finding("ok", "flowtable", "established connections pass by a flowtable: the kernel has it")
    elif reason is not None:
        found = f"established connections pass all rules, a tenth slower: the kernel has no flowtable ({reason})"
        yield Finding("note", "flowtable", found, "modprobe nft_flow_offload nf_flow_table_inet")


def _encryption(facts: Facts) -> Iterator[Finding]:
    """What encrypted networks would use; nothing when the kernel could not be asked."""
    reason = facts.kernel_can.get("wireguard")
    if reason == "":
        yield Finding("ok", "encryption", "WireGuard: the kernel has it")
    elif reason is not None and facts.programs.get("wireguard-go"):
        found = f"wireguard-go, 2 to 4 % of a plain network's speed: the kernel has no WireGuard ({reason})"
        yield Finding("note", "encryption", found, "modprobe wireguard")
    elif reason is not None:
        found = f"no WireGuard, neither in the kernel ({reason}) nor wireguard-go: no encrypted network can be here"
        yield Finding("note", "encryption", found, "modprobe wireguard, or apt-get install wireguard-go")


def _ports(facts: Facts, wanted: Wanted) -> Iterator[Finding]:
    uses = (
        ("tcp", wanted.control_port, "managers are reached there"),
        ("tcp", wanted.gossip_port, "gossip"),
        ("udp", wanted.gossip_port, "gossip"),
        *(("udp", wanted.wireguard_port + slot, "encrypted networks") for slot in (0, 1)),
    )
    for protocol, port, purpose in uses:
        holders = {
            one.program or "an unknown program"
            for one in facts.sockets
            if (one.protocol, one.port) == (protocol, port)
            and not wanted.running
            # WireGuard, which stays when meshd ends: the kernel's sockets are of no program
            and not (purpose == "encrypted networks" and one.program in ("", "wireguard-go"))
        }
        for holder in sorted(holders):
            found = f"{port}/{protocol} ({purpose}) is in use by {holder}"
            yield Finding("error", "port", found, f"stop {holder}, or choose another port in /etc/meshd/meshd.toml")
    for tunnel in facts.tunnels:
        if tunnel.port == wanted.vxlan_port:  # ours live in namespaces of their own
            found = f"device {tunnel.name} uses UDP port {tunnel.port} for VXLAN too (VNI {tunnel.vni})"
            yield Finding(
                "warning",
                "port",
                found,
                "give the cluster another one: mesh init --data-path-port, if their VNIs can clash",
            )


def _sysctls(facts: Facts, wanted: Wanted) -> Iterator[Finding]:
    if facts.sysctls.get("net.ipv4.ip_forward") == "0" and wanted.running:  # else meshd will turn it on
        found = "net.ipv4.ip_forward is 0: published ports do not reach tasks"
        yield Finding("warning", "sysctl", found, "sysctl -w net.ipv4.ip_forward=1, and find out who turned it off")
    if facts.sysctls.get("net.ipv4.conf.all.rp_filter") == "1":
        found = "net.ipv4.conf.all.rp_filter is 1 (strict): answers that come another way are dropped"
        yield Finding("note", "sysctl", found, "sysctl -w net.ipv4.conf.all.rp_filter=2 on machines with several ways")
    first, _, last = facts.sysctls.get("net.ipv4.ip_local_port_range", "").partition("\t")
    if first.isdigit() and last.isdigit() and int(first) <= AUTOMATIC_PORTS[1] and int(last) >= AUTOMATIC_PORTS[0]:
        automatic = f"{AUTOMATIC_PORTS[0]}-{AUTOMATIC_PORTS[1]}"
        if automatic not in facts.sysctls.get("net.ipv4.ip_local_reserved_ports", ""):
            found = f"programs get local ports {first} to {last}, and automatic published ports are {automatic}"
            yield Finding("warning", "sysctl", found, f"sysctl -w net.ipv4.ip_local_reserved_ports={automatic}")
    yield from _conntrack(facts)


def _conntrack(facts: Facts) -> Iterator[Finding]:
    count, most = (facts.sysctls.get(f"net.netfilter.nf_conntrack_{name}", "") for name in ("count", "max"))
    if count.isdigit() and most.isdigit() and int(count) > CONNTRACK_WARN_SHARE * int(most):
        found = f"{count} of {most} tracked connections are in use: new ones will be dropped"
        yield Finding("warning", "conntrack", found, f"sysctl -w net.netfilter.nf_conntrack_max={2 * int(most)}")


def _addresses(facts: Facts, wanted: Wanted) -> Iterator[Finding]:
    mine = [a for a in facts.addresses if str(a.address) == wanted.data_address]
    if wanted.data_address and facts.addresses and not mine:
        found = f"no device has {wanted.data_address}, the address of this node's tunnels"
        yield Finding("error", "address", found, "give the machine its address back, or mesh leave and mesh join again")
    if not wanted.data_address and len(facts.addresses) > 1:
        listed = ", ".join(f"{a.address} ({a.device})" for a in facts.addresses)
        yield Finding("note", "address", f"several: {listed}", "say which at mesh init and mesh join: --advertise-addr")
    for one in mine or facts.addresses:
        if one.mtu < MTU_MIN:
            found = f"{one.device} ({one.address}) has an MTU of {one.mtu}: IPv6 or encrypted networks will not fit"
            yield Finding("warning", "mtu", found, f"ip link set {one.device} mtu 1500, if the network allows")
        elif mine:
            yield Finding("ok", "mtu", f"{one.mtu} on {one.device}, so {one.mtu - 50} inside networks")


def _firewall(facts: Facts, wanted: Wanted) -> Iterator[Finding]:
    for chain in facts.dropping:
        where = f"{chain.family} {chain.table} {chain.name}"
        if chain.hook == "forward":
            found = f"chain {where} drops forwarded packets: published ports may not reach tasks"
            fix = "iptables -I DOCKER-USER -j ACCEPT" if chain.table == "filter" and chain.name == "FORWARD" else ""
            yield Finding("warning", "firewall", found, fix or f'nft insert rule {where} oifname "mu*" accept')
        else:
            ports = f"tcp/{wanted.control_port}, tcp+udp/{wanted.gossip_port}, udp/{wanted.vxlan_port}"
            ports += f", udp/{wanted.wireguard_port}-{wanted.wireguard_port + 1} for encrypted networks"
            found = f"chain {where} drops incoming packets that it does not know"
            yield Finding("note", "firewall", found, f"let the other nodes reach {ports}")


def _clock(facts: Facts, wanted: Wanted) -> Iterator[Finding]:
    del wanted
    if facts.clock_synchronised is False:
        found = "the kernel says that its clock is not synchronised: certificates and logs need it"
        yield Finding("warning", "clock", found, "apt-get install chrony")


def _disk(facts: Facts, wanted: Wanted) -> Iterator[Finding]:
    del wanted
    if facts.disk_free_bytes is not None and facts.disk_free_bytes < DISK_WARN_BYTES:
        found = f"{facts.disk_free_bytes >> 20} MiB are free where meshd keeps its state"
        yield Finding("warning", "disk", found, "make room: a manager without any cannot write")


CHECKS: tuple[Check, ...] = (_privileges, _kernel, _ports, _sysctls, _addresses, _firewall, _clock, _disk)
