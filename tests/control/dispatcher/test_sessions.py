"""Conversations with the core of the dispatcher, in virtual time."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from control.dispatcher import sessions
from control.dispatcher.assignments import assignments, build
from control.dispatcher.events import Resynced
from control.dispatcher.managers import managers
from control.lifecycle import TaskState
from control.model import Node, NodeDescription, NodeSpec, NodeStatus, Service, Task, TaskStatus
from control.rpc import control_pb2 as pb
from control.spec import DESCRIPTION_MAX_BYTES
from control.store.tables import Snapshot

S = TaskState


@pytest.fixture
def world(world_of: Any, make: Any) -> Any:
    """Two nodes; a task on each, of one service on one network."""
    return world_of(
        make.cluster(),
        make.node(1, role="manager"),
        make.node(2),
        make.network("web"),
        make.service("api", "web"),
        make.task("api", 1, 1, "web"),
        make.task("api", 2, 2, "web"),
    )


def kinds(messages: list[pb.ManagerMessage]) -> list[str | None]:
    return [m.WhichOneof("message") for m in messages]


# --- hello --------------------------------------------------------------------------------------------------------


def test_a_session_begins_with_welcome_and_a_complete_set(world: Any) -> None:
    answer = world.hello(1, 1)
    assert kinds(answer) == ["welcome", "assignments"]
    assert list(answer[0].welcome.managers) == ["192.0.2.1:7377"]
    assert 4.5 <= answer[0].welcome.heartbeat_period_s <= 5.5
    assert answer[1].assignments.applies_to == 0
    assert set(world.held(1).records) == {
        ("settings", ""),
        ("node", "node1"),
        ("peer", "node1"),
        ("peer", "node2"),
        ("network", "web"),
        ("catalog", "web"),
        ("service", "api"),
        ("endpoint", "api1/web"),
        ("endpoint", "api2/web"),
        ("task", "api1"),
    }


def test_where_managers_are_is_told_when_it_changes_and_only_then_looked_for(
    world: Any, make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked = []
    monkeypatch.setattr(sessions, "managers", lambda snapshot: looked.append(1) or managers(snapshot))
    world.hello(1, 1)
    world.hello(2, 2)
    looked.clear()

    def told(stream: int) -> list[list[str]]:
        answers = [m.heartbeat for m in world.sent[stream] if m.WhichOneof("message") == "heartbeat"]
        return [list(a.managers) for a in answers if a.managers]

    worker = world.get(Node, "node2")
    world.put(msgspec.structs.replace(worker, control_address="192.0.2.2:7377"))
    world.put(msgspec.structs.replace(world.get(Node, "node1"), status=NodeStatus(state="disconnected")))
    assert looked == []
    promoted = msgspec.structs.replace(worker, control_address="192.0.2.2:7377", spec=NodeSpec(role="manager"))
    world.put(promoted)
    world.put(msgspec.structs.replace(promoted, control_address="192.0.2.7:7377"))
    world.put(msgspec.structs.replace(promoted, spec=NodeSpec(role="worker")))
    first = "192.0.2.1:7377"
    assert told(1) == told(2) == [[first, "192.0.2.2:7377"], [first, "192.0.2.7:7377"], [first]]


def test_hello_makes_the_node_ready_with_what_it_says_of_itself(world: Any) -> None:
    description = NodeDescription(hostname="h2", cpus=4.0, routes=("10.0.0.0/8",))
    world.hello(1, 2, description=msgspec.msgpack.encode(description), data_address="192.0.2.99")
    node = world.get(Node, "node2")
    assert node.status.state == "ready"
    assert node.description == description
    assert (node.status.data_address, node.status.address) == ("192.0.2.99", "198.51.100.1")


@pytest.mark.parametrize(
    ("changes", "code", "counter"),
    [
        ({"secret": "wrong"}, "UNAUTHENTICATED", "bad_secret"),
        ({"secret": ""}, "UNAUTHENTICATED", "bad_secret"),
        ({"secret": "secret1"}, "UNAUTHENTICATED", "bad_secret"),
        ({"node_id": "nobody"}, "UNAUTHENTICATED", "bad_secret"),
        ({"description": b"\xc1junk"}, "INVALID_ARGUMENT", "undecodable"),
        ({"description": b"\xa1x"}, "INVALID_ARGUMENT", "undecodable"),
        ({"description": msgspec.msgpack.encode(NodeDescription(hostname="h1\n"))}, "INVALID_ARGUMENT", "undecodable"),
        ({"data_address": "not an address"}, "INVALID_ARGUMENT", "undecodable"),
        ({"description": b"\x00" * (DESCRIPTION_MAX_BYTES + 1)}, "INVALID_ARGUMENT", "undecodable"),
    ],
)
def test_a_bad_hello_is_refused(world: Any, changes: dict[str, Any], code: str, counter: str) -> None:
    assert world.hello(1, 2, **changes) == []
    assert world.closed[1].code == code
    assert world.count(counter) == 1
    assert world.core.status().streams == 0


def test_a_node_without_a_stored_secret_can_never_be_impersonated(world: Any, make: Any) -> None:
    world.put(msgspec.structs.replace(make.node(3), secret_digest=""))
    world.hello(1, 3, secret="")
    assert world.closed[1].code == "UNAUTHENTICATED"


def test_whoever_says_something_else_first_is_sent_away(world: Any) -> None:
    world.open(1)
    world.say(1, heartbeat=pb.Heartbeat())
    assert world.closed[1].code == "INVALID_ARGUMENT"


def test_a_second_hello_ends_the_session(world: Any) -> None:
    world.hello(1, 1)
    world.say(1, hello=pb.Hello(node_id="node2", secret="secret2"))
    assert world.closed[1].code == "INVALID_ARGUMENT"


def test_whoever_says_nothing_is_sent_away(world: Any) -> None:
    world.open(1)
    world.pass_time(sessions.HELLO_TIMEOUT_S - 0.1)
    assert 1 not in world.closed
    world.pass_time(0.2)
    assert world.closed[1].sentence == "no Hello within 10 s"


def test_strangers_cannot_fill_the_manager(world: Any) -> None:
    for stream in range(sessions.UNNAMED_MAX):
        world.open(stream)
    assert not world.closed
    world.open(5000)
    assert world.closed[5000].code == "RESOURCE_EXHAUSTED"
    assert world.core.status().streams == sessions.UNNAMED_MAX


def test_the_fourth_registration_in_eight_seconds_is_refused(world: Any) -> None:
    for stream in (1, 2, 3):
        world.hello(stream, 1)
        world.pass_time(1)
    assert world.hello(4, 1) == []
    assert world.closed[4].code == "UNAVAILABLE"
    assert "registers more than 3 times in 8 s" in world.closed[4].sentence
    assert 3 not in world.closed, "the session that stands is not harmed"
    world.hello(5, 2)
    assert 5 not in world.closed, "each node has its own limit"
    world.pass_time(5.1)  # the first is 8.1 s ago
    assert kinds(world.hello(6, 1)) == ["welcome", "assignments"]


def test_strangers_cannot_use_up_a_nodes_registrations(world: Any) -> None:
    for stream in range(10):
        world.hello(stream, 1, secret="guess")
    assert kinds(world.hello(20, 1)) == ["welcome", "assignments"]


def test_a_new_session_of_a_node_ends_the_old_one(world: Any) -> None:
    world.hello(1, 1)
    world.hello(2, 1)
    assert world.closed[1].sentence == "another session of this node has begun"
    world.hang_up(1)  # the old stream's handler ends later
    assert world.say(2, heartbeat=pb.Heartbeat())[0].heartbeat.period_s > 0
    assert world.core.status().sessions == 1


# --- liveness -----------------------------------------------------------------------------------------------------


def test_a_new_leader_knows_nothing_of_the_nodes(world: Any) -> None:
    assert [world.get(Node, n).status.state for n in ("node1", "node2")] == ["unknown", "unknown"]


def test_a_node_that_is_down_stays_down_for_a_new_leader(world_of: Any, make: Any) -> None:
    world = world_of(make.cluster(), make.node(1, state="down"))
    assert world.get(Node, "node1").status.state == "down"


def test_a_silent_node_is_down_after_three_periods_and_its_stream_is_closed(world: Any) -> None:
    period_s = world.hello(1, 1)[0].welcome.heartbeat_period_s
    world.pass_time(3 * period_s - 0.01)
    assert world.get(Node, "node1").status.state == "ready"
    world.pass_time(0.02)
    node = world.get(Node, "node1")
    assert node.status.state == "down"
    assert node.status.message == f"nothing heard of it for {3 * period_s:.1f} s"
    assert world.closed[1].code == "UNAVAILABLE"
    assert world.say(1, heartbeat=pb.Heartbeat()) == [], "its old session is not heard any more"
    world.hello(2, 1)
    assert world.get(Node, "node1").status.state == "ready"


def test_heartbeats_keep_a_node_ready_and_carry_the_period(world: Any, make: Any) -> None:
    world.hello(1, 1)
    for _ in range(10):
        world.pass_time(4)
        (answer,) = world.say(1, heartbeat=pb.Heartbeat())
        assert 4.5 <= answer.heartbeat.period_s <= 5.5
    world.put(make.cluster(period_s=1.0))
    (answer,) = world.say(1, heartbeat=pb.Heartbeat())
    assert 0.9 <= answer.heartbeat.period_s <= 1.1
    world.pass_time(3.4)
    assert world.get(Node, "node1").status.state == "down", "the new period counts at once"


def test_a_node_that_a_new_leader_never_hears_has_six_periods(world: Any) -> None:
    world.pass_time(6 * 4.5 - 0.1)
    assert world.get(Node, "node2").status.state == "unknown"
    world.pass_time(6 * 1.1)
    assert world.get(Node, "node2").status.state == "down"


def test_a_node_that_joined_and_never_came_goes_down(world: Any, make: Any) -> None:
    world.put(make.node(3, state="unknown"))
    world.pass_time(6 * 5.5 + 0.1)
    assert world.get(Node, "node3").status.state == "down"


def test_a_broken_stream_alone_changes_nothing(world: Any) -> None:
    world.hello(1, 1)
    world.hang_up(1)
    world.pass_time(10)
    assert world.get(Node, "node1").status.state == "ready"
    world.hello(2, 1)
    world.pass_time(10)
    assert world.get(Node, "node1").status.state == "ready"


def test_a_manager_that_stood_still_does_not_blame_the_nodes(world: Any) -> None:
    world.hello(1, 1)
    world.pass_time(1)
    world.now += 60  # swapped out, or stopped by SIGSTOP: no wake in all that time
    world.core.wake(world.now)
    world.run()
    assert world.get(Node, "node1").status.state == "ready"
    world.say(1, heartbeat=pb.Heartbeat())
    world.pass_time(10)
    assert world.get(Node, "node1").status.state == "ready"
    assert world.count("stalls") == 1
    world.pass_time(10)
    assert world.get(Node, "node1").status.state == "down", "and is still watchful"


def test_tasks_are_orphaned_after_a_day(world: Any) -> None:
    world.hello(1, 1)
    world.pass_time(20)
    assert world.get(Node, "node1").status.state == "down"
    world.pass_time(sessions.ORPHAN_AFTER_S - 60)
    assert world.get(Task, "api1").status.state == S.RUNNING
    world.pass_time(120)
    assert world.get(Task, "api1").status.state == S.ORPHANED
    assert world.get(Task, "api2").status.state == S.ORPHANED


def test_a_node_that_comes_back_within_the_day_keeps_its_tasks(world: Any) -> None:
    world.pass_time(3600)
    assert world.get(Node, "node1").status.state == "down"
    world.hello(1, 1)
    for _ in range(3):
        world.pass_time(5)
        world.say(1, heartbeat=pb.Heartbeat())
    assert world.get(Task, "api1").status.state == S.RUNNING


def test_a_node_that_comes_back_just_in_time_keeps_its_tasks(world: Any) -> None:
    """It is said to be gone for good while another write is under way."""
    world.hello(1, 2)
    world.pass_time(20)
    world.hold_writes = True
    world.hello(2, 2)
    (under_way,) = world.writes[-1:]
    world.pass_time(10 + sessions.ORPHAN_AFTER_S)  # node1 is due; node2 fell silent again
    world.hello(3, 1)
    world.hold_writes = False
    world.write(under_way)
    assert world.get(Task, "api1").status.state == S.RUNNING
    assert world.get(Node, "node1").status.state == "ready"


def test_removing_a_node_ends_its_session_and_orphans_its_tasks(world: Any) -> None:
    world.hello(1, 2)
    world.delete(world.get(Node, "node2"))
    assert world.closed[1].sentence == "this node was removed from the cluster"
    assert world.get(Task, "api2").status.state == S.ORPHANED
    assert world.get(Task, "api1").status.state == S.RUNNING
    world.hello(2, 2)
    assert world.closed[2].code == "UNAUTHENTICATED"


def test_tasks_of_a_node_that_is_gone_are_orphaned_by_a_new_leader_too(world_of: Any, make: Any) -> None:
    world = world_of(make.cluster(), make.task("api", 1, "gone", "web"), make.task("api", 2, "gone", state=S.PENDING))
    assert world.get(Task, "api1").status.state == S.ORPHANED
    assert world.get(Task, "api2").status.state == S.PENDING, "not placed yet: not the dispatcher's"
    world.put(make.task("api", 3, "gone", "web", state=S.ASSIGNED))
    assert world.get(Task, "api3").status.state == S.ORPHANED


# --- assignments --------------------------------------------------------------------------------------------------


def test_changes_within_fifty_milliseconds_come_as_one_difference(world: Any, make: Any) -> None:
    """SwarmKit's TestTasksBatch."""
    world.hello(1, 1)
    world.pass_time(1)
    before = len(world.assignments(1))
    for slot in range(3, 13):
        world.put(make.task("api", slot, 1, "web", state=S.ASSIGNED))
        world.pass_time(0.004)
    assert len(world.assignments(1)) == before
    world.pass_time(0.05)
    assert len(world.assignments(1)) == before + 1
    last = world.assignments(1)[-1]
    assert last.results_in == world.snapshot.version
    assert sum(r.kind == "task" for r in last.records) == 10
    assert len(world.held(1).records) == 10 + 20


