"""What balancing costs on a kernel with IPVS: `.venv/bin/python tests/bench/dataplane/vm.py`.

Boots Debian's kernel under QEMU with a processor that counts instructions (-icount): one instruction is one nanosecond,
whatever else the machine does, so the figures repeat within a percent. They compare work, and are no rates of a real
machine. Needs gcc, beside what `make test-vm` needs. A run takes some minutes.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from tests.vm.machine import prepare, run
from tests.vm.package import pack

_LIMIT_S = 1500.0
_HERE = Path(__file__).parent


def main() -> int:
    """Returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--connections", type=int, default=2000, help="per measurement")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--services", type=int, nargs="+", default=[1, 1000, 5000])
    parser.add_argument("--throughput", action="store_true", help="between hosts, in place of connections on one")
    parser.add_argument("--paths", type=int, default=99, help="with --throughput: only so many of the first")
    asked = parser.parse_args()
    results = prepare()
    try:
        subprocess.run(["gcc", "-O2", "-static", "-o", str(results / "vm_load"), str(_HERE / "vm_load.c")], check=True)
        pack(results / "code.tar", ours=("tests/bench/dataplane",))
        counts = " ".join(map(str, asked.services))
        program = f"vm_guest.py {asked.connections} {asked.rounds} {counts}"
        if asked.throughput:
            program = f"vm_throughput.py {asked.rounds} {asked.paths}"
        job = (
            "cd /tmp && tar xf /run/results/code.tar && cd code || exit 1\n"
            "export PYTHONPATH=/tmp/code:/tmp/site PYTHONDONTWRITEBYTECODE=1\n"
            f"python3 tests/bench/dataplane/{program} 2>&1\n"
        )
        outcome = run(results, job, _LIMIT_S, memory_mb=3072, deterministic=True)
        lines = results / "bench.jsonl"
        found = [json.loads(line) for line in lines.read_text().splitlines()] if lines.exists() else []
    finally:
        shutil.rmtree(results, ignore_errors=True)
    (show_throughput if asked.throughput else show)(found)
    print(f"\n{outcome.seconds:.0f} s")
    return outcome.status or 0 if outcome.status is not None else 1


def show_throughput(found: list[dict[str, Any]]) -> None:
    """Print the table; ratios are to the bridge."""
    rates = {one["throughput"]: one["gigabits"] for one in found}
    base = next((rate for name, rate in rates.items() if "bridged" in name), None)
    print("\n| path | Gbit/s, a nanosecond an instruction | of bridged |")
    print("|---|---|---|")
    for name, rate in rates.items():
        print(f"| {name} | {rate:.3f} | {rate / base if base else 0:.3f} |")


def show(found: list[dict[str, Any]]) -> None:
    """Print the tables."""
    paths = [one for one in found if "path" in one]
    rates = {one["path"]: one["connections_per_s"] for one in paths if one["services"] == 1}
    direct, tracked = rates.get("direct"), rates.get("routed with connection tracking")
    print("\n| path | services | connections/s | of direct | of routed, tracked | connect p50, p99 us | failed |")
    print("|---|---|---|---|---|---|---|")
    for one in paths:
        rate = one["connections_per_s"]
        ratios = " | ".join(f"{rate / base:.3f}" if base else "-" for base in (direct, tracked))
        times = f"{one['p50_us']:.0f}, {one['p99_us']:.0f}"
        print(f"| {one['path']} | {one['services']} | {rate:.0f} | {ratios} | {times} | {one['failed']:.0f} |")
    print("\n| balancer | services x 5 | made from nothing, 10^9 instructions | one change, 10^6 instructions |")
    print("|---|---|---|---|")
    for one in found:
        if "load_s" in one:
            print(f"| {one['balancer']} | {one['services']} | {one['load_s']:.2f} | {one['change_s'] * 1000:.1f} |")


if __name__ == "__main__":
    sys.exit(main())
