"""How managers are reached and how they are served: the one place where gRPC's channels and servers between machines
are made, so that whatever protects them is said once. No tasks, no state.
"""

from __future__ import annotations

from dataclasses import dataclass

import grpc

from control.server.options import CALLS_MAX, CHANNEL_OPTIONS, SERVER_OPTIONS


class ListenError(Exception):
    """A manager cannot listen where it should. One sentence."""


@dataclass(frozen=True, slots=True)
class Edge:
    """Made once for a daemon, and passed to all that call managers or are one."""

    def server(self) -> grpc.aio.Server:
        """A manager's server, without services and without an address."""
        return grpc.aio.server(options=SERVER_OPTIONS, maximum_concurrent_rpcs=CALLS_MAX)

    def listen(self, server: grpc.aio.Server, address: str) -> int:
        """Have it listen at host:port (port 0: any) or unix:path; the port. Raises ListenError."""
        try:
            return server.add_insecure_port(address)
        except RuntimeError as error:
            raise ListenError(
                f"cannot listen on {address}: another program uses it, or it is no address here"
            ) from error

    def channel(self, address: str) -> grpc.aio.Channel:
        """To a manager at host:port. Connects when it is used; the caller closes it."""
        return grpc.aio.insecure_channel(address, options=CHANNEL_OPTIONS)
