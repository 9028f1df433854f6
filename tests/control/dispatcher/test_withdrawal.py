"""A task that is to stop is told so much only when no node sends it connections any more."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from control.lifecycle import TaskState
from control.model import Task, TaskStatus
from control.rpc import control_pb2 as pb

S = TaskState


@pytest.fixture
def world(make: Any, world_of: Any) -> Any:
    """Two nodes, a task on the first; both hold what there is."""
    made = world_of(
        make.cluster(),
        make.node(1),
        make.node(2),
        make.network("web"),
        make.service("api", "web"),
        make.task("api", 1, 1, "web"),
        make.task("api", 2, 2, "web"),
    )
    made.hello(1, 1)
    made.hello(2, 2)
    made.pass_time(0.1)
    for stream in (1, 2):
        catch_up(made, stream)
    return made


def catch_up(world: Any, stream: int) -> None:
    world.say(stream, applied=pb.Applied(sequence=world.assignments(stream)[-1].results_in))


def stop(world: Any, task_id: str = "api1") -> None:
    world.put(msgspec.structs.replace(world.get(Task, task_id), desired_state=S.SHUTDOWN))
    world.pass_time(0.1)


def withdrawn(world: Any, stream: int) -> list[str]:
    return [t for m in world.sent[stream] if m.WhichOneof("message") == "withdrawn" for t in m.withdrawn.task_ids]


def test_the_tasks_node_hears_when_every_node_holds_the_withdrawal(world: Any) -> None:
    stop(world)
    assert withdrawn(world, 1) == []
    catch_up(world, 1)
    assert withdrawn(world, 1) == [], "the other node may still send it connections"
    catch_up(world, 2)
    assert withdrawn(world, 1) == ["api1"]
    assert withdrawn(world, 2) == [], "it is none of theirs"


def test_a_node_that_hears_nothing_of_the_network_is_not_waited_for(world: Any, make: Any) -> None:
    world.put(make.node(3))
    world.hello(3, 3)
    world.pass_time(0.1)
    for stream in (1, 2, 3):
        catch_up(world, stream)
    stop(world)
    catch_up(world, 1)
    catch_up(world, 2)
    assert withdrawn(world, 1) == ["api1"]


def test_a_node_that_goes_down_is_waited_for_until_then(world: Any) -> None:
    world.hang_up(2)
    stop(world)
    catch_up(world, 1)
    for _ in range(4):
        world.say(1, heartbeat=pb.Heartbeat())
        world.pass_time(3)
    assert withdrawn(world, 1) == []
    for _ in range(3):
        world.say(1, heartbeat=pb.Heartbeat())
        world.pass_time(3)
    assert world.core.status().nodes == {"ready": 1, "down": 1}
    assert withdrawn(world, 1) == ["api1"]


def test_a_node_that_is_removed_is_not_waited_for(world: Any) -> None:
    stop(world)
    catch_up(world, 1)
    world.delete(world.snapshot.get(type(world.make.node(2)), "node2"))
    assert withdrawn(world, 1) == ["api1"]


def test_a_node_that_comes_back_hears_again_what_was_said_meanwhile(world: Any) -> None:
    stop(world)
    world.hang_up(1)
    catch_up(world, 2)
    world.hello(4, 1)
    catch_up(world, 4)
    assert withdrawn(world, 4) == ["api1"]
    world.hang_up(4)
    world.pass_time(9)
    world.hello(5, 1)
    assert withdrawn(world, 5) == ["api1"], "told in an earlier session; it may have been lost"


def test_a_new_leader_asks_everybody_anew(make: Any, world_of: Any) -> None:
    made = world_of(
        make.cluster(),
        make.node(1),
        make.network("web"),
        make.service("api", "web"),
        make.task("api", 1, 1, "web", desired=S.SHUTDOWN),
    )
    made.hello(1, 1)
    made.pass_time(0.1)
    assert withdrawn(made, 1) == []
    catch_up(made, 1)
    assert withdrawn(made, 1) == ["api1"]


def test_a_task_that_has_ended_is_not_spoken_of(world: Any) -> None:
    world.report(1, 1, api1=TaskStatus(state=S.FAILED, exit_code=1))
    world.pass_time(0.1)
    stop(world)
    catch_up(world, 1)
    catch_up(world, 2)
    assert withdrawn(world, 1) == []
