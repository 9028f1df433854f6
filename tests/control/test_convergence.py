"""The decision cores together, in virtual time, under whatever users, nodes and dying leaders do to them.

Always: one task per slot is meant to run, besides the old one of a start-first replacement; no address has two holders,
and none is used again before it has rested; no healthy task is stopped without a reason. In the end: every service has
what it asks for, and nothing more is decided.
"""

from __future__ import annotations

import random
from collections import Counter
from itertools import chain

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from control.lifecycle import TaskState, Writer, is_terminal
from control.model import (
    ClusterSpec,
    GlobalMode,
    Node,
    Placement,
    PortSpec,
    RestartPolicy,
    Service,
    ServiceMode,
    Task,
    UpdatePolicy,
)
from control.store.txn import Put
from tests.control.cluster import World, network, node, service

S = TaskState
NODES = 4
REST_S = 15.0

UPDATES = st.builds(
    UpdatePolicy,
    parallelism=st.integers(0, 2),
    delay_s=st.sampled_from([0.0, 2.0]),
    monitor_s=st.sampled_from([0.0, 3.0]),
    order=st.sampled_from(["stop-first", "start-first"]),
    failure_action=st.sampled_from(["pause", "continue", "rollback"]),
)
AT_ONCE = UpdatePolicy(parallelism=0, delay_s=0.0, monitor_s=0.0, order="stop-first", failure_action="pause")
STEPS = st.one_of(
    st.tuples(st.just("scale"), st.integers(0, 6)),
    st.tuples(st.just("state"), st.integers(1, NODES), st.sampled_from(["down", "ready", "unknown"])),
    st.tuples(st.just("availability"), st.integers(1, NODES), st.sampled_from(["active", "pause", "drain"])),
    st.tuples(st.just("label"), st.integers(1, NODES), st.booleans()),
    st.tuples(st.just("fail"), st.integers(0, 6)),
    st.tuples(st.just("update"), st.integers(0, 3), UPDATES, st.booleans()),
    st.tuples(st.just("constrain"), st.booleans()),
    st.tuples(st.just("remove node"), st.integers(1, NODES)),
    st.tuples(st.just("run"), st.integers(1, 40)),
)


class Checked(World):
    """A world that is looked at after every write."""

    def write(self, changes):  # type: ignore[no-untyped-def]
        changes = list(changes)
        for writer, change in changes:
            if isinstance(change, Put) and isinstance(change.obj, Task):
                self._note(writer, change.obj)
        super().write(changes)

    def _note(self, writer: Writer, after: Task) -> None:
        before = self.snapshot.get(Task, after.id)
        for held in after.addresses if before is None or not before.addresses else ():
            key = (held.network_id, held.address)
            assert self.freed.get(key, -1) <= self.now_ms, f"{key} is used again before it has rested"
        if before is not None and not is_terminal(before.status.state) and is_terminal(after.status.state):
            for held in before.addresses:  # from here on nobody has it; a leader may take seconds to write that down
                self.freed[held.network_id, held.address] = self.now_ms + int(REST_S * 1000)

    freed: dict[tuple[str, str], int]

    def check(self) -> None:
        """What must hold at any time."""
        tasks = list(self.snapshot.all(Task))
        live = [t for t in tasks if not is_terminal(t.status.state)]
        vips = [(v.network_id, v.address) for s in self.snapshot.all(Service) for v in s.vips]
        held = [(a.network_id, a.address) for t in live for a in t.addresses] + vips
        assert len(held) == len(set(held))
        wanted: dict[tuple[str, int, str], list[Task]] = {}
        for task in tasks:
            if task.desired_state is S.RUNNING and not is_terminal(task.status.state):
                place = (task.service_id, task.slot, "" if task.slot else task.node_id)
                wanted.setdefault(place, []).append(task)
        for place, group in wanted.items():
            assert len(group) <= 2, place
            if len(group) == 2:
                assert self._start_first(place[0]), f"two tasks in {place} without start-first"

    def _start_first(self, service_id: str) -> bool:
        return service_id in self.overlapping

    overlapping: set[str]


def make(seed: int) -> Checked:
    made = Checked.__new__(Checked)
    made.freed, made.overlapping = {}, set()
    made.__init__(seed=seed, spec=ClusterSpec(address_rest_s=REST_S, task_history_limit=seed % 3))  # type: ignore[misc]
    made.put(*(node(f"n{i}", labels={"zone": "a"}) for i in range(1, NODES + 1)))
    made.put(network(), network("tiny", subnet="10.9.0.0/27"))
    restart = RestartPolicy(delay_s=1)
    made.put(
        service(replicas=3, networks=["web", "tiny"], task={"restart": restart}),
        service("all", mode=ServiceMode(global_=GlobalMode()), networks=["tiny"], task={"restart": restart}),
        service(
            "host",
            replicas=2,
            networks=["web"],
            ports=(PortSpec(target=80, published=8080, mode="host"), PortSpec(target=81)),
            task={"restart": restart},
        ),
    )
    return made


