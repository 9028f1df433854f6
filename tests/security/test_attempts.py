"""Every attempt at every port of a real node, while others use it; the outcomes are docs/security-attempts.md.

MESH_WRITE_DOCS=1 .venv/bin/pytest tests/security/test_attempts.py      writes the page
"""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from control.ca import rotation
from control.ca.disk import Shelf
from control.ca.names import Holder
from control.ca.root import DAY_S, Root, issue, key_pem, make_root, new_key, pem
from control.model import Authority
from control.store.backup import read_backup
from control.store.rows import decode
from control.token import make_token, parse_token
from mesh.lab.lab import CLIENT, MESHD, Daemon, Lab
from tests.e2e.conftest import Cluster, a_lab, joined
from tests.security.attacker import Found, Paper, Plan
from tests.security.attempts import DNS, DNS_UDP, TABLE

ROOT_DIRECTORY = Path(__file__).parents[2]
PAGE = ROOT_DIRECTORY / "docs/security-attempts.md"
DNS_HOST = "127.0.0.153"
KEY = "the-key-of-serfs-rpc"
# What must not happen, whatever the page says.
SUCCESSES = ("OK", "let in", "answered", "let in as manager")
WAIT_S = 60.0
# What the node may have more in memory after all of it: allocators keep some of a flood of connections.
GROWTH_MAX_KIB = 192 * 1024


@pytest.fixture
def stormy(request: pytest.FixtureRequest) -> Iterator[Cluster]:
    """Three hosts, with every port that there may be open on all addresses."""
    more = ("--serf-rpc-listen", "0.0.0.0:7373", "--serf-rpc-key", KEY, "--metrics-listen", "0.0.0.0:9100")
    with a_lab("test", 3, Daemon((*MESHD.command, *more), MESHD.socket)) as lab:
        yield joined(lab, "500ms")


def disk(cluster: Cluster, host: str) -> Path:
    return cluster.lab.directory / host / "disk"


def paper_of(cluster: Cluster, host: str) -> Paper:
    """What a thief finds on a node's disk."""
    found = Shelf(disk(cluster, host) / "tls").load()
    assert found is not None
    identity = json.loads((disk(cluster, host) / "identity.json").read_text())
    return Paper(found.key.decode(), found.chain.decode(), identity["node_id"], identity["secret"])


def user_of(cluster: Cluster, name: str, role: str) -> Paper:
    made = json.loads(cluster.mesh("user", "add", name, "--role", role, "-o", "-").stdout)
    return Paper(made["key"], made["certificate"])


def forged(root: Root, holder: Holder, at_s: float) -> Paper:
    key = new_key()
    leaf = issue(root, holder, key.public_key(), at_s, os.urandom(16), 3600.0)
    return Paper(key_pem(key).decode(), pem(leaf).decode(), holder.id)


def a_plan(cluster: Cluster, directory: Path, host: str, ports: list[str]) -> Plan:
    """With everything that a thief could have, and what only who has the authority's key could make: expired ones."""
    token, worker = cluster.mesh("token", "show", "worker", "-q").stdout.strip(), paper_of(cluster, "h2")
    removed, gone = paper_of(cluster, "h3"), user_of(cluster, "gone", "admin")
    viewer = user_of(cluster, "vera", "viewer")
    cluster.mesh("node", "rm", "--force", "h3")
    cluster.mesh("user", "rm", "gone")
    cluster.mesh("backup", str(directory / "backup"))
    state = read_backup(directory / "backup").state
    (authority,) = (found for row in state.rows.values() if isinstance(found := decode(row.kind, row.blob), Authority))
    root = rotation.signer(authority)
    now_s, cluster_id = (
        time.time_ns() / 1e9,
        json.loads((disk(cluster, "h1") / "identity.json").read_text())["cluster_id"],
    )
    admin = Holder(cluster_id, "admin", "anna")
    other = make_root(cluster_id, new_key(), now_s - DAY_S, os.urandom(16))
    digest = parse_token(token).digest
    return Plan(
        host=host,
        cluster_id=cluster_id,
        manager_id=paper_of(cluster, "h1").node_id,
        ports=ports,
        papers={
            "roots": Paper("", authority.certificate),
            "worker": worker,
            "viewer": viewer,
            "removed": removed,
            "removed user": gone,
            "expired": forged(root, admin, now_s - 3700.0),
            "other cluster": forged(other, Holder(cluster_id, "manager", worker.node_id), now_s),
            "self-signed": Paper(key_pem(other.key).decode(), pem(other.certificate).decode()),
        },
        tokens={
            "none": "",
            "old worker": token,
            "worker": cluster.mesh("token", "rotate", "worker", "-q").stdout.strip(),
            "guess": make_token(digest, b"x" * 16),
            "other root": make_token("0" * len(digest), b"x" * 16),
        },
    )


