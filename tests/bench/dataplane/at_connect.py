"""Balancing at connect time by an eBPF program on a cgroup, as Cilium has it: what such a thing would cost or gain.

For the benchmark only: the program is assembled here, by hand, and loaded by bpf(2). It looks the address and port
of each connect() up in a hash map, and puts the task's in their place. No packet is translated.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import struct
from collections.abc import Iterator
from ipaddress import IPv4Address
from pathlib import Path

_SYS_BPF = 321  # x86-64
_MAP_CREATE, _MAP_UPDATE, _PROG_LOAD, _PROG_ATTACH = 0, 2, 5, 8
_HASH, _CGROUP_SOCK_ADDR, _INET4_CONNECT = 1, 18, 10
_USER_IP4, _USER_PORT = 4, 24  # offsets in struct bpf_sock_addr; in network byte order, both
_LOG_BYTES = 65536
_libc = ctypes.CDLL(None, use_errno=True)

Place = tuple[IPv4Address, int]


def _bpf(command: int, attributes: bytes) -> int:
    """bpf(2). Raises OSError."""
    buffer = ctypes.create_string_buffer(attributes, len(attributes))
    result: int = _libc.syscall(_SYS_BPF, command, buffer, len(attributes))
    if result < 0:
        raise OSError(ctypes.get_errno(), f"bpf {command}: {os.strerror(ctypes.get_errno())}")
    return result


def _instruction(code: int, to: int = 0, source: int = 0, offset: int = 0, value: int = 0) -> bytes:
    return struct.pack("<BBhi", code, source << 4 | to, offset, value)


def _program(map_fd: int) -> bytes:
    load, store, move, add, move_value = 0x61, 0x63, 0xBF, 0x07, 0xB7  # 32-bit load and store; 64-bit register
    return b"".join(
        (
            _instruction(move, 6, 1),
            _instruction(load, 2, 6, _USER_IP4),
            _instruction(store, 10, 2, -8),
            _instruction(load, 2, 6, _USER_PORT),
            _instruction(store, 10, 2, -4),
            _instruction(move, 2, 10),
            _instruction(add, 2, value=-8),
            _instruction(0x18, 1, 1, value=map_fd),  # the map's address, of two instructions
            _instruction(0),
            _instruction(0x85, value=1),  # call bpf_map_lookup_elem
            _instruction(0x15, 0, offset=4),  # nothing found: as it is
            _instruction(load, 1, 0, 0),
            _instruction(store, 6, 1, _USER_IP4),
            _instruction(load, 1, 0, 4),
            _instruction(store, 6, 1, _USER_PORT),
            _instruction(move_value, 0, value=1),
            _instruction(0x95),  # exit: go on
        )
    )


def _packed(place: Place) -> bytes:
    return place[0].packed + struct.pack(">HH", place[1], 0)


def _address(of: ctypes.Array[ctypes.c_char]) -> int:
    return ctypes.addressof(of)


def _load(map_fd: int) -> int:
    code, licence = _program(map_fd), ctypes.create_string_buffer(b"GPL")
    held, log = ctypes.create_string_buffer(code, len(code)), ctypes.create_string_buffer(_LOG_BYTES)
    head = struct.pack("<IIQQIIQ", _CGROUP_SOCK_ADDR, len(code) // 8, _address(held), _address(licence), 1,
                       _LOG_BYTES, _address(log))  # fmt: skip
    rest = struct.pack("<II16sII", 0, 0, b"mesh_bench", 0, _INET4_CONNECT)
    try:
        return _bpf(_PROG_LOAD, head + rest)
    except OSError as error:
        raise OSError(error.errno, log.value.decode(errors="replace")) from error


def _cgroups() -> Path:
    """Where cgroups of version 2 are."""
    mounts = (line.split() for line in Path("/proc/mounts").read_text().splitlines())
    return next(Path(fields[1]) for fields in mounts if fields[2] == "cgroup2")


@contextlib.contextmanager
def translated(places: dict[Place, Place]) -> Iterator[Path]:
    """A cgroup whose members' connections to some places go to others; its list of members. Raises OSError."""
    home = _cgroups() / f"mb{os.getpid()}-{len(places)}"
    home.mkdir()
    with contextlib.ExitStack() as stack:
        stack.callback(home.rmdir)
        map_fd = _bpf(_MAP_CREATE, struct.pack("<IIIII", _HASH, 8, 8, len(places) + 1, 0))
        stack.callback(os.close, map_fd)
        for source, target in places.items():
            key, value = (
                ctypes.create_string_buffer(_packed(source), 8),
                ctypes.create_string_buffer(_packed(target), 8),
            )
            _bpf(_MAP_UPDATE, struct.pack("<IIQQQ", map_fd, 0, _address(key), _address(value), 0))
        program = _load(map_fd)
        stack.callback(os.close, program)
        group = os.open(home, os.O_RDONLY | os.O_DIRECTORY)
        stack.callback(os.close, group)
        _bpf(_PROG_ATTACH, struct.pack("<IIII", group, program, _INET4_CONNECT, 0))
        yield home / "cgroup.procs"
