"""The simulator in CI: many seeds, every bug on purpose, and the checker of histories itself."""

import itertools
import os
import random

import pytest

from tests.sim.raft.history import FOREVER, Operation, check, linearizable, step
from tests.sim.raft.mutants import CAUGHT_BY, MUTANTS, hunt
from tests.sim.raft.run import run_many
from tests.sim.raft.world import World

SEEDS = int(os.environ.get("SEEDS", "2000"))
HUNT_SEEDS = 3000  # where the recorded seed does not show a bug any more, because the core or the simulator has changed

# Of bugs that it found in the core: see `mutants`, where each comes back on purpose.
SEEDS_OF_BUGS = (3327, 3816, 4070, 501476, 2005668)


@pytest.mark.timeout(900)
def test_many_clusters():
    # Seeds of the day would find more, and nobody could see which change broke what: `run.py` is for those.
    counts, failures = run_many(1, SEEDS, jobs=2)
    assert not failures
    assert counts["seeds"] == SEEDS
    for what in (
        *("kill", "cut", "hang", "full", "all low", "sync fails"),
        *("lose", "change", "retire", "snapshots", "transfer"),
    ):
        assert counts[what], f"nothing of that kind happened: {what}"
    assert counts["strike"]
    assert counts["writes"] > SEEDS
    assert counts["reads"] > SEEDS


@pytest.mark.parametrize("seed", SEEDS_OF_BUGS)
def test_a_seed_that_found_a_bug(seed):
    World(seed).run()


def test_every_bug_has_a_seed():
    assert set(CAUGHT_BY) == set(MUTANTS)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", MUTANTS)
def test_a_bug_is_found(name):
    seed = CAUGHT_BY[name]
    found = hunt(name, range(seed, seed + 1)) or hunt(name, range(1, HUNT_SEEDS))
    assert found is not None


def test_the_same_seed_is_the_same_run():
    def trace():
        world = World(7)
        world.trace = []
        world.run()
        return world.trace, world.counts

    assert trace() == trace()


# --- the checker of histories -----------------------------------------------------------------------------------------


def operation(kind, called, returned, **fields):
    return Operation(kind, 0, called=called, returned=returned, **fields)


def test_a_read_of_an_old_value_is_found():
    history = [
        operation("write", 0, 1, value=1),
        operation("write", 2, 3, value=2),
        operation("read", 4, 5, result=1),
    ]
    assert not linearizable(history)
    history[2].result = 2
    assert linearizable(history)


def test_what_overlaps_may_have_any_order():
    history = [operation("write", 0, 9, value=1), operation("read", 1, 2, result=1), operation("read", 3, 4, result=1)]
    assert linearizable(history)
    history[2].result = 0
    assert not linearizable(history), "what was seen once is not undone"


def test_an_unknown_write_may_have_happened_or_not_but_not_both():
    lost = operation("write", 0, FOREVER, value=1)
    assert linearizable([lost, operation("read", 5, 6, result=0)])
    assert linearizable([lost, operation("read", 5, 6, result=1)])
    assert linearizable([lost, operation("read", 1, 2, result=0), operation("read", 5, 6, result=1)])
    assert not linearizable([lost, operation("read", 1, 2, result=1), operation("read", 5, 6, result=0)])


def test_a_compare_and_set_that_took_place_twice_is_found():
    history = [
        operation("cas", 0, 1, expected=0, value=1, result=True),
        operation("cas", 2, 3, expected=0, value=2, result=True),
    ]
    assert not linearizable(history)
    history[1].result = False
    assert linearizable(history)


def test_random_histories_of_a_real_register():
    """Operations take effect at a point between call and return: linearizable; with one result changed, mostly not."""
    found = 0
    for seed in range(100):
        history = real_history(random.Random(seed))
        assert check(history) is None
        read = next(op for op in history if op.kind == "read")
        read.result = -1
        found += check(history) is not None
    assert found == 100


def by_brute_force(history):
    """Every order that keeps what ended before something else began before it; unknown ones may be left out."""
    unknown = [op for op in history if op.returned == FOREVER]
    known = [op for op in history if op.returned < FOREVER]
    for count in range(len(unknown) + 1):
        for chosen in itertools.combinations(unknown, count):
            for order in itertools.permutations([*known, *chosen]):
                if any(b.returned < a.called for a, b in itertools.combinations(order, 2)):
                    continue
                state = 0
                for op in order:
                    state = step(state, op)
                    if state is None:
                        break
                else:
                    return True
    return False


def test_it_agrees_with_trying_all_orders():
    verdicts = []
    for seed in range(600):
        rng = random.Random(seed)
        history = []
        for _ in range(5):
            kind, called = rng.choice(("read", "write", "cas")), rng.random() * 4
            returned = called + rng.random() * 2 if kind == "read" or rng.random() < 0.8 else FOREVER
            op = Operation(kind, 0, rng.randrange(3), rng.randrange(3), called, returned)
            if kind == "read":
                op.result = rng.randrange(3)
            elif kind == "cas" and returned < FOREVER:
                op.result = rng.random() < 0.5
            history.append(op)
        verdicts.append(linearizable(history))
        assert verdicts[-1] == by_brute_force(history), history
    assert 60 < sum(verdicts) < 540


def real_history(rng):
    register, history, moments = 0, [], []
    for number in range(60):
        called = number * 0.3 + rng.random()
        moments.append((called + rng.random() * 2, called, number))
    for moment, called, number in sorted(moments):
        kind = "read" if number == 5 else rng.choice(("read", "write", "cas"))
        op = Operation(kind, 0, value=number + 1, called=called, returned=moment + rng.random() * 2)
        if kind == "read":
            op.result = register
        elif kind == "write":
            register = op.value
        else:
            op.expected = rng.choice((register, -5))
            op.result = op.expected == register
            register = op.value if op.result else register
        history.append(op)
    return history
