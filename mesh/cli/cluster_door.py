"""A cluster that is called over TCP, with mutual TLS. Imported when a context is used."""

from __future__ import annotations

import asyncio
import socket as sockets

import grpc

from control.ca.contexts import Credentials
from control.ca.names import MANAGER_HOST
from control.rpc import control_pb2 as pb
from control.server.edge import Edge, channel_credentials
from control.server.quorum import survey
from mesh.cli.contexts import ClusterContext
from mesh.cli.door import CONNECT_TIMEOUT_S, OPTIONS
from mesh.cli.errors import ExitCode, Failure

# gRPC's own words; a manager's sentences have others.
_NO_CONNECTION = ("failed to connect", "andshake", "Socket closed", "recvmsg", "SSL")


class ClusterDoor:
    """Managers of a cluster, with mutual TLS: the first that takes a connection."""

    def __init__(self, context: ClusterContext) -> None:
        self.context: ClusterContext | None = context
        self._context = context
        self._address = context.managers[0]
        self.credentials = Credentials(context.key.encode(), context.certificate.encode(), context.roots.encode())

    def survey(self) -> pb.QuorumReply:
        """How the managers are, each asked for itself."""
        edge, addresses = Edge(lambda: self.credentials), {address: address for address in self._context.managers}
        return asyncio.run(survey(edge, None, addresses))

    def knock(self) -> None:
        """Find a manager that is there. Raises Failure."""
        reasons = []
        for address in self._context.managers:
            host, _, port = address.rpartition(":")
            try:
                sockets.create_connection((host.strip("[]"), int(port)), CONNECT_TIMEOUT_S).close()
            except (OSError, ValueError, OverflowError) as error:
                reasons.append(f"{address}: {getattr(error, 'strerror', None) or 'no answer'}")
                continue
            self._address = address
            return
        sentence = f'no manager of context "{self._context.name}" answers: {"; ".join(reasons)}'
        raise Failure(sentence, ExitCode.UNAVAILABLE)

    def channel(self) -> grpc.Channel:
        """Connects when it is used."""
        options = (*OPTIONS, ("grpc.ssl_target_name_override", MANAGER_HOST))
        return grpc.secure_channel(self._address, channel_credentials(self.credentials), options=options)

    def explain(self, details: str) -> Failure | None:
        """Why somebody who takes connections does not answer, if it is for want of one."""
        if not any(word in details for word in _NO_CONNECTION):
            return None
        name = self._context.name
        return Failure(
            f'the manager at {self._address} and context "{name}" do not believe each other, or it is gone; if the '
            f'root of the cluster was changed, "mesh context renew {name}" helps: {details}',
            ExitCode.UNAVAILABLE,
        )
