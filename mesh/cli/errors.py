"""How a command ends: its exit code, and one sentence when it fails."""

from __future__ import annotations

import enum


class ExitCode(enum.IntEnum):
    """Part of the interface: scripts depend on it."""

    OK = 0
    FAILED = 1  # the operation was tried and did not succeed
    USAGE = 2  # what was typed makes no sense
    NOT_FOUND = 3
    CONFLICT = 4  # the name is taken, or the object has changed meanwhile
    UNAVAILABLE = 5  # no daemon, no manager, no quorum: trying again may help
    REFUSED = 6  # not allowed
    DEGRADED = 7  # `mesh status`: something is wrong
    TIMED_OUT = 124  # still not converged when the time to wait was over
    INTERRUPTED = 130


# Names of gRPC's status codes; those that are not here are FAILED.
OF_STATUS: dict[str, ExitCode] = {
    "INVALID_ARGUMENT": ExitCode.USAGE,
    "OUT_OF_RANGE": ExitCode.USAGE,
    "NOT_FOUND": ExitCode.NOT_FOUND,
    "ALREADY_EXISTS": ExitCode.CONFLICT,
    "ABORTED": ExitCode.CONFLICT,
    "UNAVAILABLE": ExitCode.UNAVAILABLE,
    "DEADLINE_EXCEEDED": ExitCode.UNAVAILABLE,
    "RESOURCE_EXHAUSTED": ExitCode.UNAVAILABLE,
    "UNAUTHENTICATED": ExitCode.REFUSED,
    "PERMISSION_DENIED": ExitCode.REFUSED,
}


class Failure(Exception):
    """Ends the command. The text is for the user as it is: one sentence, or one a line when there are several."""

    def __init__(self, sentence: str, code: ExitCode = ExitCode.FAILED) -> None:
        super().__init__(sentence)
        self.code = code
