"""Looks at a machine as it is now. Blocking; nothing is changed, and what cannot be seen is left out."""

from __future__ import annotations

import ctypes
import json
import os
import platform
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path

from pyroute2 import IPRoute

from mesh import machine
from mesh.doctor.facts import Chain, Facts, Interface, Socket, Tunnel

# A probe that hangs (a module that cannot be loaded, a stuck nft) must not hang the doctor.
PROGRAM_TIMEOUT_S = 20.0
SYSCTLS = (
    "net.ipv4.ip_forward",
    "net.ipv6.conf.all.forwarding",
    "net.ipv4.conf.all.rp_filter",
    "net.ipv4.ip_local_port_range",
    "net.ipv4.ip_local_reserved_ports",
    "net.netfilter.nf_conntrack_max",
    "net.netfilter.nf_conntrack_count",
)
_STA_UNSYNC = 0x0040  # adjtimex(2)
_TCP_LISTEN = "0A"
_TABLES = (("tcp", "tcp"), ("tcp6", "tcp"), ("udp", "udp"), ("udp6", "udp"))


def gather(state_dir: Path) -> Facts:
    """Look at this machine."""
    return Facts(
        root=os.geteuid() == 0,
        python=sys.version_info[:2],
        kernel=platform.release(),
        kernel_can=_kernel_can(),
        programs={name: shutil.which(name) is not None for name in ("nft", "modprobe", "wireguard-go")},
        sysctls={name: value for name in SYSCTLS if (value := _sysctl(name)) is not None},
        sockets=tuple(_sockets()),
        addresses=tuple(_addresses()),
        dropping=tuple(dropping_chains(_nft_json())),
        tunnels=tuple(_tunnels()),
        clock_synchronised=_clock_synchronised(),
        disk_free_bytes=_disk_free(state_dir),
    )


def _kernel_can() -> Mapping[str, str]:
    output = _output([sys.executable, "-m", "mesh.doctor.probe"])
    try:
        found = json.loads(output)
    except ValueError:
        return {}
    return {str(name): str(reason) for name, reason in found.items()}


def _output(command: list[str]) -> str:
    """What a program prints; "" when it cannot be run, fails or hangs."""
    try:
        done = subprocess.run(command, capture_output=True, timeout=PROGRAM_TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.decode(errors="replace") if done.returncode == 0 else ""


def _sysctl(name: str) -> str | None:
    try:
        return Path("/proc/sys", *name.split(".")).read_text().strip()
    except OSError:
        return None


# --- sockets --------------------------------------------------------------------------------------------------------


def _sockets() -> Iterator[Socket]:
    owners = _owners()
    for table, protocol in _TABLES:
        try:
            text = Path("/proc/net", table).read_text()
        except OSError:
            continue
        for address, port, inode in listening(text, protocol):
            yield Socket(protocol, address, port, owners.get(inode, ""))


def listening(text: str, protocol: str) -> Iterator[tuple[IPv4Address | IPv6Address, int, int]]:
    """(address, port, inode) of what listens, of a table of /proc/net."""
    for line in text.splitlines()[1:]:
        fields = line.split()
        if len(fields) < 10 or (protocol == "tcp" and fields[3] != _TCP_LISTEN):
            continue
        address, _, port = fields[1].partition(":")
        if protocol == "udp" and not fields[2].endswith(":0000"):
            continue  # a connected socket: somebody's client
        yield _address(address), int(port, 16), int(fields[9])


def _address(text: str) -> IPv4Address | IPv6Address:
    """An address as /proc/net has it: 32-bit words in the machine's byte order."""
    words = [bytes.fromhex(text[i : i + 8]) for i in range(0, len(text), 8)]
    packed = b"".join(word[::-1] if sys.byteorder == "little" else word for word in words)
    return ip_address(packed)


def _owners() -> dict[int, str]:
    """Inode of a socket -> the program that has it."""
    owners: dict[int, str] = {}
    for process in Path("/proc").iterdir():
        if not process.name.isdigit():
            continue
        try:
            name = (process / "comm").read_text().strip()
            for descriptor in (process / "fd").iterdir():
                target = os.readlink(descriptor)
                if found := re.fullmatch(r"socket:\[(\d+)\]", target):
                    owners[int(found[1])] = name
        except OSError:
            continue  # it has ended, or is not ours to look at
    return owners


# --- devices, rules, clock, disk ------------------------------------------------------------------------------------


def _addresses() -> list[Interface]:
    try:
        return [Interface(a.address, a.device, a.mtu) for a in machine.addresses()]
    except OSError:
        return []


def _tunnels() -> list[Tunnel]:
    try:
        with IPRoute() as route:
            links = [
                (link, link.get_nested("IFLA_LINKINFO", "IFLA_INFO_DATA")) for link in route.get_links(kind="vxlan")
            ]
            return [
                Tunnel(link.get_attr("IFLA_IFNAME"), data.get_attr("IFLA_VXLAN_ID"), _port(data))
                for link, data in links
                if data is not None
            ]
    except OSError:
        return []


def _port(data: object) -> int:
    port = data.get_attr("IFLA_VXLAN_PORT")  # type: ignore[attr-defined]
    return socket.ntohs(port) if port is not None and port not in (4789, 8472) else int(port or 0)


def _nft_json() -> str:
    nft = shutil.which("nft", path="/usr/sbin:/sbin:/usr/bin:/bin")
    return _output([nft, "-j", "list", "chains"]) if nft is not None else ""


def dropping_chains(text: str) -> Iterator[Chain]:
    """Base chains of `nft -j list chains` on the way of forwarded or incoming packets with the policy drop."""
    try:
        objects = json.loads(text or "{}").get("nftables", [])
    except (ValueError, AttributeError):
        return
    for one in objects:
        chain = one.get("chain", {}) if isinstance(one, dict) else {}
        if chain.get("policy") == "drop" and chain.get("hook") in ("forward", "input"):
            yield Chain(chain.get("family", ""), chain.get("table", ""), chain.get("name", ""), chain["hook"])


def _clock_synchronised() -> bool | None:
    """What the kernel thinks (adjtimex(2)); None when it does not say."""
    buffer = ctypes.create_string_buffer(512)  # struct timex, with modes 0: only read
    status_at = 5 * ctypes.sizeof(ctypes.c_long)  # after modes (padded), offset, freq, maxerror, esterror
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.adjtimex(buffer) < 0:
        return None
    status = int.from_bytes(buffer.raw[status_at : status_at + 4], sys.byteorder)
    return not status & _STA_UNSYNC


def _disk_free(state_dir: Path) -> int | None:
    for place in (state_dir, *state_dir.parents):
        if place.exists():
            return shutil.disk_usage(place).free
    return None
