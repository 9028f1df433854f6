"""How a call is refused: a status code and one sentence (several mistakes: one a line). No gRPC here."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

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
]

_CODES: dict[type[StoreError], Code] = {
    VersionConflict: "ABORTED",
    NameConflict: "ALREADY_EXISTS",
    NumberConflict: "FAILED_PRECONDITION",
    AddressConflict: "FAILED_PRECONDITION",
    PortConflict: "ALREADY_EXISTS",
    ForbiddenTransition: "FAILED_PRECONDITION",
    TooLarge: "INVALID_ARGUMENT",
    Refused: "UNAVAILABLE",
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


def mistaken(mistakes: Sequence[str]) -> None:
    """Refuse if there is any mistake, naming all."""
    if mistakes:
        raise Refusal("INVALID_ARGUMENT", "\n".join(mistakes))


def of_store(error: StoreError) -> Refusal:
    """What the store refuses, as told to a user."""
    return Refusal(_CODES.get(type(error), "UNAVAILABLE"), str(error))