def test_a_node_hears_nothing_of_what_does_not_concern_it(world: Any, make: Any) -> None:
    world.put(make.network("db", vni=4098), make.service("sql", "db"))
    world.hello(1, 1)
    world.pass_time(1)
    before = len(world.assignments(1))
    world.put(make.task("sql", 1, 2, "db"))
    world.put(msgspec.structs.replace(make.service("sql", "db"), spec_version=2))
    world.pass_time(1)
    assert len(world.assignments(1)) == before


def test_its_own_reports_do_not_come_back_to_a_node(world: Any, make: Any) -> None:
    world.put(make.task("lone", 1, 1, state=S.ASSIGNED))
    world.hello(1, 1)
    world.pass_time(1)
    before = len(world.assignments(1))
    world.report(1, 1, lone1=TaskStatus(state=S.RUNNING, pid=7))
    world.pass_time(1)
    assert world.get(Task, "lone1").status.state == S.RUNNING
    assert len(world.assignments(1)) == before
    world.report(1, 2, lone1=TaskStatus(state=S.FAILED, exit_code=1))
    world.pass_time(1)
    assert world.held(1).records["task", "lone1"].status.state == S.FAILED  # type: ignore[union-attr]


def test_a_network_comes_and_goes_with_a_task(world: Any, make: Any) -> None:
    world.put(make.network("db", vni=4098), make.service("sql", "db"), make.task("sql", 1, 2, "db"))
    world.hello(1, 1)
    task = make.task("sql", 2, 1, "db", state=S.ASSIGNED)
    world.put(task)
    world.pass_time(1)
    assert {("network", "db"), ("endpoint", "sql1/db"), ("service", "sql")} <= set(world.held(1).records)
    world.put(msgspec.structs.replace(world.get(Task, "sql2"), status=TaskStatus(state=S.FAILED)))
    world.pass_time(1)
    held = world.held(1).records
    assert ("network", "db") not in held
    assert ("service", "sql") not in held
    assert ("task", "sql2") in held, "an ended task stays known until it is removed"
    world.delete(world.get(Task, "sql2"))
    world.pass_time(1)
    assert ("task", "sql2") not in world.held(1).records


