"""One look at whether a task can serve, from inside its network namespace, whichever executor runs it."""

from __future__ import annotations

import asyncio
import os
import signal
import socket

from control.model import HealthCheck
from control.spec import http_check
from overlay.rtnl import inside

OUTPUT_MAX = 200  # characters of a failed command's output that the user is shown
_STATUS_LINE_MAX = 1024
_PIECE = 64 << 10


async def probe(check: HealthCheck, netns: str, address: str, pid: int) -> str:
    """ "" when the task is well, else why not. `address` is the task's own; `pid` its process, for commands."""
    try:
        async with asyncio.timeout(check.timeout_s):
            if check.command:
                return await _command(check.command, pid)
            found = http_check(check.http)
            port, path = found if found is not None else (check.tcp, "")
            return await _connect(netns, address, port, path)
    except TimeoutError:
        return f"no answer within {check.timeout_s:g} s"
    except OSError as error:
        return os.strerror(error.errno) if error.errno else str(error)


async def _connect(netns: str, address: str, port: int, path: str) -> str:
    loop = asyncio.get_running_loop()
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    sock = await asyncio.to_thread(inside, netns, lambda: socket.socket(family, socket.SOCK_STREAM))
    with sock:
        sock.setblocking(False)
        await loop.sock_connect(sock, (address, port))
        if not path:
            return ""
        request = f"GET {path} HTTP/1.1\r\nHost: {address}:{port}\r\nUser-Agent: meshd\r\nConnection: close\r\n\r\n"
        await loop.sock_sendall(sock, request.encode())
        return _verdict(await _status_line(sock), path)


async def _status_line(sock: socket.socket) -> bytes:
    loop, line = asyncio.get_running_loop(), b""
    while b"\r\n" not in line and len(line) < _STATUS_LINE_MAX:
        piece = await loop.sock_recv(sock, _STATUS_LINE_MAX)
        if not piece:
            break
        line += piece
    return line.partition(b"\r\n")[0]


def _verdict(status_line: bytes, path: str) -> str:
    words = status_line.split()
    if len(words) < 2 or not words[0].startswith(b"HTTP/") or not words[1].isdigit():
        return f"GET {path} was not answered as HTTP"
    code = int(words[1])
    return "" if 200 <= code < 400 else f"GET {path} was answered {code}"


async def _command(command: tuple[str, ...], pid: int) -> str:
    """Run it in the namespaces and the root of the task's process."""
    process = await asyncio.create_subprocess_exec(
        *("nsenter", "--all", "--root", "--wd", f"--target={pid}", "--", *command),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        start_new_session=True,  # so that all of it can be ended
    )
    try:
        assert process.stdout is not None
        output = b""
        while piece := await process.stdout.read(_PIECE):  # to its end, so that a command that says much is not held up
            output = (output + piece)[:OUTPUT_MAX]
        code = await process.wait()
    finally:
        if process.returncode is None:
            os.killpg(process.pid, signal.SIGKILL)
            await process.wait()
    said = " ".join(output.decode(errors="replace").split())
    return "" if code == 0 else f"{command[-1]} ended with {code}" + (f": {said}" if said else "")
