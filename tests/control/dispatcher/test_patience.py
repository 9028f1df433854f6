"""When silent nodes are given up, with and without what gossip says of them; in virtual time."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from control.dispatcher.events import Rumoured
from control.dispatcher.patience import AT_ONCE_S, MISSED_S, Rumour, Sign, is_cut_off, longest_s, patience_s
from control.model import Node
from control.rpc import control_pb2 as pb

PERIOD_S = 5.5  # the longest that a node is told, with jitter


class Talk:
    """Nodes that have sessions and speak every four seconds, until they do not."""

    def __init__(self, world: Any, count: int) -> None:
        self.world, self.speaking = world, set(range(1, count + 1))
        for number in self.speaking:
            world.hello(number, number)

    def go_on(self, seconds: float) -> None:
        end = self.world.now + seconds
        while self.world.now < end:
            for number in self.speaking:
                self.world.say(number, heartbeat=pb.Heartbeat())
            self.world.pass_time(min(1.0, end - self.world.now))

    def gossip(self, **rumours: Rumour) -> None:
        self.world.core.receive(Rumoured(rumours), self.world.now)
        self.world.run()

    def down(self) -> set[str]:
        return {n.id for n in self.world.snapshot.all(Node) if n.status.state == "down"}


@pytest.fixture
def talk(world_of: Any, make: Any) -> Talk:
    nodes = [make.node(number, role="manager" if number == 1 else "worker") for number in range(1, 6)]
    found = Talk(world_of(make.cluster(), *nodes), 5)
    found.go_on(8)
    return found


def test_a_silent_node_that_gossip_has_for_dead_is_down_when_it_misses_a_heartbeat(talk: Talk) -> None:
    talk.speaking.remove(5)
    talk.go_on(4)
    talk.gossip(node5="dead")
    assert talk.down() == set(), "its next heartbeat is not due yet"
    talk.go_on(PERIOD_S + MISSED_S - 4 + 1)
    assert talk.down() == {"node5"}
    message = talk.world.get(Node, "node5").status.message
    assert message.startswith("nothing heard of it for ")
    assert message.endswith(" s, and gossip has it for dead")
    assert talk.world.count("nodes_lost_early") == 1


def test_a_verdict_that_comes_late_counts_at_once(talk: Talk) -> None:
    talk.speaking.remove(5)
    talk.go_on(10)
    assert talk.down() == set()
    talk.gossip(node5="dead")
    talk.world.pass_time(0.01)
    assert talk.down() == {"node5"}


def test_a_node_that_speaks_is_not_down_whatever_gossip_says(talk: Talk) -> None:
    talk.gossip(node2="dead", node3="suspect")
    talk.go_on(60)
    assert talk.down() == set()


@pytest.mark.parametrize("said", ["alive", "suspect", ""])
def test_a_silent_node_that_gossip_has_not_for_dead_has_three_periods(talk: Talk, said: Rumour) -> None:
    talk.speaking.remove(5)
    talk.gossip(**({"node5": said} if said else {}))
    talk.go_on(3 * 4.5 - 1)
    assert talk.down() == set()
    talk.go_on(3 + 2)
    assert talk.down() == {"node5"}
    assert talk.world.count("nodes_lost_early") == 0


def test_a_verdict_that_is_taken_back_in_time_counts_no_more(talk: Talk) -> None:
    talk.speaking.remove(5)
    talk.gossip(node5="dead")
    talk.go_on(3)
    talk.gossip(node5="alive")
    talk.go_on(3 * 4.5 - 3 - 1)
    assert talk.down() == set()


def test_a_node_that_comes_back_has_its_patience_again(talk: Talk) -> None:
    talk.speaking.remove(5)
    talk.gossip(node5="dead")
    talk.go_on(10)
    assert talk.down() == {"node5"}
    talk.world.hello(15, 5)
    talk.gossip()
    talk.go_on(3 * 4.5 - 1)
    assert talk.down() == set()


def test_half_of_the_nodes_gone_at_once_have_their_three_periods(talk: Talk) -> None:
    """Three of five, as a leader sees it that is cut off with one other."""
    talk.speaking -= {3, 4, 5}
    talk.go_on(4)
    for dead in (3, 4, 5):  # gossip finds them one after the other
        talk.gossip(**{f"node{n}": "dead" for n in range(3, dead + 1)})
        talk.go_on(1)
    talk.go_on(3 * 4.5 - 7 - 0.5)
    assert talk.down() == set()
    talk.go_on(5)
    assert talk.down() == {"node3", "node4", "node5"}


def test_two_of_five_that_die_together_are_replaced_early(talk: Talk) -> None:
    talk.speaking -= {4, 5}
    talk.go_on(5)
    talk.gossip(node4="dead", node5="dead")
    talk.go_on(3)
    assert talk.down() == {"node4", "node5"}


def test_when_too_many_were_missing_and_come_back_the_dead_one_is_given_up(talk: Talk) -> None:
    talk.speaking -= {3, 4, 5}
    talk.go_on(5)
    talk.gossip(node3="suspect", node4="suspect", node5="dead")
    talk.go_on(3)
    assert talk.down() == set()
    talk.speaking |= {3, 4}
    talk.gossip(node5="dead")
    talk.go_on(3)
    assert talk.down() == {"node5"}


def test_a_new_leader_takes_a_verdict_on_a_node_that_it_never_heard(world_of: Any, make: Any) -> None:
    """The leader before it has died with its machine: its own tasks are replaced early, too."""
    world = world_of(make.cluster(), *(make.node(n, role="manager") for n in (1, 2, 3)))
    talk = Talk(world, 2)
    talk.gossip(node3="dead")
    talk.go_on(PERIOD_S + MISSED_S)
    assert talk.down() == {"node3"}


def test_a_manager_that_stood_still_takes_no_verdict_for_that_time(talk: Talk) -> None:
    talk.gossip(node5="dead")
    talk.world.now += 60
    talk.world.core.wake(talk.world.now)
    talk.world.run()
    assert talk.down() == set()


# --- the table ----------------------------------------------------------------------------------------------------


@given(
    st.sampled_from(["ready", "unknown"]), st.sampled_from(["alive", "suspect", "dead"]), st.floats(0.01, 100)
)  # fmt: skip
@settings(max_examples=100, deadline=None)
def test_gossip_never_makes_it_later(state: Any, rumour: Any, period_s: float) -> None:
    assert period_s < patience_s(state, rumour, period_s) <= longest_s(state, period_s)


def test_those_that_are_down_for_long_do_not_count() -> None:
    alive, dead = Sign("alive", 5, 1), Sign("dead", 5, 6)
    assert not is_cut_off([alive, alive, dead])
    assert is_cut_off([alive, alive, dead, Sign("dead", 5, None, 1)])
    assert not is_cut_off([alive, alive, dead, Sign("dead", 5, None, AT_ONCE_S)])
    assert is_cut_off([alive, dead])
    assert is_cut_off([alive, Sign("alive", 5, 5 + MISSED_S + 0.1)])