class Attacker:
    """The program on a machine that is no node, or on the node itself, where nobody else can ask for names."""

    def __init__(self, cluster: Cluster, host: str, plan: Plan) -> None:
        command, environment = cluster.lab.command(host, [sys.executable, "-m", "tests.security.attempts"])
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        self._process = subprocess.Popen(  # type: ignore[call-overload]
            command, **pipes, text=True, env={**environment, "PYTHONPATH": str(ROOT_DIRECTORY)}
        )
        self._say(msgspec.json.encode(plan).decode())
        self._told: queue.Queue[str] = queue.Queue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self.words: list[str] = []

    def _read(self) -> None:
        for line in self._process.stderr:
            self._told.put(line)
        self._told.put("")

    def _say(self, line: str) -> None:
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()

    def run(self, bystander: object) -> Found:
        """All attempts; while connections are half open, `bystander` looks."""
        try:
            while line := self._told.get(timeout=300):
                self.words.append(line)
                if line.strip() == "half open":
                    bystander()  # type: ignore[operator]
                    self._say("looked")
            out = self._process.stdout.read()
            assert out, "".join(self.words[-30:])
            return msgspec.json.decode(out, type=Found)
        finally:
            self._process.kill()
            self._process.wait(10)


def memory_kib(lab: Lab, pid: int | None) -> int:
    """Of the daemon of h1."""
    fields = lab.exec("h1", ["cat", f"/proc/{pid}/status"]).stdout.split()
    return int(fields[fields.index("VmRSS:") + 1])


@pytest.mark.root
@pytest.mark.e2e
@pytest.mark.timeout(900)
def test_every_attempt_at_every_port(stormy: Cluster, tmp_path: Path) -> None:
    cluster, lab = stormy, stormy.lab
    plan = a_plan(cluster, tmp_path, lab.address("h1"), [port for port in TABLE if port not in (DNS, DNS_UDP)])
    pid, nodes = lab.daemon_pid("h1"), cluster.rows("{{.Hostname}}|{{.Status}}", "node", "ls")
    assert nodes == [["h1", "Ready"], ["h2", "Ready"]]
    before = memory_kib(lab, pid)

    def bystander() -> None:
        """A member goes on, an administrator is served, and a machine that asks to be let in is heard."""
        cluster.until("the manager answers", lambda: cluster.mesh("node", "ls", check=False).returncode == 0)
        cluster.until("h2 is heard", lambda: cluster.connected("h2"))
        cluster.until(
            "h2 is answered, and refused", lambda: cluster.mesh("node", "ls", host="h2", check=False).returncode == 6
        )

    found = Attacker(cluster, CLIENT, plan).run(bystander)
    found += Attacker(cluster, "h1", msgspec.structs.replace(plan, host=DNS_HOST, ports=[DNS, DNS_UDP])).run(bystander)
    assert lab.daemon_pid("h1") == pid, "it is the same process"
    assert memory_kib(lab, pid) - before < GROWTH_MAX_KIB
    assert cluster.rows("{{.Hostname}}|{{.Status}}", "node", "ls")[0] == ["h1", "Ready"]
    refusals = [row for row in _audit(cluster) if row["result"].startswith("refused")]
    assert {"Control/List", "Membership/Renew", "Control/RotateToken", "Control/CreateService"} <= {
        row["call"] for row in refusals if row["from"] == lab.address(CLIENT)
    }
    outcomes = {(port, name): outcome for port, name, outcome in found}
    assert set(outcomes) == {(port, name) for port, attempts in TABLE.items() for name in attempts}
    bad = {key: outcome for key, outcome in outcomes.items() if outcome in SUCCESSES or "failed" in outcome}
    assert bad == {}
    page = page_of(outcomes)
    if os.environ.get("MESH_WRITE_DOCS"):
        PAGE.write_text(page)
    assert page == PAGE.read_text(), "the page is another: write it anew, and look at what has changed"


def _audit(cluster: Cluster) -> list[dict[str, str]]:
    return [json.loads(line) for line in (disk(cluster, "h1") / "audit.log").read_text().splitlines()]


HEAD = """# What was tried at each port, and what came of it

Written by `tests/security/test_attempts.py`, which makes all of it against a real node in a lab, from a machine that is
no node (names: from the node itself), and fails if an outcome is another than here. While 1,000 connections are half
open, a member keeps its session, and both an administrator on the manager and a member over the managers' port are
answered. The process is the same one afterwards, and has not grown by more than 192 MiB. Refused calls are in the audit
log.

| port | attempt | outcome |
|---|---|---|
"""


def page_of(outcomes: dict[tuple[str, str], str]) -> str:
    return HEAD + "".join(f"| {port} | {name} | {outcome} |\n" for (port, name), outcome in outcomes.items())


def test_the_page_has_every_attempt() -> None:
    """Without a lab: quick to see that somebody has added one."""
    rows = [line.split(" | ")[:2] for line in PAGE.read_text().splitlines()[10:]]
    assert [[port.removeprefix("| "), name] for port, name in rows] == [
        [port, name] for port, attempts in TABLE.items() for name in attempts
    ]
