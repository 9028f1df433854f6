"""The local socket, as users see it: takes connections, notes whose they are, and passes them on to gRPC.

gRPC for Python does not tell who is at the other end of a unix socket. So it listens in a directory that only root may
enter, and the connections that are made there for a user have the user's id in the name of their own end, where the
guard reads it (`control.server.hop.local_uid`). The bytes are not looked at.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import secrets
import socket
import struct
from pathlib import Path

from control.server.hop import local_name

log = logging.getLogger(__name__)

# Commands, watches, a prober and an editor or two; each costs two descriptors and two small buffers.
CONNECTIONS_MAX = 256
BUFFER_BYTES = 256 * 1024
_CREDENTIALS = struct.Struct("3i")  # struct ucred: pid, uid, gid


class Doorman:
    """See the module. `inside` is where gRPC shall listen, before `open`."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.inside = path.parent / "private" / path.name
        self._server: asyncio.Server | None = None
        self._open = 0

    def prepare(self) -> None:
        """Make the directories, and forget the sockets of an earlier life. Raises OSError."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self.inside.parent.mkdir(mode=0o700, exist_ok=True)
        self.inside.parent.chmod(0o700)
        for path in (self._path, self.inside):
            path.unlink(missing_ok=True)

    async def open(self, group_id: int) -> None:
        """Take connections of root and of a group. Raises OSError."""
        listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listening.bind(str(self._path))
        os.chown(self._path, 0, group_id)
        os.chmod(self._path, 0o660)
        self._server = await asyncio.start_unix_server(self._connection, sock=listening, limit=BUFFER_BYTES)

    def close(self) -> None:
        """Take no more of them. Idempotent."""
        if self._server is not None:
            self._server.close()

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open += 1
        try:
            if self._open > CONNECTIONS_MAX:
                log.warning("refused a connection to the local socket", extra={"open": CONNECTIONS_MAX})
                return
            inner = await self._enter(writer.get_extra_info("socket"))
            inside, outside = await asyncio.open_unix_connection(sock=inner, limit=BUFFER_BYTES)
            try:
                async with asyncio.TaskGroup() as group:
                    group.create_task(_pass_on(reader, outside))
                    group.create_task(_pass_on(inside, writer))
            finally:
                outside.transport.abort()
        except* OSError as errors:  # one side has gone: so does the other
            log.debug("a local connection was lost", extra={"reason": str(errors.exceptions[0])})
        finally:
            self._open -= 1
            writer.close()

    async def _enter(self, visitor: socket.socket) -> socket.socket:
        """A connection to gRPC that says whose it is."""
        data = visitor.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        _, uid, _ = _CREDENTIALS.unpack(data)
        inner = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            inner.bind(b"\0" + local_name(uid, secrets.token_hex(8)).encode())  # nobody else can have taken it
            await asyncio.get_running_loop().sock_connect(inner, str(self.inside))
        except OSError:
            inner.close()
            raise
        return inner


async def _pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Until the end of what comes, which is passed on as well."""
    while data := await reader.read(BUFFER_BYTES):
        writer.write(data)
        await writer.drain()
    with contextlib.suppress(OSError):
        writer.write_eof()