def test_a_service_on_two_networks_stays_while_one_of_them_does(world: Any, make: Any) -> None:
    world.put(
        make.network("db", vni=4098),
        make.service("both", "web", "db"),
        make.task("both", 5, 1, "web", "db"),
    )
    world.hello(1, 1)
    assert {("network", "db"), ("service", "both")} <= set(world.held(1).records)
    world.put(msgspec.structs.replace(world.get(Task, "both5"), status=TaskStatus(state=S.COMPLETE)))
    world.pass_time(1)
    held = world.held(1).records  # api1 is still on web
    assert ("network", "db") not in held
    assert ("service", "both") in held


def test_a_lost_node_is_told_to_the_others(world: Any) -> None:
    world.hello(1, 1)
    world.hello(2, 2)
    for _ in range(6):
        world.pass_time(4)
        world.say(1, heartbeat=pb.Heartbeat())
    held = world.held(1).records
    assert held["peer", "node2"].state == "down"  # type: ignore[union-attr]
    assert held["endpoint", "api2/web"].state == "lost"  # type: ignore[union-attr]


def test_a_resync_is_a_difference_too(world: Any, make: Any) -> None:
    world.hello(1, 1)
    world.pass_time(1)
    objects = [o for o in world.snapshot.objects() if o.id not in ("api2", "node2")]
    world.snapshot = Snapshot.of([*objects, make.service("new", "web")], 900)
    world.core.receive(Resynced(world.snapshot), world.now)
    world.run()
    world.pass_time(1)
    held = world.held(1)
    assert held.sequence >= 900
    assert ("service", "new") in held.records
    assert ("endpoint", "api2/web") not in held.records
    assert world.assignments(1)[-1].applies_to != 0


