"""Waiting until a service has converged: asks again and again, shows what it sees, and gives up in time."""

from __future__ import annotations

import functools
import shutil
import sys
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import click

from control.model import Node, Service, Task, UpdateStatus
from mesh.cli.errors import ExitCode, Failure
from mesh.cli.options import DURATION
from mesh.cli.session import Session
from mesh.cli.show.names import down_nodes, node_names
from mesh.cli.show.progress import LineDisplay, Progress, Stability, TerminalDisplay, assess, overall_line
from mesh.cli.text.duration import format_duration

# As often as Docker's command; with this many tasks only once a second, since each look lists them all.
POLL_S = 0.2
MANY_TASKS, POLL_MANY_S = 500, 1.0
# Unless told otherwise: longer than any start that goes well, so that nothing waits for ever unattended.
WAIT_TIMEOUT = "10m"
# A manager that restarts is away for a moment; looks that fail for longer than this end the waiting.
AWAY_MAX_S = 30.0

P = ParamSpec("P")
R = TypeVar("R")


def wait_options(command: Callable[..., R]) -> Callable[..., R]:
    """Adds --detach and --wait-timeout; the command gets `wait_s`: None for not at all."""

    @click.option("-d", "--detach", is_flag=True, help="Do not wait until the service has converged.")
    @click.option(
        "--wait-timeout",
        type=DURATION,
        default=WAIT_TIMEOUT,
        show_default=True,
        help="Wait no longer than this; then the exit code is 124, and the change goes on.",
    )
    @functools.wraps(command)
    def with_options(*args: object, detach: bool, wait_timeout: float, **rest: object) -> R:
        return command(*args, wait_s=None if detach else wait_timeout, **rest)

    return with_options


def wait_for_service(
    session: Session,
    service_id: str,
    *,
    wait_s: float,
    quiet: bool = False,
    changed: Service | None = None,
    rolling_back: bool = False,
) -> None:
    """Return when the service has converged and has stayed so for its monitor period.

    `changed` is the service as the change left it (None: it is new). Raises Failure: it failed, or time is over.
    """
    _Waiter(session, service_id, wait_s=wait_s, quiet=quiet, changed=changed, rolling_back=rolling_back).run()


class _Waiter:
    """One wait. No tasks of its own; Ctrl-C ends it between looks."""

    def __init__(
        self,
        session: Session,
        service_id: str,
        *,
        wait_s: float,
        quiet: bool,
        changed: Service | None,
        rolling_back: bool,
    ) -> None:
        self._session, self._id, self._wait_s, self._quiet = session, service_id, wait_s, quiet
        self._rolling_back = rolling_back
        self._service = changed or session.client().get(Service, service_id)
        self._target = self._service.spec_version
        self._before = changed.update_status if changed is not None and not rolling_back else UpdateStatus()
        policy = self._service.spec.rollback if rolling_back else self._service.spec.update
        self._stability = Stability(policy.monitor_s)
        self._tasks: list[Task] = []
        self._nodes: list[Node] = []
        name = self._service.spec.name
        self._lines = LineDisplay(name)
        self._terminal = TerminalDisplay(name, shutil.get_terminal_size().columns) if sys.stderr.isatty() else None

    def run(self) -> None:
        """Look until it is decided."""
        clock = self._session.monotonic_s
        deadline = clock() + self._wait_s
        seen = clock()
        try:
            while True:
                try:
                    self._look()
                except Failure as failure:
                    if failure.code is not ExitCode.UNAVAILABLE or clock() - seen > AWAY_MAX_S:
                        raise
                else:
                    seen = clock()
                    if self._decide(deadline):
                        return
                if clock() >= deadline:
                    raise self._too_late()
                self._session.sleep(POLL_MANY_S if len(self._tasks) > MANY_TASKS else POLL_S)
        except KeyboardInterrupt:
            click.echo(f"the change goes on without you: see mesh service ps {self._service.spec.name}", err=True)
            raise

    def _look(self) -> None:
        client = self._session.client()
        self._service = client.get(Service, self._id)
        self._tasks = client.list(Task, {"service": [self._id]})
        self._nodes = client.list(Node)

    def _progress(self) -> Progress:
        return assess(
            self._service,
            self._tasks,
            down_nodes(self._nodes),
            target_version=self._target,
            before=self._before,
            rolling_back=self._rolling_back,
        )

    def _decide(self, deadline: float) -> bool:
        progress = self._progress()
        left_s = self._stability.observe(converged=progress.converged, now=self._session.monotonic_s())
        self._show(progress, left_s)
        if progress.failure:
            raise Failure(progress.failure)
        return left_s == 0

    def _show(self, progress: Progress, left_s: float | None) -> None:
        if self._quiet:
            return
        if self._terminal is not None:
            text = self._terminal.frame(progress, left_s, node_names(self._nodes))
        else:
            text = self._lines.frame(progress, left_s)
        click.echo(text, nl=False, err=True)

    def _too_late(self) -> Failure:
        name, progress = self._service.spec.name, self._progress()
        return Failure(
            f'service "{name}" has not converged within {format_duration(self._wait_s)} '
            f"({overall_line(progress).removeprefix('overall progress: ')}); it goes on: see mesh service ps {name}",
            ExitCode.TIMED_OUT,
        )
