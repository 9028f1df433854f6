"""Makes the plans true: overlay, balancers and name server, in an order that never breaks live traffic.

One worker thread holds all netlink and nftables handles; the loop never waits for the kernel. Two ways to do it:

- *A change of the plan* (debounced) costs what changed: the plan is made by difference, and what is as it was last
  applied is not looked at.
- *As a whole*, level-triggered: the plan is made from nothing, the kernel is read and put right. At the start, every
  RESYNC_S, when others have changed the kernel, and after a failure.
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
from mesh.agent.compile import Compiler, NodePlan
from mesh.agent.view import View
from mesh.metrics import Counter, Metrics
from mesh.vip.plan import Observed, VipPlan
from overlay import names
from overlay.plan import OverlayPlan
from overlay.ranges import Prefix

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
    def apply(self, plan: OverlayPlan, whole: bool = True) -> Report: ...
    def prune(self, plan: OverlayPlan, whole: bool = True) -> Report: ...


class BalancerKind(Protocol):
    @property
    def name(self) -> str: ...


class Balancer(Protocol):
    @property
    def balancer(self) -> BalancerKind: ...
    @property
    def balancer_reason(self) -> str: ...
    def apply(self, plan: VipPlan, whole: bool = True) -> Report: ...
    def prune(self, plan: VipPlan, whole: bool = True) -> Report: ...
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
    async def follow(self, routers: Iterable[str], ways: Iterable[Prefix] = ()) -> None: ...
    def quiet(self) -> AbstractContextManager[None]: ...
    def close(self) -> None: ...


class Unwatched:
    """Where there is no kernel to be watched: in tests."""

    async def follow(self, routers: Iterable[str], ways: Iterable[Prefix] = ()) -> None:
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


def _ways(plan: NodePlan) -> list[Prefix]:
    """Where the host's own routes concern us: the networks, which it reaches by us, and the other nodes."""
    networks = [subnet for one in plan.overlay.networks for subnet in (one.subnet, one.subnet6) if subnet is not None]
    return [*networks, *(peer.underlay for peer in plan.overlay.peers)] if plan.overlay.networks else []


class Reconciler:
    """Applies the newest plan. `run` lives as long as the daemon; `kick` says that something changed."""

    def __init__(
        self,
        overlay: Overlay,
        balancer: Balancer,
        name_server: NameServer,
        view: Callable[[], tuple[View, int]],
        done: Callable[[Outcome], None],
        metrics: Metrics,
        watch: MakeWatch = lambda _: Unwatched(),
    ) -> None:
        """`view` is all that is known now, and the sequence it was made from; `done` hears of each application.

        `watch` makes what calls `repair` when others change the kernel.
        """
        self._watch = watch(self.repair)
        self._overlay, self._balancer, self._name_server = overlay, balancer, name_server
        self._view, self._done = view, done
        self._compiler: Compiler | None = None
        self._dirty = asyncio.Event()
        self._whole = True
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="kernel")
        self._last: NodePlan | None = None
        self.repairs: Counter = metrics.counter("meshd_repairs_total", "Differences found in the kernel and put right")
        self._changes: Counter = metrics.counter("meshd_kernel_changes_total", "Changes made in the kernel")
        self._strays: Counter = metrics.counter(
            "meshd_plan_strays_total", "Plans made by difference that were not as they are from nothing"
        )

    def kick(self) -> None:
        """Something changed that plans are made of: apply soon."""
        self._dirty.set()

    def repair(self) -> None:
        """Something may have changed in the kernel: look at all of it soon."""
        self._whole = True
        self._dirty.set()

    async def run(self) -> None:
        """Apply whenever kicked, and as a whole every RESYNC_S."""
        loop = asyncio.get_running_loop()
        self.repair()
        due_s = loop.time()
        try:
            while True:
                try:
                    async with asyncio.timeout_at(due_s):
                        await self._dirty.wait()
                    await asyncio.sleep(DEBOUNCE_S)
                except TimeoutError:
                    pass
                self._dirty.clear()
                whole, self._whole = self._whole or loop.time() >= due_s, False
                outcome = await self.apply_once(whole)
                if outcome.errors:
                    due_s = loop.time() + RETRY_S
                elif whole:
                    due_s = loop.time() + RESYNC_S
        finally:
            self._watch.close()

    async def apply_once(self, whole: bool = True) -> Outcome:
        """Apply the newest plan now."""
        view, sequence = self._view()
        loop = asyncio.get_running_loop()
        plan = await self._plan_anew(view) if whole or self._compiler is None else self._compiler.compile(view)
        expected, errors = plan != self._last, []
        if self._last is not None and not expected:
            plan = self._last  # the same object: the name server need not be told
        if whole or expected:
            with self._watch.quiet():
                errors = await loop.run_in_executor(self._thread, self._kernel, plan, expected, whole)
            await self._watch.follow(_watched(plan), _ways(plan))
        await self._name_server.apply(plan.dns)
        self._last = plan if not errors else None
        outcome = Outcome(plan, sequence, tuple(errors))
        self._done(outcome)
        return outcome

    async def _plan_anew(self, view: View) -> NodePlan:
        """The plan from nothing; if it is what the differences have come to, that, whose objects are known."""
        made = Compiler()
        plan = await asyncio.get_running_loop().run_in_executor(self._thread, made.compile, view)
        if self._compiler is not None:
            by_difference = self._compiler.compile(view)
            if by_difference == plan:
                return by_difference
            self._strays.add(1)
            log.error("a plan made by difference was wrong, and is replaced")
        self._compiler = made
        return plan

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

    def _kernel(self, plan: NodePlan, expected: bool, whole: bool) -> list[str]:
        """Routes before backends, backends gone before routes. Runs in the worker thread."""
        reports = [
            self._overlay.apply(plan.overlay, whole),
            self._balancer.apply(plan.vip, whole),
            self._balancer.prune(plan.vip, whole),
            self._overlay.prune(plan.overlay, whole),
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
