"""What gossip says, as `compile` gets it."""

from __future__ import annotations

from typing import Any

import pytest

from gossip.delegate import Address
from gossip.endpoints import EndpointChange, Health, Snapshot, TaskState, task_key
from gossip.serf.roster import Kind, MemberChange, SerfMember, Status
from mesh.agent.rumours import GONE_MAX, MANAGER_TAG, MANAGERS_MAX, NODE_TAG, RumourBook
from mesh.agent.view import Told


def member(name: str = "h2", status: Status = Status.ALIVE, node: str = "n2", **fields: Any) -> SerfMember:
    tags = {NODE_TAG: node} if node else {}
    return SerfMember(name, Address("10.66.0.12", 7946), tags, status, b"", **fields)


def heard(book: RumourBook, kind: Kind = Kind.JOIN, **fields: Any) -> bool:
    return book.receive(MemberChange(kind, member(**fields)))


def snapshot(version: int, **tasks: Health) -> Snapshot:
    return Snapshot("h2", 1, version, {task_key(name): TaskState(health) for name, health in tasks.items()})


@pytest.mark.parametrize(
    ("fields", "liveness"),
    [
        ({}, "alive"),
        ({"suspect": True}, "suspect"),
        ({"status": Status.LEAVING}, "suspect"),
        ({"status": Status.FAILED}, "dead"),
        ({"status": Status.LEFT}, "dead"),
    ],
)
def test_who_lives(fields: dict[str, Any], liveness: str) -> None:
    book = RumourBook()
    assert heard(book, **fields)
    assert book.rumours().nodes == {"n2": liveness}
    assert not heard(book, **fields), "the same again is no news"


def test_a_member_that_is_forgotten_is_as_one_never_heard_of() -> None:
    book = RumourBook()
    heard(book, status=Status.FAILED)
    assert heard(book, Kind.REAP, status=Status.FAILED)
    assert book.rumours().nodes == {}


def test_what_a_node_says_of_its_tasks() -> None:
    book = RumourBook()
    heard(book)
    said = snapshot(1, a=Health.READY, b=Health.DRAINING, c=Health.UNHEALTHY)
    assert book.receive(EndpointChange("h2", None, said))
    tasks = book.rumours().tasks["n2"]
    found = {name: tasks.get(name) for name in "abcd"}
    assert found == {"a": Told("ready"), "b": Told("draining"), "c": Told("hidden"), "d": None}


def test_a_task_that_is_spoken_of_no_more_is_gone_until_it_is_spoken_of_again() -> None:
    book, first, second = RumourBook(), snapshot(1, a=Health.READY), snapshot(2)
    heard(book)
    book.receive(EndpointChange("h2", None, first))
    book.receive(EndpointChange("h2", first, second))
    assert book.rumours().tasks["n2"].get("a") == Told("hidden")
    book.receive(EndpointChange("h2", second, snapshot(3, a=Health.READY)))
    assert book.rumours().tasks["n2"].get("a") == Told("ready")


def test_what_is_gone_is_remembered_within_bounds() -> None:
    book = RumourBook()
    heard(book)
    before = snapshot(1, **{f"t{i}": Health.READY for i in range(GONE_MAX + 50)})
    book.receive(EndpointChange("h2", None, before))
    book.receive(EndpointChange("h2", before, snapshot(2)))
    tasks = book.rumours().tasks["n2"]
    assert sum(tasks.get(f"t{i}") is not None for i in range(GONE_MAX + 50)) == GONE_MAX


def test_a_machine_that_is_no_node_is_a_stranger_while_it_lives_and_has_a_name_for_dns() -> None:
    book = RumourBook()
    heard(book, name="printer", node="")
    heard(book, name="Not A Label", node="")
    heard(book, name="gone", node="", status=Status.FAILED)
    assert book.rumours().strangers == {"printer": "10.66.0.12"}
    assert book.rumours().nodes == {}


def test_tasks_of_a_stranger_are_nobodys() -> None:
    book = RumourBook()
    heard(book, node="")
    book.receive(EndpointChange("h2", None, snapshot(1, a=Health.READY)))
    assert book.rumours().tasks == {}


def manager(name: str, address: str, status: Status = Status.ALIVE, **tags: str) -> SerfMember:
    return SerfMember(name, Address("10.66.0.12", 7946), {MANAGER_TAG: address, **tags}, status, b"")


def test_where_managers_say_that_they_answer() -> None:
    book = RumourBook()
    for said in (
        manager("h1", "10.66.0.11:7377", _node="n1"),
        manager("h2", "[fd00::2]:7377", _node="n2"),
        manager("dead", "10.66.0.13:7377", Status.FAILED, _node="n3"),
        manager("stranger", "10.66.0.14:7377"),
        *(
            manager(f"bad{i}", address, _node=f"b{i}")
            for i, address in enumerate(
                ("", "x", "unix:/run/x", "example.org:7377", "10.0.0.1", "10.0.0.1:0", "10.0.0.1:70000", "10.0.0.1:²")
            )
        ),
    ):
        book.receive(MemberChange(Kind.JOIN, said))
    assert book.managers() == ("10.66.0.11:7377", "[fd00::2]:7377")
    for i in range(50):
        book.receive(MemberChange(Kind.JOIN, manager(f"m{i}", f"10.66.1.{i}:7377", _node=f"m{i}")))
    assert len(book.managers()) == MANAGERS_MAX
