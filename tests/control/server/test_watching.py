"""What one watch is told, without gRPC."""

from __future__ import annotations

from typing import Any

from hypothesis import example, given, settings
from hypothesis import strategies as st

from control.model import Meta, Network, NetworkSpec
from control.rpc import control_pb2 as pb
from control.server.watching import Watching
from control.store.tables import Event, Snapshot, event

EVENT = pb.Event


def network(id_: str, version: int, internal: bool) -> Network:
    return Network(id=id_, meta=Meta(version=version), spec=NetworkSpec(name=id_, internal=internal))


steps = st.lists(
    st.one_of(
        st.tuples(st.just("put"), st.sampled_from("ab"), st.sampled_from([True, True, False])),
        st.tuples(st.just("delete"), st.sampled_from("ab")),
        st.just(("tell",)),
        st.just(("resync",)),
    ),
    max_size=30,
)


@settings(max_examples=100, deadline=None)
@given(steps)
@example([("put", "a", True), ("tell",), ("put", "a", True), ("resync",)])
@example([("put", "a", True), ("tell",), ("delete", "a"), ("resync",)])
@example([("put", "a", True), ("tell",), ("put", "a", False), ("resync",)])
def test_whoever_believes_a_watch_knows_what_passes_the_filter(script: list[Any]) -> None:
    snapshot, pending = Snapshot(), list[Event]()
    watching = Watching(Network, lambda obj: isinstance(obj, Network) and obj.spec.internal)
    known: dict[str, Network] = {}

    def hear(told: Any) -> None:
        for action, obj in told:
            match action:
                case EVENT.PRESENT | EVENT.CREATED:
                    assert obj.id not in known
                    known[obj.id] = obj
                case EVENT.UPDATED:
                    assert known[obj.id].meta.version < obj.meta.version
                    known[obj.id] = obj
                case EVENT.REMOVED:
                    del known[obj.id]

    hear(watching.begin(snapshot))
    for step in [*script, ("tell",)]:
        match step:
            case ("put", id_, internal):
                after = network(id_, snapshot.version + 1, internal)
                pending.append(event(snapshot.get(Network, id_), after))
                snapshot = snapshot.apply(snapshot.version + 1, pending[-1:])
            case ("delete", id_) if (before := snapshot.get(Network, id_)) is not None:
                pending.append(event(before, None))
                snapshot = snapshot.apply(snapshot.version + 1, pending[-1:])
            case ("tell",):
                hear(watching.follow(pending))
                pending = []
            case ("resync",):
                hear(watching.resync(snapshot))
                pending = []
    expected = {n.id: n for n in snapshot.all(Network) if n.spec.internal}
    assert known == expected
