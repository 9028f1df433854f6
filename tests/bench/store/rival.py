"""The other side: three etcd servers on loopback, and h2load, a client in C that speaks just enough gRPC.

Each request is one Txn that puts objects of the same size as ours. h2load repeats one request, so etcd writes the same
keys again and again; its store keeps every revision of them. *Checked*: each put has a comparison beside it, as whoever
does not want to undo what another wrote must have it, and as each of our writes is checked. (It asks whether the key
exists: its revision would be another one each time, and h2load cannot learn it. To etcd both are one look at the key.)
"""

import re
import struct
import subprocess
import tempfile
import time
from pathlib import Path

from control.etcd.etcd_pb2 import Compare, PutRequest, RequestOp, TxnRequest
from tests.bench.store.ours import cpu_s
from tests.control.etcd.server import Etcd

METHOD = "/etcdserverpb.KV/Txn"


def request(batch: int, value: bytes, *, checked: bool) -> bytes:
    """A gRPC message: a Txn of `batch` puts."""
    keys = [f"task/{i:025d}".encode() for i in range(batch)]
    puts = [RequestOp(request_put=PutRequest(key=key, value=value)) for key in keys]
    exist = [Compare(result=Compare.GREATER, target=Compare.VERSION, key=key, version=0) for key in keys]
    body = TxnRequest(compare=exist if checked else [], success=puts).SerializeToString()
    return struct.pack(">BI", 0, len(body)) + body


def load(
    etcd: Etcd, endpoint: str, clients: int, batch: int, seconds: float, value: bytes, *, checked: bool
) -> dict[str, float]:
    """ "cpu_us_object" is of the three servers, not of the client."""
    pids = [process.pid for process in etcd.processes if process is not None]
    with tempfile.TemporaryDirectory() as directory:
        data, log = Path(directory) / "request", Path(directory) / "log"
        data.write_bytes(request(batch, value, checked=checked))
        whole_s = max(round(seconds), 1)  # h2load takes no fractions
        command = [
            "h2load", "-c", str(min(clients, 10)), "-m", str(max(clients // 10, 1)), "-t", "1", "-D", str(whole_s),
            "-d", str(data), "-H", "content-type: application/grpc", "-H", "te: trailers",
            f"--log-file={log}", f"http://{endpoint}{METHOD}",
        ]  # fmt: skip
        before_s = cpu_s(pids)
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        used_s = cpu_s(pids) - before_s
        took = [
            int(line.split("\t")[2]) / 1000 for line in log.read_text().splitlines() if line.split("\t")[1] == "200"
        ]
    failed = re.search(r"(\d+) failed, (\d+) errored", done.stdout)
    assert failed is not None, done.stdout
    assert failed.groups() == ("0", "0"), done.stdout
    took.sort()
    return {
        "txn_s": len(took) / whole_s,
        "objects_s": len(took) * batch / whole_s,
        "p50_ms": took[len(took) // 2],
        "p99_ms": took[int(len(took) * 0.99)],
        "cpu_us_object": used_s / len(took) / batch * 1e6,
    }


def measure(seconds: float, value: bytes) -> dict[str, dict[str, float]]:
    with tempfile.TemporaryDirectory() as directory:
        etcd = Etcd(Path(directory), members=3, extra=("--max-txn-ops", "1024"))
        etcd.start()
        try:
            time.sleep(2)
            runs = {}
            for checked in (False, True):  # the keys exist then
                for key, clients, batch in (("seq", 1, 1), ("100 clients", 100, 1), ("10", 100, 10), ("200", 20, 200)):
                    # At the leader it is fastest; which one that is cannot be told from outside without another client.
                    runs[f"{key}, checked" if checked else key] = max(
                        (
                            load(etcd, endpoint, clients, batch, seconds / 2, value, checked=checked)
                            for endpoint in etcd.endpoints
                        ),
                        key=lambda r: r["txn_s"],
                    )
            return runs
        finally:
            etcd.stop()
