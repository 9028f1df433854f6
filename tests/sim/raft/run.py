"""Many seeds: each is a whole cluster's life.

    .venv/bin/python tests/sim/raft/run.py --seeds 1-2000 --jobs 2
    .venv/bin/python tests/sim/raft/run.py --trace 309        # one seed, every message

Prints what failed, and in the end what was done; exits with 1 if anything failed.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[3])]

from tests.sim.raft.node import Violation  # noqa: E402
from tests.sim.raft.world import World  # noqa: E402

CHUNK = 100  # seeds given to a process at once
PROGRESS_EVERY = 5000


def run_range(low: int, high: int) -> tuple[Counter[str], list[tuple[int, str]]]:
    """Seeds low <= seed < high: what was done, and what failed."""
    counts: Counter[str] = Counter()
    failures = []
    for seed in range(low, high):
        world = World(seed)
        try:
            world.run()
        except Violation as violation:
            failures.append((seed, str(violation)[:300]))
        except Exception as error:  # noqa: BLE001 a bug of the simulator must name its seed, too
            failures.append((seed, f"simulator: {error!r}"[:300]))
        counts += world.counts
        counts["seeds"] += 1
    return counts, failures


def run_many(low: int, high: int, jobs: int, until: float = float("inf")) -> tuple[Counter[str], list[tuple[int, str]]]:
    """Seeds low <= seed <= high, in `jobs` processes; no new ones after `until` (of time.monotonic)."""
    counts: Counter[str] = Counter()
    failures: list[tuple[int, str]] = []
    if jobs == 1:
        for at in range(low, high + 1, CHUNK):
            if time.monotonic() > until:
                break
            done, failed = run_range(at, min(at + CHUNK, high + 1))
            counts += done
            failures += failed
            report(failed)
            progress(counts)
        return counts, failures
    with ProcessPoolExecutor(jobs) as pool:
        for at in range(low, high + 1, CHUNK * jobs):
            if time.monotonic() > until:
                break
            starts = range(at, min(at + CHUNK * jobs, high + 1), CHUNK)
            for done, failed in pool.map(run_range, starts, [min(s + CHUNK, high + 1) for s in starts]):
                counts += done
                failures += failed
                report(failed)
    return counts, failures


def progress(counts: Counter[str]) -> None:
    """A long run says now and then how far it is."""
    if counts["seeds"] % PROGRESS_EVERY == 0:
        print(f"{counts['seeds']} seeds done", flush=True)


def report(failures: list[tuple[int, str]]) -> None:
    for seed, text in failures:
        print(f"seed {seed}: {text}", flush=True)


def trace(seed: int) -> int:
    """One seed, told."""
    world = World(seed)
    world.trace = []
    try:
        world.run()
        end = "fine"
    except Violation as violation:
        end = str(violation)
    print("\n".join(world.trace))
    for node in world.nodes.values():
        print(node, "gone" if node.gone else "", node.core.status() if node.core is not None else "down")
    print(f"seed {seed}: {end}")
    return int(end != "fine")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", default="1-2000", help="first-last")
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="begin no more seeds after that")
    parser.add_argument("--trace", type=int, help="show one seed")
    options = parser.parse_args()
    if options.trace is not None:
        return trace(options.trace)
    low, high = map(int, options.seeds.split("-"))
    began = time.monotonic()
    counts, failures = run_many(low, high, options.jobs, began + options.seconds)
    took = time.monotonic() - began
    print(f"{counts['seeds']} seeds in {took:.0f} s ({counts['seeds'] / took:.0f}/s), {len(failures)} failed")
    print(", ".join(f"{count} {what}" for what, count in sorted(counts.items())))
    return int(bool(failures))


if __name__ == "__main__":
    sys.exit(main())