def test_a_node_that_does_not_read_is_cut_off(world: Any) -> None:
    world.hello(1, 1)
    world.unread.add(1)
    for _ in range(sessions.UNREAD_MAX + 10):
        world.say(1, heartbeat=pb.Heartbeat())
    assert world.closed[1].sentence == "the node does not read what it is sent"
    assert world.core.status().streams == 0
    assert world.get(Node, "node1").status.state == "ready", "until its deadline"


# --- statuses -----------------------------------------------------------------------------------------------------


def test_statuses_are_written_and_then_acknowledged(world: Any, make: Any) -> None:
    world.put(make.task("new", 1, 1, state=S.ASSIGNED))
    world.hello(1, 1)
    world.hold_writes = True
    assert world.report(1, 7, new1=TaskStatus(state=S.PREPARING)) == []
    assert world.get(Task, "new1").status.state == S.ASSIGNED
    world.hold_writes = False
    world.write(world.writes[-1])
    assert world.get(Task, "new1").status.state == S.PREPARING
    assert world.sent[1][-1].status_ack.number == 7


def test_what_comes_during_a_write_goes_into_the_next(world: Any, make: Any) -> None:
    world.put(make.task("new", 1, 1, state=S.ASSIGNED))
    world.hello(1, 1)
    world.hold_writes = True
    world.report(1, 1, new1=TaskStatus(state=S.ACCEPTED))
    first = world.writes[-1]
    world.report(1, 2, new1=TaskStatus(state=S.PREPARING))
    world.report(1, 3, new1=TaskStatus(state=S.RUNNING))
    assert world.writes[-1] is first
    world.write(first)
    assert world.sent[1][-1].status_ack.number == 1
    second = world.writes[-1]
    assert second is not first
    assert {t: s.state for t, s in second.reports.items()} == {"new1": S.RUNNING}
    world.write(second)
    assert [m.status_ack.number for m in world.sent[1] if m.WhichOneof("message") == "status_ack"] == [1, 2, 3]


