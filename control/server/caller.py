"""Who makes the call that is being served: set by `guard`, for the task of the call. No gRPC here."""

from __future__ import annotations

from contextvars import ContextVar

from control import access
from control.access import Caller

_caller: ContextVar[Caller | None] = ContextVar("caller", default=None)


def caller() -> Caller | None:
    """None outside of a guarded call: on a socket of this machine, and in tests."""
    return _caller.get()


def serve_for(who: Caller) -> None:
    """From now on, in this task."""
    _caller.set(who)


def shown_secrets() -> bool:
    """Whether who makes the call may see the secrets of the cluster."""
    who = caller()
    return who is None or who.role in access.SHOWN_SECRETS
