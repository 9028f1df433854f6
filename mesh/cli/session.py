"""What every command is given: the daemon (connected at the first call), the clocks, the terminal."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

import click

from mesh.cli.contexts import Contexts, config_directory
from mesh.cli.errors import ExitCode, Failure

if TYPE_CHECKING:
    from mesh.cli.client import Client

X = TypeVar("X")

# A change that somebody else keeps overtaking is given up after this many tries.
TRIES_MAX = 5
DEFAULT_SOCKET = "/run/meshd/meshd.sock"


@dataclass
class Session:
    """One run of `mesh`."""

    socket: str = DEFAULT_SOCKET
    context: str = ""  # of a cluster elsewhere; "": `socket`
    environment: Mapping[str, str] = field(default_factory=lambda: os.environ)
    wall_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000
    monotonic_s: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep
    execute: Callable[[str, list[str], dict[str, str]], object] = os.execve  # does not return
    _client: Client | None = field(default=None, init=False)

    def client(self) -> Client:
        """The connection to the daemon. Raises Failure."""
        from mesh.cli.client import Client

        if self._client is None:
            self._client = Client(self.contexts().get(self.context) if self.context else self.socket)
        return self._client

    def contexts(self) -> Contexts:
        """Those of whoever calls."""
        return Contexts(config_directory(self.environment))

    def close(self) -> None:
        """End the connection, if there is one."""
        if self._client is not None:
            self._client.close()
            self._client = None

    def warn(self, sentence: str) -> None:
        """Tell the user something on standard error that is no failure."""
        click.echo(styled("warning:", "yellow") + " " + sentence, err=True)


pass_session = click.make_pass_decorator(Session)


def styled(text: str, colour: str) -> str:
    """`text` in colour, if standard error is a terminal and the user has nothing against it (no-color.org)."""
    wanted = sys.stderr.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    return click.style(text, fg=colour) if wanted else text


def for_each(names: Sequence[str], do: Callable[[str], None]) -> None:
    """Do it for each name, telling what fails; the exit code is that of the first failure.

    Without daemon or manager the others are not tried.
    """
    first: Failure | None = None
    for name in names:
        try:
            do(name)
        except Failure as failure:
            if failure.code is ExitCode.UNAVAILABLE:
                raise
            click.echo(f"{styled('error:', 'red')} {failure}", err=True)
            first = first or failure
    if first is not None:
        raise click.exceptions.Exit(first.code)


def retry_overtaken(step: Callable[[], X]) -> X:
    """Run a read-decide-write step; again, when what it has read was changed by somebody else meanwhile."""
    for _ in range(TRIES_MAX - 1):
        try:
            return step()
        except Failure as failure:
            if failure.code is not ExitCode.CONFLICT:
                raise
    return step()