def test_a_regression_does_not_undo_what_waits_to_be_written(world: Any, make: Any) -> None:
    world.put(make.task("one", 1, 1, state=S.ASSIGNED), make.task("two", 1, 1, state=S.ASSIGNED))
    world.hello(1, 1)
    world.hold_writes = True
    world.report(1, 1, one1=TaskStatus(state=S.RUNNING))
    under_way = world.writes[-1]
    world.report(1, 2, two1=TaskStatus(state=S.RUNNING))
    world.report(1, 3, one1=TaskStatus(state=S.STARTING), two1=TaskStatus(state=S.STARTING))
    assert world.count("regressions") == 2
    world.hold_writes = False
    world.write(under_way)
    assert [world.get(Task, t).status.state for t in ("one1", "two1")] == [S.RUNNING, S.RUNNING]


def test_a_repeated_report_waits_for_the_write_that_carries_it(world: Any, make: Any) -> None:
    world.put(make.task("new", 1, 1, state=S.ASSIGNED))
    world.hello(1, 1)
    world.hold_writes = True
    world.report(1, 1, new1=TaskStatus(state=S.ACCEPTED))
    world.hang_up(1)
    world.hello(2, 1)
    answer = world.report(2, 1, new1=TaskStatus(state=S.ACCEPTED))
    assert kinds(answer) == [], "not durable yet: the node must keep it"


