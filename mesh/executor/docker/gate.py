"""The gate: what a container runs first, until its network is there.

An engine makes a container's network namespace and starts its process in one step. So that interfaces can be put in
between, each container's entry point is a program of some hundred bytes which opens the FIFO /.mesh/door, waits for one
message, the path of the true program, and becomes that with its own arguments and environment. It reads once, leaves
nothing open, and handles no signal. It ends with 126 if it may not run the program, and with 127 if it cannot.

The machine code is below, beside the source that it was assembled from (GNU as); no image needs to hold anything, and
nothing is compiled on a node. The door is opened for reading and writing: it never ends of itself, and whoever opens
the other end without waiting learns whether somebody stands at it.
"""

from __future__ import annotations

import errno
import os
import stat
import struct
import time
from pathlib import Path

DIRECTORY = "/.mesh"  # in the container
PROGRAM = f"{DIRECTORY}/gate"
DOOR = f"{DIRECTORY}/door"
PATH_MAX_BYTES = 4095  # what the program reads at most
PASS_TIMEOUT_S = 5.0  # one read and one execve, on however busy a machine
POLL_S = 0.005

_BASE = 0x400000
_HEADERS_BYTES = 64 + 56

# open(door, O_RDWR|O_CLOEXEC); read(fd, stack, 4095); execve(stack, argv+1, envp); exit(126 if EACCES else 127).
#
#     mov rbx, rsp            lea rdi, [rip+door]      mov esi, 0x80002     push 2; pop rax      syscall
#     test eax, eax           js lost                  mov edi, eax         sub rsp, 4096        mov rsi, rsp
#     mov edx, 4095           xor eax, eax             syscall              test eax, eax        jle lost
#     mov byte ptr [rsp+rax], 0                        mov rdi, rsp         lea rsi, [rbx+16]    mov rax, [rbx]
#     lea rdx, [rbx+rax*8+16]                          push 59; pop rax     syscall              push 126; pop rdi
#     cmp eax, -13            je leave         lost:   push 127; pop rdi
#     leave: push 60; pop rax syscall                  door: .asciz "/.mesh/door"
_X86_64 = bytes.fromhex(
    "4889e3488d3d4f000000be020008006a02580f0585c0783989c74881ec00100000"
    "4889e6baff0f000031c00f0585c07e20c60404004889e7488d7310488b03488d54c3106a3b580f05"
    "6a7e5f83f8f374036a7f5f6a3c580f05"
    "2f2e6d6573682f646f6f7200"
)

# The same:
#
#     mov x19, sp             mov x0, #-100            adr x1, door         ldr w2, =0x80002     mov x8, #56; svc #0
#     tbnz w0, #31, lost      sub sp, sp, #4096        mov x1, sp           mov x2, #4095        mov x8, #63; svc #0
#     cmp x0, #0; ble lost    strb wzr, [sp, x0]       mov x0, sp           add x1, x19, #16     ldr x2, [x19]
#     add x2, x19, x2, lsl #3                          add x2, x2, #16      mov x8, #221; svc #0
#     cmn x0, #13             mov x0, #126             b.eq leave     lost: mov x0, #127
#     leave: mov x8, #93; svc #0                       .ltorg               door: .asciz "/.mesh/door"
_AARCH64 = bytes.fromhex(
    "f3030091600c80926103001022030018080780d2010000d46002f837ff0740d1e1030091e2ff81d2e80780d2010000d4"
    "1f0000f18d010054ff6b2038e003009161420091620240f9620e028b42400091a81b80d2010000d4"
    "1f3400b1c00f80d240000054e00f80d2a80b80d2010000d4020008002f2e6d6573682f646f6f7200"
)

# Machine, as `uname -m` has it -> its number in ELF, and the program.
CODE: dict[str, tuple[int, bytes]] = {"x86_64": (62, _X86_64), "aarch64": (183, _AARCH64)}


def program(machine: str) -> bytes | None:
    """The gate as an executable file, without sections and libraries; None for a machine that there is none for."""
    found = CODE.get(machine)
    if found is None:
        return None
    number, code = found
    size = _HEADERS_BYTES + len(code)
    identity = b"\x7fELF" + bytes((2, 1, 1)) + bytes(9)  # 64 bits, little endian, version 1
    header = struct.pack("<HHIQQQIHHHHHH", 2, number, 1, _BASE + _HEADERS_BYTES, 64, 0, 0, 64, 56, 1, 0, 0, 0)
    segment = struct.pack("<IIQQQQQQ", 1, 5, 0, _BASE, _BASE, size, size, 0x1000)  # loaded, readable and executable
    return identity + header + segment + code


def make(directory: Path, machine: str) -> bool:
    """Write program and door for a new container; False for a machine without a gate. Raises OSError."""
    made = program(machine)
    if made is None:
        return False
    directory.mkdir(mode=0o755, exist_ok=True)
    file = directory / "gate"
    file.write_bytes(made)
    file.chmod(0o755)
    door = directory / "door"
    door.unlink(missing_ok=True)
    os.mkfifo(door)
    door.chmod(0o666)  # the container's user opens it, whoever that is
    return True


def knock(directory: Path) -> bool:
    """Whether the container stands at its gate. Raises OSError."""
    descriptor = _open(directory)
    if descriptor is None:
        return False
    os.close(descriptor)
    return True


def let_through(directory: Path, path: str) -> bool:
    """Have the container become the program at `path`, and close the door for ever; False if nobody stands there.

    Blocks for the moment until it has gone. A message that comes twice is read once: it ends with a zero byte. Raises
    OSError.
    """
    descriptor = _open(directory)
    if descriptor is None:
        return False
    try:
        os.write(descriptor, os.fsencode(path)[: PATH_MAX_BYTES - 1] + b"\0")
    finally:
        os.close(descriptor)
    deadline = time.monotonic() + PASS_TIMEOUT_S
    while knock(directory) and time.monotonic() < deadline:
        time.sleep(POLL_S)
    # The program that went through could open it again; and a container that somebody restarts ends here, at once.
    closed = directory / "door.closed"
    closed.touch()
    closed.replace(directory / "door")
    return True


def _open(directory: Path) -> int | None:
    try:
        descriptor = os.open(directory / "door", os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        if error.errno in (errno.ENXIO, errno.ENOENT):  # nobody has it open; it was removed
            return None
        raise
    if stat.S_ISFIFO(os.fstat(descriptor).st_mode):
        return descriptor
    os.close(descriptor)
    return None
