"""What managers tell each other beside a call that one hands on to another: gRPC metadata. No tasks, no state."""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import unquote

import grpc

Context = grpc.aio.ServicerContext[Any, Any]

# Set on a call that was handed on: it is not handed on again.
HOP = "mesh-hop"
# The address of the caller of a call that was handed on.
CALLER = "mesh-caller"
# Whose call it is that was handed on, by the URI in the certificate; without it, the manager's own, or its socket's.
WHO = "mesh-who"
# The user id on whose behalf a node calls, as that node says: for the audit log, it gives no rights.
UID = "mesh-uid"
# In the status of a call that was refused, and not done, because this manager does not lead: who does, or "".
LEADER = "mesh-leader"


_LOCAL = re.compile(r"unix-abstract:meshd-local-(\d{1,10})-[0-9a-f]+")


def local_name(uid: int, unique: str) -> str:
    """The name that the daemon gives the end of a connection that it passes on for a user of its machine."""
    return f"meshd-local-{uid}-{unique}"


def local_uid(context: Context) -> int | None:
    """The user on the other end of a unix socket; None where nobody has noted it."""
    found = _LOCAL.fullmatch(unquote(context.peer()))
    return int(found[1]) if found else None


def said_uid(context: Context) -> int | None:
    """The user on whose behalf another node calls."""
    text = str(_metadata(context).get(UID, ""))
    return int(text) if text.isascii() and text.isdigit() and len(text) <= 10 else None


def forwarded(context: Context) -> bool:
    """Whether another manager has handed this call on."""
    return bool(_metadata(context).get(HOP))


def not_done(error: grpc.aio.AioRpcError) -> bool:
    """Whether the manager that was asked says that it does not lead, and has done nothing."""
    return leader_said(error) is not None


def leader_said(error: grpc.aio.AioRpcError) -> str | None:
    """Where the leader is, as the manager that refused said; None if it did not refuse for that reason."""
    found = [value for key, value in error.trailing_metadata() or () if key == LEADER]
    return str(found[0]) if found else None


def peer_address(context: Context) -> str:
    """The caller's address, without port; "" on a unix socket. gRPC's form is `ipv4:1.2.3.4:5` or `ipv6:[::1]:5`."""
    said = _metadata(context)
    if said.get(HOP):
        return str(said.get(CALLER, ""))
    family, _, rest = unquote(context.peer()).partition(":")
    host = rest.rpartition(":")[0].strip("[]") if family in ("ipv4", "ipv6") else ""
    return host.removeprefix("::ffff:")


def _metadata(context: Context) -> dict[str, str | bytes]:
    return dict(context.invocation_metadata() or ())