def act(made: Checked, step: tuple[object, ...]) -> None:
    match step:
        case ("scale", int(n)):
            made.scale(n)
        case ("state", int(n), str(state)) if _there(made, n):
            made.set_state(f"n{n}", state)  # type: ignore[arg-type]
        case ("availability", int(n), str(availability)) if _there(made, n):
            made.set_availability(f"n{n}", availability)  # type: ignore[arg-type]
        case ("label", int(n), bool(there)) if _there(made, n):
            made.label(f"n{n}", **({"zone": "a"} if there else {}))
        case ("fail", int(slot)):
            for task in list(made.snapshot.all(Task)):
                if task.slot == slot and S.ASSIGNED <= task.status.state <= S.RUNNING:
                    made.report(task, S.FAILED)
        case ("update", int(n), UpdatePolicy() as policy, bool(broken)):
            if policy.order == "start-first":
                made.overlapping.add("s-api")
            version = f"v{n}" + "-broken" * broken
            made.rerun(version, policy)
        case ("constrain", bool(on)):
            made.update(placement=Placement(constraints=("node.labels.zone==a",) if on else ()))
        case ("remove node", int(n)) if _there(made, n) and made.node(f"n{n}").status.state == "down":
            made.delete(Node, f"n{n}")
        case ("run", int(n)):
            live(made, n)


def _there(made: World, n: int) -> bool:
    return made.snapshot.get(Node, f"n{n}") is not None


def live(made: Checked, rounds: int) -> None:
    for _ in range(rounds):
        made.decide()
        made.check()
        made.agents()
        made.check()
        made.now_ms += 500


def _is_broken(task: Task) -> bool:
    return task.spec.process is not None and task.spec.process.command[0].endswith("-broken")


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(STEPS, max_size=14), st.integers(0, 1000), st.booleans())
@example([("scale", 0), ("scale", 5), ("update", 0, AT_ONCE, True), ("run", 26)], 754, True)  # it dies amid a release
def test_whatever_happens(steps: list[tuple[object, ...]], seed: int, leaders_die: bool) -> None:
    made = make(seed)
    made.broken = _is_broken
    made.dying = random.Random(seed) if leaders_die else None
    for step in steps:
        act(made, step)
        live(made, 2)
    heal(made)
    live(made, 600)
    made.check()
    assert_as_asked(made)
    version = made.snapshot.version
    live(made, 60)
    assert made.snapshot.version == version, "it has nothing left to do"


def heal(made: Checked) -> None:
    made.dying = None
    for held in list(made.snapshot.all(Node)):
        made.set_state(held.id, "ready")
        made.set_availability(held.id, "active")
        made.label(held.id, zone="a")
    for i in range(1, NODES + 1):
        if not _there(made, i):
            made.put(node(f"n{i}", labels={"zone": "a"}))
    made.broken = lambda task: False


def assert_as_asked(made: Checked) -> None:
    for held in made.snapshot.all(Service):
        mode = held.spec.mode.replicated
        running = [t for t in made.snapshot.tasks_of_service(held.id) if t.status.state is S.RUNNING]
        assert len(running) == (mode.replicas if mode is not None else NODES), held.id
        assert len({(t.slot, "" if t.slot else t.node_id) for t in running}) == len(running)
        if held.update_status.state not in ("paused", "rollback_paused"):
            assert all(t.spec.process == held.spec.task.process for t in running), held.update_status
    gone = [t for t in made.snapshot.all(Task) if t.desired_state is S.REMOVE]
    assert gone == []
    ports = Counter(
        (t.node_id, p.published) for t in made.snapshot.all(Task) if t.status.state is S.RUNNING for p in t.ports
    )
    assert set(ports.values()) <= {1}


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.integers(1, NODES), max_size=4), st.integers(0, 1000))
def test_no_healthy_task_is_stopped_because_leaders_change(cuts: list[int], seed: int) -> None:
    made = make(seed)
    live(made, 60)
    before = {t.id for t in made.snapshot.all(Task)}
    made.dying = random.Random(seed)
    for n in cuts:
        made.new_id = World(seed=seed + n).new_id
        made.set_state(f"n{n}", "unknown")  # as a new leader finds them
        live(made, 4)
        made.set_state(f"n{n}", "ready")
        live(made, 4)
    assert {t.id for t in made.snapshot.all(Task) if t.status.state is S.RUNNING} == before


@pytest.mark.parametrize("seed", range(4))
def test_the_same_snapshot_gives_the_same_decision(seed: int) -> None:
    first, second = make(seed), make(seed)
    for made in (first, second):
        live(made, 3)
        made.rerun("v1", UpdatePolicy(parallelism=2))
        made.set_state("n2", "down")
        live(made, 20)
    assert list(chain(first.snapshot.objects())) == list(chain(second.snapshot.objects()))
