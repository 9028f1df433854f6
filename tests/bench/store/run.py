"""The store beside etcd: one command, one core for all of it.

    .venv/bin/python -m tests.bench.store.run [--backend raft] [--seconds 4] [--objects 100000] [--core 1]

Ours: store, backend and clients in one process (`ours`); for `raft` two more managers with stores of their own in
processes of theirs, on loopback TCP. etcd: three servers and h2load (`rival`; needs Debian's etcd-server and
nghttp2-client). Compare like with like: the backend `alone` is one manager, etcd here is three.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile

from tests.bench.store import rival
from tests.bench.store.clusters import KINDS

ROWS = (("seq", "1 client, 1 object"), ("100 clients", "100 clients, 1 object"), ("10", "100 clients, 10 objects"),
        ("200", "20 clients, 200 objects"))  # fmt: skip
LARGE = (("large, 100 clients", "100 clients, 1 object"), ("large, 10", "100 clients, 10 objects"),
         ("large, 200", "20 clients, 200 objects"))  # fmt: skip


def ours(*arguments: str) -> dict:
    command = [sys.executable, "-m", "tests.bench.store.ours", *arguments]
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def line(name: str, run: dict) -> str:
    pause = " ".join(f"{run[key]:8.1f}" for key in ("pause_max_ms", "busy_max_ms", "gc_max_ms") if key in run)
    rates = f"{run['txn_s']:9.0f} {run['objects_s']:9.0f} {run['p50_ms']:8.2f} {run['p99_ms']:8.2f}"
    return f"{name:42} {rates} {run['cpu_us_object']:8.1f} {pause}"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--backend", choices=sorted(KINDS), default="raft")
    parser.add_argument("--seconds", type=float, default=4.0, help="for each load")
    parser.add_argument("--objects", type=int, default=100_000)
    parser.add_argument("--core", type=int, default=1)
    parser.add_argument("--without-etcd", action="store_true")
    options = parser.parse_args()
    os.sched_setaffinity(0, {options.core})  # children inherit it
    value = b"x" * 350
    with tempfile.TemporaryDirectory() as directory:
        found = ours(options.backend, directory, str(options.seconds), str(options.objects))
        again = ours("--restart", options.backend, directory)
    etcd = {} if options.without_etcd else rival.measure(options.seconds, value)
    load = os.getloadavg()[0]
    print(f"core {options.core} for everything, load average {load:.1f}, backend {options.backend}\n")
    columns = ("txn/s", "objects/s", "p50 ms", "p99 ms", "CPU µs/o", "pause ms", "busy ms", "gc ms")
    heads = " ".join(f"{head:>{9 if i < 2 else 8}}" for i, head in enumerate(columns))
    print(f"{'':42} {heads}")
    for key, name in ROWS:
        print(line(f"ours  {name}", found[key]))
        for rival_key, said in ((key, ""), (f"{key}, checked", ", checked")):
            if rival_key in etcd:
                theirs = etcd[rival_key]
                print(line(f"etcd3 {name}{said}", theirs))
                times, cpu = (found[key][what] / theirs[what] for what in ("txn_s", "cpu_us_object"))
                print(f"      ours ÷ etcd: {times:.2f} times the rate, {cpu:.2f} of the CPU time")
    print(f"\nwith {options.objects} tasks:")
    for key, name in LARGE:
        print(line(f"ours  {name}", found[key]))
    filling, snapshot = found["filling"], found["snapshot"]
    print(f"filling   {filling['objects_s']:.0f} objects/s, pause {filling['pause_max_ms']:.1f} ms,"
          f" busy {filling['busy_max_ms']:.1f} ms,"
          f" gc {filling['gc_max_ms']:.1f} ms")  # fmt: skip
    print(f"memory    {found['memory_mib']:.0f} MiB more than empty, {found['peak_mib']:.0f} MiB at most")
    print(f"snapshot  {snapshot['mib']:.1f} MiB in {snapshot['seconds']:.2f} s under load,"
          f" pause {snapshot['pause_max_ms']:.1f} ms, busy {snapshot['busy_max_ms']:.1f} ms")  # fmt: skip
    print(f"restart   {again['seconds']:.2f} s for {again['objects']} tasks, {again['memory_mib']:.0f} MiB")


if __name__ == "__main__":
    main()
