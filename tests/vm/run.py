"""`make test-vm`: the data plane on a kernel with IPVS. One virtual machine, both balancers, each test by its name.

In the machine two lanes of pytest runs go at the same time, on a processor each. Their words come out as they speak,
their results as JUnit files, which are read at the end. Whatever does not end well (a failed test, a pytest that died,
a machine that hangs) fails this program.
"""

from __future__ import annotations

import argparse
import json
import shlex
import shutil
import sys
import xml.etree.ElementTree as ET
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.vm.kernel import VmError
from tests.vm.machine import prepare, run
from tests.vm.package import pack

# A machine that is slower than this is not going to end: on two idle processors, emulated, it takes a third of it.
LIMIT_S = 900.0
# Tests of each run that are named with what they took.
SLOWEST = 5
BALANCERS = ("ipvs", "nftables")
Lanes = tuple[tuple[tuple[str, tuple[str, ...]], ...], ...]


def _files(*parts: str) -> tuple[str, ...]:
    return tuple(f"tests/netns/test_{part}.py" for part in parts)


# One lane per processor, the runs of a lane one after the other: (name, which begins with the balancer, tests). Each
# run makes a lab, which takes as long as a dozen tests. What gives the lab IPv6 comes last. nftables has all of
# tests/netns on the machine's own kernel.
# Encrypted networks: the kernel of the machine has WireGuard, this one may have it in user space only.
_ENCRYPTED = tuple(
    f"tests/netns/test_overlay_encrypted.py::test_{name}"
    for name in ("what_is_on_the_wire_is_wireguard_and_nothing_else", "a_key_is_replaced_without_losing_a_packet")
)
_LANES: Lanes = (
    (
        ("ipvs", _files("vip_paths", "vip_life", "vip_reconcile", "vip_schedulers", "vip_ipvs", "vip_sctp")),
        ("nftables-encrypted", _ENCRYPTED),
    ),
    (
        ("nftables", _files("vip_paths", "vip_life", "vip_sctp", "vip_flowtable", "vip_ipv6")),
        ("ipvs-more", _files("vip_adoption", "vip_frames", "vip_moves", "ports_places", "vip_ipv6")),
    ),
)


_ARGUMENTS = ("-c", "tests/vm/guest.ini", "--rootdir=.", "-p", "tests.vm.plugin", "-v", "--tb=short", "--durations=25")


@dataclass(frozen=True)
class Results:
    """What one pytest found."""

    counts: Counter[str]
    failures: list[str]
    seconds: float = 0.0
    slowest: tuple[tuple[float, str], ...] = ()


def lanes(chosen: tuple[str, ...], balancers: tuple[str, ...]) -> Lanes:
    """What runs: the suite, or the chosen tests, of these balancers."""
    if chosen:
        return tuple(((name, chosen),) for name in balancers)
    wanted = (tuple(run for run in lane if run[0].partition("-")[0] in balancers) for lane in _LANES)
    return tuple(lane for lane in wanted if lane)


def job(wanted: Lanes) -> str:
    """The script that runs in the machine."""
    told = json.dumps([[(name, [*_ARGUMENTS, *tests]) for name, tests in lane] for lane in wanted])
    return (
        "cd /tmp && tar xf /run/results/code.tar && cd code || exit 1\n"
        "export PYTHONPATH=/tmp/code:/tmp/site PYTHONDONTWRITEBYTECODE=1 PYTHONNOUSERSITE=1 MESH_VM=1\n"
        f"python3 -m tests.vm.guest {shlex.quote(told)}\n"
    )


def read(file: Path) -> Results:
    """A JUnit file of pytest."""
    counts: Counter[str] = Counter()
    failures, took = [], []
    root = ET.parse(file).getroot()
    for case in root.iter("testcase"):
        took.append((float(case.get("time", 0)), str(case.get("name"))))
        kinds = {child.tag for child in case} & {"failure", "error", "skipped"}
        kind = "failed" if kinds & {"failure", "error"} else "skipped" if kinds else "passed"
        counts[kind] += 1
        if kind == "failed":
            failures.append(f"{case.get('classname')}::{case.get('name')}")
    seconds = sum(float(suite.get("time", 0)) for suite in root.iter("testsuite"))
    return Results(counts, failures, seconds, tuple(sorted(took, reverse=True)[:SLOWEST]))


def _told(results: Path, number: int, lane: tuple[tuple[str, tuple[str, ...]], ...]) -> bool:
    """Tell how the runs of a lane went, and how long they took. Whether all of it is good."""
    good, seconds = True, 0.0
    for name, _ in lane:
        file = results / f"{name}.xml"
        if not file.exists():
            print(f"vm: {name}: no results")
            good = False
            continue
        found = read(file)
        counted = ", ".join(f"{count} {kind}" for kind, count in sorted(found.counts.items()))
        slowest = ", ".join(f"{test} {took:.0f}" for took, test in found.slowest)
        print(f"vm: {name}: {counted} in {found.seconds:.0f} s; the slowest: {slowest}")
        for failure in found.failures:
            print(f"vm: {name}: FAILED {failure}")
        good = good and not found.failures and found.counts["passed"] > 0
        seconds += found.seconds
    print(f"vm: lane {number}: {seconds:.0f} s")
    return good


def main() -> int:
    """Returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--balancer", choices=BALANCERS, action="append", help="only that one")
    parser.add_argument("--limit", type=float, default=LIMIT_S, help="seconds until the machine is switched off")
    parser.add_argument("--keep", action="store_true", help="keep the directory of results")
    parser.add_argument("tests", nargs="*", help="pytest's arguments in place of the whole suite")
    asked = parser.parse_args()
    wanted = lanes(tuple(asked.tests), tuple(asked.balancer or BALANCERS))
    results = prepare()
    try:
        pack(results / "code.tar")
        outcome = run(results, job(wanted), asked.limit)
    except VmError as error:
        print(f"vm: {error}", file=sys.stderr)
        return 2
    good = all([outcome.status == 0, *(_told(results, number, lane) for number, lane in enumerate(wanted, 1))])
    took = f"{outcome.seconds:.0f} s, {outcome.boot_s:.0f} s to boot, {outcome.processor_s:.0f} s of processor time"
    print(f"vm: {'passed' if good else 'FAILED'}, {took}")
    if asked.keep:
        print(f"vm: results are in {results}")
    else:
        shutil.rmtree(results, ignore_errors=True)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
