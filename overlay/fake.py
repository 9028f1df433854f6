"""The twin of `kernel` in memory: for tests of what drives it, and for simulations.

Holds the networks that were applied, and reports changes and errors as the kernel does. While `broken`, no task can be
attached.
"""

from __future__ import annotations

from overlay.kernel import Report
from overlay.plan import OverlayNetwork, OverlayPlan, Peer


class FakeKernel:
    """See `kernel.Kernel`."""

    def __init__(self) -> None:
        self.broken = False
        self.networks: dict[str, OverlayNetwork] = {}
        self.peers: frozenset[Peer] = frozenset()

    def apply(self, plan: OverlayPlan, whole: bool = True) -> Report:
        """Take over what differs."""
        report = Report()
        for network in plan.networks:
            if self.networks.get(network.id) != network:
                self.networks[network.id] = network
                report.changes["link"] += 1
            report.errors += (
                f"cannot attach task {task.id} to network {network.id}: no such namespace"
                for task in network.local
                if self.broken
            )
        if plan.networks and self.peers != frozenset(plan.peers):
            self.peers = frozenset(plan.peers)
            report.changes["fdb"] += 1
        return report

    def prune(self, plan: OverlayPlan, whole: bool = True) -> Report:
        """Drop networks that the plan no longer has."""
        report = Report()
        for id_ in self.networks.keys() - {n.id for n in plan.networks}:
            del self.networks[id_]
            report.changes["namespace"] += 1
        return report

    def close(self) -> None:
        """Nothing is held."""
