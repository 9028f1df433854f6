"""How managers are reached and how they are served: the one place where gRPC's channels and servers between machines
are made, so that whatever protects them is said once. No tasks.

Both sides show a certificate of the cluster. They are read for each handshake, so a renewed one, or another root,
counts from the next connection on. gRPC for Python cannot be told to speak TLS 1.3 only: the list of ciphers in
`control` leaves nothing that 1.2 could use with our keys, and `control.server.guard` looks at the version of each call.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast

import grpc

from control.ca.contexts import Credentials
from control.ca.names import MANAGER_HOST
from control.server.calls import make_server
from control.server.options import CALLS_MAX, CHANNEL_OPTIONS, SERVER_OPTIONS

# Whoever answers must be a manager: every manager's certificate has this name, whatever its address.
SECURE_OPTIONS = (*CHANNEL_OPTIONS, ("grpc.ssl_target_name_override", MANAGER_HOST))


class ListenError(Exception):
    """A manager cannot listen where it should. One sentence."""


@dataclass(frozen=True, slots=True)
class Edge:
    """Made once for a daemon, and passed to all that call managers or are one.

    Without `credentials` everything is in the clear: for sockets of this machine, and for tests.
    """

    credentials: Callable[[], Credentials] | None = None

    def server(self, interceptors: Sequence[grpc.aio.ServerInterceptor] = ()) -> grpc.aio.Server:
        """A manager's server, without services and without an address."""
        return make_server(SERVER_OPTIONS, interceptors, CALLS_MAX)

    def listen(self, server: grpc.aio.Server, address: str) -> int:
        """Have it listen at host:port (port 0: any) or unix:path; the port. Raises ListenError."""
        try:
            if self.credentials is None:
                return server.add_insecure_port(address)
            return server.add_secure_port(address, _server_credentials(self.credentials))
        except RuntimeError as error:
            raise ListenError(
                f"cannot listen on {address}: another program uses it, or it is no address here"
            ) from error

    def channel(self, address: str) -> grpc.aio.Channel:
        """To a manager at host:port. Connects when it is used; the caller closes it."""
        if self.credentials is None:
            return grpc.aio.insecure_channel(address, options=CHANNEL_OPTIONS)
        return grpc.aio.secure_channel(address, channel_credentials(self.credentials()), options=SECURE_OPTIONS)


def channel_credentials(credentials: Credentials) -> grpc.ChannelCredentials:
    """For calling managers."""
    return grpc.ssl_channel_credentials(credentials.roots, credentials.key, credentials.chain)


def _server_credentials(source: Callable[[], Credentials]) -> grpc.ServerCredentials:
    used = source()

    def fetch() -> grpc.ServerCertificateConfiguration | None:
        """Called for each handshake, in a thread of gRPC's."""
        nonlocal used
        now = source()
        if now is used:
            return None
        used = now
        return _configuration(now)

    # The types know nothing of a fetcher that has no news; gRPC's documentation does.
    fetcher = cast("Callable[[], grpc.ServerCertificateConfiguration]", fetch)
    return grpc.dynamic_ssl_server_credentials(_configuration(used), fetcher, require_client_authentication=True)


def _configuration(credentials: Credentials) -> grpc.ServerCertificateConfiguration:
    return grpc.ssl_server_certificate_configuration([(credentials.key, credentials.chain)], credentials.roots)
