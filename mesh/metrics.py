"""Counters and gauges of the daemon, and their Prometheus text form (exposition format 0.0.4).

Deliberately small: the only label is `what`, with names of our own: nothing that comes from outside makes it grow.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal


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
class Table:
    """Numbers that a part of the daemon keeps itself, by name. Counters only grow, but for its restarts."""

    name: str
    help: str
    read: Callable[[], Mapping[str, float]]
    kind: Literal["counter", "gauge"] = "counter"


@dataclass(slots=True)
class Metrics:
    """All metrics of one process."""

    _all: dict[str, Counter | Gauge | Table] = field(default_factory=dict)

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

    def table(
        self,
        name: str,
        text: str,
        read: Callable[[], Mapping[str, float]],
        kind: Literal["counter", "gauge"] = "counter",
    ) -> None:
        """Numbers to be read when they are asked for, under one name with a label `what`. Replaces an earlier one."""
        self._all[name] = Table(name, text, read, kind)

    def render(self) -> str:
        """The text that Prometheus scrapes."""
        lines: list[str] = []
        for metric in self._all.values():
            kind = metric.kind if isinstance(metric, Table) else "gauge" if isinstance(metric, Gauge) else "counter"
            lines += [f"# HELP {metric.name} {metric.help}", f"# TYPE {metric.name} {kind}"]
            if isinstance(metric, Table):
                lines += [f'{metric.name}{{what="{what}"}} {value:g}' for what, value in sorted(metric.read().items())]
            else:
                lines.append(f"{metric.name} {metric.value:g}")
        return "\n".join(lines) + "\n"
