"""The hosts of a lab as one cluster, made with the `mesh` command as a user types it. Blocking."""

from __future__ import annotations

import json
import time
from collections.abc import Callable

from mesh.lab.lab import Lab, LabError

CALL_TIMEOUT_S = 60.0
# A learner has everything in a second or two, on a busy machine; then it gets its vote.
VOTES_TIMEOUT_S = 30.0
POLL_S = 0.3


def form(lab: Lab, managers: int, tell: Callable[[str], None] = lambda _: None) -> None:
    """The first hosts become managers, and vote when this returns; the others workers. Raises LabError."""
    hosts = lab.hosts()
    if not 1 <= managers <= len(hosts):
        raise LabError(f"{len(hosts)} hosts can have 1 to {len(hosts)} managers, not {managers}")
    first = hosts[0]
    tell(f"{first} begins a cluster")
    _mesh(lab, first, "init")
    tokens = {role: _mesh(lab, first, "token", "show", role, "-q").strip() for role in ("manager", "worker")}
    for number, host in enumerate(hosts[1:], start=2):
        role = "manager" if number <= managers else "worker"
        tell(f"{host} joins as a {role}")
        _mesh(lab, host, "join", "--token", tokens[role], lab.address(first))
    tell("managers get their votes")
    deadline = time.monotonic() + VOTES_TIMEOUT_S
    while _votes(lab, first) < managers:
        if time.monotonic() > deadline:
            raise LabError(f'the managers do not come together: see "mesh lab exec {first} -- mesh quorum status"')
        time.sleep(POLL_S)


def _votes(lab: Lab, host: str) -> int:
    done = lab.exec(host, ["mesh", "quorum", "status", "--format", "jsonl"], timeout=CALL_TIMEOUT_S)
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    return sum(bool(row["Voter"]) and row["Status"] != "unreachable" for row in rows)


def _mesh(lab: Lab, host: str, *arguments: str) -> str:
    done = lab.exec(host, ["mesh", *arguments], timeout=CALL_TIMEOUT_S)
    if done.returncode:
        raise LabError(f'"mesh {arguments[0]}" failed on {host}: {done.stderr.strip() or done.stdout.strip()}')
    return done.stdout
