"""How a call is refused: a status code and one sentence (several mistakes: one a line). No gRPC here."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, cast, get_args

from control.store.errors import (
    AddressConflict,
    BackendFailed,
    ForbiddenTransition,
    NameConflict,
    NotLeader,
    NumberConflict,
    OutcomeUnknown,
    PortConflict,
    Refused,
    StoreClosed,
    StoreError,
    TooLarge,
    VersionConflict,
)

Code = Literal[
    "NOT_FOUND",
    "ALREADY_EXISTS",
    "INVALID_ARGUMENT",
    "FAILED_PRECONDITION",
    "ABORTED",
    "UNAVAILABLE",
    "UNAUTHENTICATED",
    "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED",
]

_CODES: dict[type[StoreError], Code] = {
    VersionConflict: "ABORTED",
    NameConflict: "ALREADY_EXISTS",
    NumberConflict: "FAILED_PRECONDITION",
    AddressConflict: "FAILED_PRECONDITION",
    PortConflict: "ALREADY_EXISTS",
    ForbiddenTransition: "FAILED_PRECONDITION",
    TooLarge: "INVALID_ARGUMENT",
    Refused: "RESOURCE_EXHAUSTED",  # not UNAVAILABLE: who hands a call on would take the leader for lost
    NotLeader: "UNAVAILABLE",
    OutcomeUnknown: "UNAVAILABLE",
    StoreClosed: "UNAVAILABLE",
    BackendFailed: "UNAVAILABLE",
}


class Refusal(Exception):
    """The call cannot be done. The text is for the user as it is."""

    def __init__(self, code: Code, sentence: str) -> None:
        super().__init__(sentence)
        self.code: Code = code

    @classmethod
    def of_wire(cls, code: str, sentence: str) -> Refusal:
        """As another machine has said it; a code that is not known here is no reason to believe otherwise."""
        return cls(cast("Code", code) if code in get_args(Code) else "FAILED_PRECONDITION", sentence)


def mistaken(mistakes: Sequence[str]) -> None:
    """Refuse if there is any mistake, naming all."""
    if mistakes:
        raise Refusal("INVALID_ARGUMENT", "\n".join(mistakes))


def of_store(error: StoreError) -> Refusal:
    """What the store refuses, as told to a user."""
    known = (_CODES[cls] for cls in type(error).__mro__ if cls in _CODES)
    return Refusal(next(known, "UNAVAILABLE"), str(error))
