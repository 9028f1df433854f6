"""Ports for servers that a test starts later: none that the kernel may give to a connection meanwhile."""

import random
import socket

# Below the kernel's own ephemeral range (net.ipv4.ip_local_port_range: 32768-60999), above what services are known by.
LOW, HIGH = 20000, 32000
_given: set[int] = set()


def free_ports(count: int) -> list[int]:
    """Ports free on the loopback for TCP and UDP, none given twice. Raises RuntimeError when there are none."""
    return [free_port() for _ in range(count)]


def free_port() -> int:
    for port in random.SystemRandom().sample(range(LOW, HIGH), HIGH - LOW):
        if port not in _given and _unused(port):
            _given.add(port)
            return port
    raise RuntimeError(f"no port between {LOW} and {HIGH} is free")


def _unused(port: int) -> bool:
    try:
        for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
            with socket.socket(socket.AF_INET, kind) as sock:
                sock.bind(("127.0.0.1", port))
    except OSError:
        return False
    return True
