"""The nodes in the order in which a service's tasks go to them: a tree of its preferences, a heap in each leaf. Pure.

Each placement preference is a level: branches with fewer tasks of the service are filled first, whatever the nodes in
them. All nodes of a branch count, also those that cannot take a task now. Nodes without the label form a branch, too.
"""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence

from control.constraint import attribute
from control.scheduler.filters import NodeLoad

# (failures if there are too many, tasks of the service, tasks, index, the node): sorted, the best node first.
_Rank = tuple[int, int, int, int, NodeLoad]


class Leaf:
    """Nodes that no preference tells apart, the best on top of a heap."""

    def __init__(
        self, service_id: str, candidates: Sequence[NodeLoad], faults: Mapping[str, int], tasks: int = 0
    ) -> None:
        """`faults`: node id -> failures there, of the nodes with too many. `tasks`: those of the service in it."""
        self.tasks = tasks
        self._service_id = service_id
        self._faults = faults
        self._heap = [self._rank(load) for load in candidates]
        heapq.heapify(self._heap)

    def _rank(self, load: NodeLoad) -> _Rank:
        faults = self._faults.get(load.node.id, 0) if self._faults else 0
        return faults, load.by_service.get(self._service_id, 0), load.tasks, load.index, load

    def take(self, place: Callable[[NodeLoad], bool]) -> NodeLoad | None:
        """The best node that `place` takes. One that it refuses takes no other task of this kind either."""
        heap = self._heap
        while heap:
            load = heap[0][-1]
            if place(load):
                self.tasks += 1
                heapq.heapreplace(heap, self._rank(load))
                return load
            heapq.heappop(heap)
        return None


class Branch:
    """Several branches or leaves, the one with the fewest tasks of the service on top of a heap."""

    def __init__(self, parts: Sequence[Branch | Leaf]) -> None:
        self.tasks: int = sum(part.tasks for part in parts)
        self._heap = [(part.tasks, i, part) for i, part in enumerate(parts)]
        heapq.heapify(self._heap)

    def take(self, place: Callable[[NodeLoad], bool]) -> NodeLoad | None:
        """As Leaf.take. A branch that has no node left is not asked again."""
        heap = self._heap
        while heap:
            _, i, part = heap[0]
            found = part.take(place)
            if found is not None:
                self.tasks += 1
                heapq.heapreplace(heap, (part.tasks, i, part))
                return found
            heapq.heappop(heap)
        return None


def grow(
    service_id: str,
    everything: Sequence[NodeLoad],
    candidates: Sequence[NodeLoad],
    faults: Mapping[str, int],
    keys: Sequence[str],
) -> Branch | Leaf:
    """The tree for one service. `candidates` are those of `everything` that may take its tasks."""
    if not keys:
        return Leaf(service_id, candidates, faults)
    every: dict[str, list[NodeLoad]] = defaultdict(list)
    fit: dict[str, list[NodeLoad]] = defaultdict(list)
    for loads, parts in ((everything, every), (candidates, fit)):
        for load in loads:
            parts[attribute(load.node, keys[0])].append(load)
    if len(keys) > 1:
        return Branch([grow(service_id, part, fit[value], faults, keys[1:]) for value, part in sorted(every.items())])
    counts = {value: sum(load.by_service.get(service_id, 0) for load in part) for value, part in every.items()}
    return Branch([Leaf(service_id, fit[value], faults, counts[value]) for value in sorted(every)])