def test_an_empty_report_is_acknowledged_at_once(world: Any) -> None:
    world.hello(1, 1)
    assert kinds(world.report(1, 9)) == ["status_ack"]


@pytest.mark.parametrize("task_id", ["api2", "nosuch"])
def test_only_its_own_tasks_may_be_reported(world: Any, task_id: str) -> None:
    """SwarmKit's TestTaskUpdate."""
    world.hello(1, 1)
    answer = world.report(1, 1, **{task_id: TaskStatus(state=S.FAILED), "api1": TaskStatus(state=S.FAILED)})
    assert world.get(Task, "api2").status.state == S.RUNNING
    assert world.get(Task, "api1").status.state == S.FAILED, "the rest of the report counts"
    assert kinds(answer)[-1] == "status_ack", "the node need not say it again"
    assert world.count("foreign_task") + world.count("unknown_task") == 1


@pytest.mark.parametrize("state", [S.ASSIGNED, S.ACCEPTED, S.STARTING, S.REJECTED, S.ORPHANED, S.REMOVE, S.NEW])
def test_a_running_task_cannot_go_back(world: Any, state: TaskState) -> None:
    world.hello(1, 1)
    world.report(1, 1, api1=TaskStatus(state=state))
    assert world.get(Task, "api1").status.state == S.RUNNING
    assert world.count("regressions") == 1


def test_an_ended_task_stays_ended(world: Any) -> None:
    world.hello(1, 1)
    world.report(1, 1, api1=TaskStatus(state=S.FAILED, error="it broke"))
    for state in S:
        world.report(1, 2, api1=TaskStatus(state=state, error="no, it did not"))
    assert world.get(Task, "api1").status.error == "it broke"
    assert world.get(Task, "api1").status.state == S.FAILED


def test_a_task_that_is_not_placed_yet_cannot_be_reported(world: Any, make: Any) -> None:
    """A global service's task names its node before it is assigned."""
    world.put(make.task("early", 1, 1, state=S.PENDING))
    world.hello(1, 1)
    world.report(1, 1, early1=TaskStatus(state=S.PENDING, message="mine"))
    world.report(1, 2, early1=TaskStatus(state=S.RUNNING))
    assert world.get(Task, "early1").status == TaskStatus(state=S.PENDING)


def test_long_messages_are_cut(world: Any) -> None:
    world.hello(1, 1)
    world.report(1, 1, api1=TaskStatus(state=S.FAILED, error="x" * 100_000))
    assert len(world.get(Task, "api1").status.error) == sessions.SENTENCE_MAX


def test_junk_in_a_report_is_dropped_and_counted(world: Any) -> None:
    world.hello(1, 1)
    junk = {"api1": b"\xc1", "api2": b"", "": b"junk"}
    answer = world.say(1, statuses=pb.StatusReport(number=1, statuses=junk))
    assert kinds(answer) == ["status_ack"]
    assert world.count("undecodable") == 1
    assert world.core.status().sessions == 1


def test_an_unknown_message_is_ignored(world: Any) -> None:
    world.hello(1, 1)
    assert world.say(1) == []
    assert world.count("unknown_message") == 1
    assert world.core.status().sessions == 1


