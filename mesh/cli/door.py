"""Where a command's calls go: the socket of this machine, or a cluster elsewhere. Imported with the client only."""

from __future__ import annotations

import socket as sockets
from dataclasses import dataclass
from typing import Final, Protocol

import grpc

from mesh.cli.contexts import ClusterContext
from mesh.cli.errors import ExitCode, Failure

CONNECT_TIMEOUT_S = 3.0
# What a manager sends at most in one list (control.server.api.LIST_MAX_BYTES), with room for its frames.
MESSAGE_MAX_BYTES = 64 << 20
OPTIONS: Final = (
    ("grpc.max_receive_message_length", MESSAGE_MAX_BYTES),
    ("grpc.max_send_message_length", MESSAGE_MAX_BYTES),
    ("grpc.enable_http_proxy", 0),
)


class Door(Protocol):
    """What the client needs of either. `context` is the cluster elsewhere, None for this machine."""

    @property
    def context(self) -> ClusterContext | None: ...
    def knock(self) -> None: ...
    def channel(self) -> grpc.Channel: ...
    def explain(self, details: str) -> Failure | None: ...


@dataclass(frozen=True, slots=True)
class SocketDoor:
    """The daemon of this machine."""

    path: str

    @property
    def context(self) -> ClusterContext | None:
        """None: it is this machine."""
        return None

    def knock(self) -> None:
        """See whether anything listens, since gRPC would take its time to find out. Raises Failure."""
        try:
            with sockets.socket(sockets.AF_UNIX, sockets.SOCK_STREAM) as probe:
                probe.settimeout(CONNECT_TIMEOUT_S)
                probe.connect(self.path)
        except PermissionError as error:
            sentence = f"not allowed to use {self.path}: only root and the group mesh are"
            raise Failure(sentence, ExitCode.REFUSED) from error
        except OSError as error:
            raise Failure(f"cannot reach meshd at {self.path}: is it running?", ExitCode.UNAVAILABLE) from error

    def channel(self) -> grpc.Channel:
        """Connects when it is used."""
        return grpc.insecure_channel(f"unix:{self.path}", options=OPTIONS)

    def explain(self, details: str) -> Failure | None:
        """There is nothing to add to what was said."""
        return None


class Elsewhere:
    """Stands for the calls about this machine, where a cluster elsewhere is called."""

    def __init__(self, context: str) -> None:
        self._context = context

    def __getattr__(self, name: str) -> object:
        raise Failure(
            f'this is about a machine, and context "{self._context}" is about a cluster: run it on the machine '
            "itself, with --context default",
            ExitCode.USAGE,
        )
