"""The node's side of the dispatcher stream: what is said when, and what survives a broken stream."""

from __future__ import annotations

import msgspec
import pytest

from control.assignment import Settings, encode
from control.lifecycle import TaskState
from control.model import NodeDescription, TaskStatus
from control.rpc import control_pb2 as pb
from mesh.agent.session import REPORT_MAX, SILENCE_PERIODS, ProtocolError, Session

SETTINGS = Settings(cluster_id="c", cluster_name="lab", vxlan_port=4789, heartbeat_period_s=1.0)


def opened(period_s: float = 1.0) -> Session:
    session = Session("n1", "secret", "10.0.0.1", NodeDescription(hostname="h1"))
    session.open(0.0)
    session.drain()
    session.receive(pb.ManagerMessage(welcome=pb.Welcome(heartbeat_period_s=period_s, managers=["m:1"])), 0.0)
    return session


def complete(sequence: int) -> pb.ManagerMessage:
    record = pb.Record(kind="settings", value=encode(SETTINGS))
    return pb.ManagerMessage(assignments=pb.Assignments(applies_to=0, results_in=sequence, records=[record]))


def difference(applies_to: int, results_in: int, *removed: tuple[str, str]) -> pb.ManagerMessage:
    keys = [pb.RecordKey(kind=kind, key=key) for kind, key in removed]
    return pb.ManagerMessage(assignments=pb.Assignments(applies_to=applies_to, results_in=results_in, removed=keys))


def kinds(session: Session) -> list[str | None]:
    return [m.WhichOneof("message") for m in session.drain()]


def test_the_first_message_is_hello_with_who_and_where_we_are() -> None:
    session = Session("n1", "secret", "10.0.0.1", NodeDescription(hostname="h1"))
    session.open(0.0)
    (message,) = session.drain()
    assert (message.hello.node_id, message.hello.secret, message.hello.data_address) == ("n1", "secret", "10.0.0.1")
    assert msgspec.msgpack.decode(message.hello.description, type=NodeDescription).hostname == "h1"


def test_heartbeats_follow_the_period_that_the_manager_names() -> None:
    session = opened(period_s=2.0)
    session.wake(1.9)
    assert kinds(session) == []
    session.wake(2.0)
    assert kinds(session) == ["heartbeat"]
    session.receive(pb.ManagerMessage(heartbeat=pb.HeartbeatReply(period_s=0.5)), 2.0)
    assert session.deadline() == 2.5


def test_a_manager_that_is_quiet_for_several_periods_is_given_up() -> None:
    session = opened(period_s=1.0)
    assert not session.silent(SILENCE_PERIODS * 1.0)
    assert session.silent(SILENCE_PERIODS * 1.0 + 0.1)


def test_statuses_wait_for_a_complete_set_and_are_repeated_until_acknowledged() -> None:
    session = opened()
    session.report({"t1": TaskStatus(state=TaskState.RUNNING)})
    session.wake(0.1)
    assert kinds(session) == []
    session.receive(complete(5), 0.1)
    session.wake(0.2)
    (first,) = session.drain()
    assert set(first.statuses.statuses) == {"t1"}
    session.close()
    session.open(1.0)
    session.drain()
    session.receive(complete(9), 1.0)
    session.wake(1.0)
    (again,) = session.drain()
    assert set(again.statuses.statuses) == {"t1"}
    session.receive(pb.ManagerMessage(status_ack=pb.StatusAck(number=again.statuses.number)), 1.1)
    session.close()
    session.open(2.0)
    session.drain()
    session.receive(complete(12), 2.0)
    session.wake(2.0)
    assert kinds(session) == []


def test_a_late_acknowledgement_of_an_older_report_does_not_drop_the_newer() -> None:
    session = opened()
    session.receive(complete(1), 0.0)
    session.report({"t1": TaskStatus(state=TaskState.STARTING)})
    session.wake(0.0)
    (old,) = session.drain()
    session.close()
    session.open(0.5)
    session.drain()
    session.receive(complete(2), 0.5)
    session.report({"t1": TaskStatus(state=TaskState.RUNNING)})
    session.wake(0.5)
    (new,) = session.drain()
    status = msgspec.msgpack.decode(new.statuses.statuses["t1"], type=TaskStatus)
    assert status.state == TaskState.RUNNING
    session.receive(pb.ManagerMessage(status_ack=pb.StatusAck(number=old.statuses.number)), 0.6)
    session.close()
    session.open(1.0)
    session.drain()
    session.receive(complete(3), 1.0)
    session.wake(1.0)
    assert kinds(session) == ["statuses"]


def test_a_report_is_bounded_and_the_rest_follows_the_acknowledgement() -> None:
    session = opened()
    session.receive(complete(1), 0.0)
    session.report({f"t{i}": TaskStatus() for i in range(REPORT_MAX + 5)})
    session.wake(0.0)
    (first,) = session.drain()
    assert len(first.statuses.statuses) == REPORT_MAX
    session.receive(pb.ManagerMessage(status_ack=pb.StatusAck(number=first.statuses.number)), 0.0)
    session.wake(0.0)
    (second,) = session.drain()
    assert len(second.statuses.statuses) == 5


def test_differences_apply_in_order_and_a_gap_ends_the_stream() -> None:
    session = opened()
    assert session.receive(complete(3), 0.0)
    assert session.assignments.settings() == SETTINGS
    session.receive(difference(3, 4, ("settings", "")), 0.0)
    assert session.assignments.settings() is None
    with pytest.raises(ProtocolError, match="difference on top of 9"):
        session.receive(difference(9, 10), 0.0)


def test_what_was_held_stays_in_force_in_a_new_stream_but_takes_no_difference() -> None:
    session = opened()
    session.receive(complete(3), 0.0)
    session.close()
    session.open(1.0)
    assert session.assignments.settings() == SETTINGS
    with pytest.raises(ProtocolError):
        session.receive(difference(3, 4), 1.0)


@pytest.mark.parametrize(
    "message",
    [
        pb.ManagerMessage(),
        pb.ManagerMessage(welcome=pb.Welcome(heartbeat_period_s=0)),
        pb.ManagerMessage(assignments=pb.Assignments(results_in=1, records=[pb.Record(kind="nonsense", value=b"")])),
        pb.ManagerMessage(
            assignments=pb.Assignments(results_in=1, records=[pb.Record(kind="settings", value=b"\xc1")])
        ),
        pb.ManagerMessage(assignments=pb.Assignments(results_in=1, records=[pb.Record(kind="task", value=b"\x80")])),
    ],
)
def test_nonsense_from_the_manager_ends_the_stream_and_changes_nothing(message: pb.ManagerMessage) -> None:
    session = opened()
    session.receive(complete(3), 0.0)
    with pytest.raises(ProtocolError):
        session.receive(message, 0.0)
    assert session.assignments.settings() == SETTINGS


def test_applied_is_told_once_and_again_in_a_new_stream_only_when_it_applies() -> None:
    session = opened()
    session.receive(complete(3), 0.0)
    session.applied(3)
    session.wake(0.0)
    session.wake(0.0)
    assert kinds(session) == ["applied"]
    session.close()
    session.open(1.0)
    session.drain()
    session.receive(complete(7), 1.0)
    session.wake(1.0)
    assert kinds(session) == []