def test_a_description_can_change_during_a_session(world: Any) -> None:
    world.hello(1, 1)
    world.say(1, description=msgspec.msgpack.encode(NodeDescription(hostname="renamed")))
    world.say(1, description=b"\xc1")
    assert world.get(Node, "node1").description.hostname == "renamed"
    assert world.count("undecodable") == 1


# --- acknowledgements of assignments ------------------------------------------------------------------------------


def test_what_a_kernel_holds_is_known(world: Any, make: Any) -> None:
    world.hello(1, 1)
    world.pass_time(1)
    sequence = world.held(1).sequence
    assert world.core.applied("node1") == 0
    world.say(1, applied=pb.Applied(sequence=sequence))
    assert world.core.applied("node1") == sequence
    assert world.core.caught_up("node1", sequence)
    world.put(make.service("elsewhere"))  # of no concern to it
    version = world.snapshot.version
    assert not world.core.caught_up("node1", version), "it has not been told yet"
    world.pass_time(1)
    assert world.core.caught_up("node1", version)
    world.put(make.service("here", "web"))
    version = world.snapshot.version
    world.pass_time(1)
    assert not world.core.caught_up("node1", version)
    world.say(1, applied=pb.Applied(sequence=version))
    assert world.core.caught_up("node1", version)
    world.hang_up(1)
    assert not world.core.caught_up("node1", version)


def test_a_node_cannot_have_applied_what_it_was_not_sent(world: Any) -> None:
    world.hello(1, 1)
    world.say(1, applied=pb.Applied(sequence=10**6))
    assert world.core.applied("node1") == 0
    assert world.count("applied_ahead") == 1


# --- all of it together -------------------------------------------------------------------------------------------

steps = st.lists(
    st.one_of(
        st.tuples(st.just("hello"), st.integers(1, 3)),
        st.tuples(st.just("hang up"), st.integers(1, 3)),
        st.tuples(st.just("beat"), st.integers(1, 3)),
        st.tuples(st.just("time"), st.sampled_from([0.01, 0.06, 3.0, 9.0, 40.0])),
        st.tuples(st.just("task"), st.integers(1, 3), st.integers(1, 4), st.sampled_from([S.ASSIGNED, S.RUNNING])),
        st.tuples(st.just("report"), st.integers(1, 3), st.integers(1, 4), st.sampled_from([S.RUNNING, S.FAILED])),
        st.tuples(st.just("drop"), st.integers(1, 4)),
        st.tuples(st.just("junk"), st.binary(max_size=20)),
    ),
    max_size=40,
)


# The fixtures hold nothing: one gives a class, the other a maker of values.
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps)
def test_whatever_happens_a_session_holds_what_its_node_should(world_of: Any, make: Any, script: list[Any]) -> None:
    world = world_of(
        make.cluster(),
        *(make.node(n) for n in (1, 2, 3)),
        make.network("web"),
        make.network("db", vni=4098),
        make.service("api", "web", "db"),
    )
    current: dict[int, int] = {}
    stream = 0
    for step in script:
        match step:
            case ("hello", node):
                stream += 1
                world.hello(stream, node)
                current[node] = stream
            case ("hang up", node) if node in current:
                world.hang_up(current.pop(node))
            case ("beat", node) if node in current:
                world.say(current[node], heartbeat=pb.Heartbeat())
            case ("time", seconds):
                world.pass_time(seconds)
            case ("task", node, slot, state):
                if world.get(Task, f"api{slot}") is None:
                    world.put(make.task("api", slot, node, "web" if slot % 2 else "db", state=state))
            case ("report", node, slot, state) if node in current:
                world.report(current[node], 1, **{f"api{slot}": TaskStatus(state=state)})
            case ("drop", slot):
                task = world.get(Task, f"api{slot}")
                if task is not None:
                    world.delete(task)
            case ("junk", data):
                stream += 1
                world.open(stream)
                world.say(stream, statuses=pb.StatusReport(statuses={"api1": data}))
            case _:
                pass
    world.pass_time(0.2)
    assert world.get(Service, "api") is not None
    for node, number in current.items():
        if number not in world.closed:
            expected = assignments(build(world.snapshot), f"node{node}")
            assert world.held(number).records == expected
