"""One node's stream of assignments: first complete, then the differences to what it was sent last. Pure.

The sequence number of a message is the store version that it brings the node to, so an acknowledgement says which
version a node's kernel holds. Nodes that share a layer share the work: `Encoder` makes the difference of two layers,
and its wire form, once for all of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from control.assignment import Key, encode
from control.dispatcher.assignments import (
    EMPTY,
    Layer,
    LayerId,
    Tables,
    difference,
    node_layer,
)
from control.rpc import control_pb2 as pb

Encoded = Mapping[Key, pb.Record]


@dataclass(frozen=True, slots=True)
class _Step:
    """The difference of two layers, ready to be sent. Holds them, so that their identity stays theirs."""

    old: Layer
    new: Layer
    changed: Encoded
    removed: frozenset[Key]


@dataclass(slots=True)
class Encoder:
    """Work that nodes share. `steps` live for one round; the wire form of shared layers as long as the layer."""

    _steps: dict[tuple[int, int], _Step] = field(default_factory=dict)
    _whole: dict[LayerId, tuple[Layer, Encoded]] = field(default_factory=dict)

    def step(self, old: Layer, new: Layer) -> _Step:
        """What leads from `old` to `new`."""
        key = (id(old), id(new))
        step = self._steps.get(key)
        if step is None:
            delta = difference(old, new)
            step = self._steps[key] = _Step(old, new, _encode(delta.changed), delta.removed)
        return step

    def whole(self, layer_id: LayerId, layer: Layer) -> Encoded:
        """All of a layer."""
        if layer_id.startswith(node_layer("")):
            return _encode(layer)  # only one node has it
        held = self._whole.get(layer_id)
        if held is None or held[0] is not layer:
            held = self._whole[layer_id] = (layer, _encode(layer))
        return held[1]

    def end_round(self, tables: Tables) -> None:
        """Forget what is of no use any more."""
        self._steps.clear()
        for layer_id in [i for i, (layer, _) in self._whole.items() if tables.layer(i) is not layer]:
            del self._whole[layer_id]


@dataclass(slots=True)
class Feed:
    """What one stream was sent. `sequence` 0: nothing yet."""

    node_id: str
    sequence: int = 0
    _held: dict[LayerId, Layer] = field(default_factory=dict)
    _ids: tuple[LayerId, ...] = ()
    _ids_from: tuple[Layer, frozenset[LayerId]] | None = None  # what `_ids` was made from

    def complete(self, tables: Tables, encoder: Encoder) -> pb.Assignments:
        """The first message: everything."""
        self._held = self._layers(tables)
        self.sequence = tables.version
        records: dict[Key, pb.Record] = {}
        for layer_id, layer in self._held.items():
            records.update(encoder.whole(layer_id, layer))
        return pb.Assignments(applies_to=0, results_in=self.sequence, records=records.values())

    def next(self, tables: Tables, encoder: Encoder) -> pb.Assignments | None:
        """The difference to the last message; None if there is none."""
        layers = self._layers(tables)
        changed: dict[Key, pb.Record] = {}
        removed: set[Key] = set()
        for layer_id in dict.fromkeys((*self._held, *layers)):
            old, new = self._held.get(layer_id, EMPTY), layers.get(layer_id, EMPTY)
            if old is not new:
                step = encoder.step(old, new)
                changed.update(step.changed)
                removed |= step.removed
        self._held = layers
        # What has left one layer may still be in another: a service on two networks.
        removed = {key for key in removed if not any(key in layer for layer in layers.values())}
        if not changed and not removed:
            return None
        before, self.sequence = self.sequence, tables.version
        return pb.Assignments(
            applies_to=before, results_in=self.sequence, records=changed.values(), removed=_keys(removed)
        )

    def _layers(self, tables: Tables) -> dict[LayerId, Layer]:
        made_from = (tables.layer(node_layer(self.node_id)), tables.ingress)
        if self._ids_from is None or made_from[0] is not self._ids_from[0] or made_from[1] != self._ids_from[1]:
            self._ids, self._ids_from = tables.layers_of(self.node_id), made_from
        return {layer_id: tables.layer(layer_id) for layer_id in self._ids}


def _encode(layer: Layer) -> Encoded:
    return {key: pb.Record(kind=key[0], value=encode(record)) for key, record in layer.items()}


def _keys(keys: Iterable[Key]) -> list[pb.RecordKey]:
    return [pb.RecordKey(kind=kind, key=key) for kind, key in sorted(keys)]
