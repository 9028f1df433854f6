"""The twin of `kernel` in memory: for tests of what drives it, and for simulations.

Holds what was applied, reports changes and errors as the kernel does, and can be told to fail or to lose everything.
"""

from __future__ import annotations

from collections import Counter

from mesh.vip import ingress, maps
from mesh.vip.plan import Observed, ObservedService, Report, RouterPlan, VipPlan
from mesh.vip.rules import Key


class FakeKernel:
    """See `kernel.Kernel`. `broken` maps a router's namespace to the reason why it cannot be reached."""

    def __init__(self) -> None:
        self.broken: dict[str, str] = {}
        self._routers: dict[str, RouterPlan] = {}
        self._ports: dict[str, dict[Key, Key]] = {}  # elements of the host's maps

    def apply(self, plan: VipPlan, whole: bool = True) -> Report:
        """Take over what differs."""
        report = Report()
        for router in plan.routers:
            if router.netns in self.broken:
                report.errors.append(f"cannot balance in the router {router.netns}: {self.broken[router.netns]}")
            elif self._routers.get(router.netns) != router:
                self._routers[router.netns] = router
                report.changes["vip element"] += 1
        ports, errors = ingress.published(plan.published)
        report.errors += errors
        names = ports.keys() | self._ports.keys()
        differing = (ports.get(name, {}).items() ^ self._ports.get(name, {}).items() for name in names)
        report.changes += Counter({"vip element": sum(map(len, differing))})
        self._ports = ports
        return report

    def prune(self, plan: VipPlan, whole: bool = True) -> Report:
        """Drop routers that the plan no longer has."""
        report = Report()
        for path in self._routers.keys() - {router.netns for router in plan.routers}:
            del self._routers[path]
            report.changes["vip table"] += 1
        return report

    def observe(self) -> Observed:
        """What was applied, as the kernel would tell it."""
        services = {path: tuple(_observed(router)) for path, router in self._routers.items()}
        return ingress.observed(services, self._ports)

    def flush(self) -> None:
        """Somebody ran `nft flush ruleset` everywhere: the next apply repairs it."""
        self._routers.clear()
        self._ports.clear()

    def close(self) -> None:
        """Nothing is held."""


def _observed(router: RouterPlan) -> list[ObservedService]:
    return [
        ObservedService(service.address, service.protocol, service.port, slots)
        for service in maps.merged(router.services).values()
        if (slots := maps.by_address(maps.shares(service.backends, service.scheduler)))
    ]
