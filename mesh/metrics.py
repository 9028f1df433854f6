"""Counters and gauges of the daemon, and their Prometheus text form (exposition format 0.0.4).

Deliberately small: there are no labels, so nothing that comes from outside can make it grow.
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(slots=True)
class Counter:
    """A number that only grows while the daemon lives."""

    name: str
    help: str
    value: float = 0.0

    def add(self, amount: float = 1.0) -> None:
        """Add to it."""
        self.value += amount


@dataclass(slots=True)
class Gauge:
    """A number that is what it is now."""

    name: str
    help: str
    value: float = 0.0


@dataclass(slots=True)
class Metrics:
    """All metrics of one process."""

    _all: dict[str, Counter | Gauge] = field(default_factory=dict)

    def counter(self, name: str, text: str) -> Counter:
        """The counter of that name; it ends in `_total`. Made at the first call."""
        made = self._all.setdefault(name, Counter(name, text))
        assert isinstance(made, Counter), name
        return made

    def gauge(self, name: str, text: str) -> Gauge:
        """The gauge of that name. Made at the first call."""
        made = self._all.setdefault(name, Gauge(name, text))
        assert isinstance(made, Gauge), name
        return made

    def render(self) -> str:
        """The text that Prometheus scrapes."""
        lines: list[str] = []
        for metric in self._all.values():
            kind = "counter" if isinstance(metric, Counter) else "gauge"
            lines += [
                f"# HELP {metric.name} {metric.help}",
                f"# TYPE {metric.name} {kind}",
                f"{metric.name} {metric.value:g}",
            ]
        return "\n".join(lines) + "\n"
