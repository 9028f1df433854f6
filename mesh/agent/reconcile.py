"""Makes the plans true: overlay, balancers and name server, in an order that never breaks live traffic.

One worker thread holds all netlink and nftables handles; the loop never waits for the kernel. Runs when something
changed (debounced), and at least every RESYNC_S, so that what others broke is repaired.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

from dns.plan import Address, DnsPlan
from dns.resolver import Explanation, Line
from dns.service import Status
from mesh.agent.compile import NodePlan
from mesh.metrics import Counter, Metrics
from mesh.vip.plan import Observed, VipPlan
from overlay import names
from overlay.plan import OverlayPlan

T = TypeVar("T")

log = logging.getLogger(__name__)

# What others change behind our back is repaired within this time at the latest.
RESYNC_S = 30.0
# After a change, wait this long for more of them: a service of many tasks comes in several messages.
DEBOUNCE_S = 0.02
# After a failure, try again after this long, instead of at the next resync.
RETRY_S = 1.0


class Report(Protocol):
    """What one application changed and what it could not."""

    @property
    def changes(self) -> dict[str, int]: ...
    @property
    def errors(self) -> list[str]: ...


class Overlay(Protocol):
    def apply(self, plan: OverlayPlan) -> Report: ...
    def prune(self, plan: OverlayPlan) -> Report: ...


class BalancerKind(Protocol):
    @property
    def name(self) -> str: ...


class Balancer(Protocol):
    @property
    def balancer(self) -> BalancerKind: ...
    @property
    def balancer_reason(self) -> str: ...
    def apply(self, plan: VipPlan) -> Report: ...
    def prune(self, plan: VipPlan) -> Report: ...
    def observe(self) -> Observed: ...


class NameServer(Protocol):
    async def run(self) -> None: ...
    async def apply(self, plan: DnsPlan) -> None: ...
    def status(self) -> Status: ...
    def explain(self, name: str, qtype: int, network_id: str | None, client: Address | None = None) -> Explanation: ...
    def dump(self) -> list[Line]: ...


@dataclass(frozen=True, slots=True)
class Outcome:
    """The plan that was applied, and the sentences about what could not be."""

    plan: NodePlan
    sequence: int
    errors: tuple[str, ...]


class Watch(Protocol):
    async def follow(self, routers: Iterable[str]) -> None: ...
    def quiet(self) -> AbstractContextManager[None]: ...
    def close(self) -> None: ...


class Unwatched:
    """Where there is no kernel to be watched: in tests."""

    async def follow(self, routers: Iterable[str]) -> None:
        """Nothing to follow."""

    def quiet(self) -> AbstractContextManager[None]:
        """Nothing to be quiet about."""
        return contextlib.nullcontext()

    def close(self) -> None:
        """Nothing to close."""


MakeWatch = Callable[[Callable[[], None]], Watch]


def _watched(plan: NodePlan) -> list[str]:
    """The namespaces of a plan: routers, and where WireGuard is if any network is encrypted."""
    watched = [router.netns for router in plan.vip.routers]
    if watched and any(network.encrypted for network in plan.overlay.networks):
        watched.append(str(Path(watched[0]).with_name(names.ENCRYPTION_NETNS)))
    return watched


class Reconciler:
    """Applies the newest plan. `run` lives as long as the daemon; `kick` says that something changed."""

    def __init__(
        self,
        overlay: Overlay,
        balancer: Balancer,
        name_server: NameServer,
        plan: Callable[[], tuple[NodePlan, int]],
        done: Callable[[Outcome], None],
        metrics: Metrics,
        watch: MakeWatch = lambda _: Unwatched(),
    ) -> None:
        """`plan` gives the newest plan and the sequence it was made from; `done` hears of each application.

        `watch` makes what calls `kick` when others change the kernel.
        """
        self._watch = watch(self.kick)
        self._overlay, self._balancer, self._name_server = overlay, balancer, name_server
        self._plan, self._done = plan, done
        self._dirty = asyncio.Event()
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="kernel")
        self._last: NodePlan | None = None
        self.repairs: Counter = metrics.counter("meshd_repairs_total", "Differences found in the kernel and put right")
        self._changes: Counter = metrics.counter("meshd_kernel_changes_total", "Changes made in the kernel")

    def kick(self) -> None:
        """Something changed: apply soon."""
        self._dirty.set()

    async def run(self) -> None:
        """Apply whenever kicked, and every RESYNC_S."""
        self._dirty.set()
        wait_s = RESYNC_S
        try:
            while True:
                try:
                    async with asyncio.timeout(wait_s):
                        await self._dirty.wait()
                    await asyncio.sleep(DEBOUNCE_S)
                except TimeoutError:
                    pass
                self._dirty.clear()
                outcome = await self.apply_once()
                wait_s = RETRY_S if outcome.errors else RESYNC_S
        finally:
            self._watch.close()

    async def apply_once(self) -> Outcome:
        """Apply the newest plan now."""
        plan, sequence = self._plan()
        loop = asyncio.get_running_loop()
        expected = plan != self._last
        with self._watch.quiet():
            errors = await loop.run_in_executor(self._thread, self._kernel, plan, expected)
        await self._watch.follow(_watched(plan))
        await self._name_server.apply(plan.dns)
        self._last = plan if not errors else None
        outcome = Outcome(plan, sequence, tuple(errors))
        self._done(outcome)
        return outcome

    @property
    def plan(self) -> NodePlan | None:
        """The plan that is in force; None when there is none, or not all of it could be applied."""
        return self._last

    def observe(self) -> Observed:
        """What the balancers hold. Only by `in_thread`. Raises OSError."""
        return self._balancer.observe()

    async def in_thread(self, look: Callable[[], T]) -> T:
        """Look at the kernel from where it is changed, and so never in the midst of a change."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, look)

    def close(self) -> None:
        """Let go of the worker thread. What is in the kernel stays."""
        self._thread.shutdown(wait=True)

    def _kernel(self, plan: NodePlan, expected: bool) -> list[str]:
        """Routes before backends, backends gone before routes. Runs in the worker thread."""
        reports = [
            self._overlay.apply(plan.overlay),
            self._balancer.apply(plan.vip),
            self._balancer.prune(plan.vip),
            self._overlay.prune(plan.overlay),
        ]
        changes = {kind: count for report in reports for kind, count in report.changes.items() if count}
        if changes:
            (self._changes if expected else self.repairs).add(sum(changes.values()))
            log.log(
                logging.DEBUG if expected else logging.WARNING,
                "applied the plan" if expected else "repaired the kernel",
                extra=changes,
            )
        errors = [error for report in reports for error in report.errors]
        for error in errors:
            log.warning("cannot apply a part of the plan", extra={"error": error})
        return errors
