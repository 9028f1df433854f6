"""The main job, shown end to end on this machine: `mesh lab demo`, and with it `make demo`.

Brings up a lab, makes a cluster of it, runs a service and a client, shows what arrives where, kills a host and shows
that requests go on. Each step checks what it shows, so the demo fails where the product does; tests/e2e runs it. The
caller removes the lab and compares the machine.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from mesh.lab.image import LAB_IMAGE, PYTHON, SERVER
from mesh.lab.lab import CLIENT, Lab

REPLICAS = 4
REQUESTS = 12
PUBLISHED = 8080
MANAGER_PORT = 7377
# A step that waits for the cluster gives up after this; on two busy cores it takes a few seconds.
STEP_TIMEOUT_S = 60.0
POLL_S = 0.1
# Load while a host dies: a request after another, each given up after a second.
LOAD = 'while :; do curl -s -o /dev/null -m 1 -w "%{http_code}\\n" http://api/; sleep 0.05; done'


class DemoError(Exception):
    """A step did not show what it should. One sentence."""


@dataclass(frozen=True, slots=True)
class Task:
    """A running task as `mesh task ls` shows it."""

    name: str
    node: str
    address: str


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the summary."""

    step: str
    result: str
    seconds: float


@dataclass(slots=True)
class Demo:
    """One run of `hosts` hosts (at least 2). `say` prints; `rows` becomes the summary.

    With `containers` each host has a Docker Engine, and the services are of containers.
    """

    lab: Lab
    hosts: int
    say: Callable[[str], None]
    containers: bool = False
    rows: list[Row] = field(default_factory=list)

    def run(self) -> None:
        """All steps in order. Raises DemoError, LabError."""
        each = "a meshd and a Docker Engine" if self.containers else "a meshd"
        self._step("lab", f"hosts as namespaces, each with {each}", self._bring_up)
        self._step("cluster", "one manager, the others join it", self._make_cluster)
        self._step("services", "a network, a service of four tasks, a client", self._make_services)
        self._step("inside", "from a container: the name, the VIP, every host", self._ask_inside)
        self._step("outside", "from outside: the published port of every host", self._ask_outside)
        self._step("no task here", "a host that runs no task answers as well", self._ask_empty_host)
        self._step("failure", "a host loses power under load", self._kill_a_host)

    def _step(self, name: str, title: str, action: Callable[[], str]) -> None:
        self.say(f"\n=== {name}: {title}")
        began = time.monotonic()
        result = action()
        self.rows.append(Row(name, result, time.monotonic() - began))

    # --- steps ------------------------------------------------------------------------------------------------------

    def _bring_up(self) -> str:
        self.lab.up(self.hosts, engines=self.containers)
        for row in self.lab.status():
            self.say(f"  {row.name:8}{row.address:16}{row.state} {row.daemon}")
        return f"{self.hosts} hosts, 1 outside client ({self.lab.address(CLIENT)})"

    def _make_cluster(self) -> str:
        first, *others = self._names()
        self._show(first, "init", "--dispatcher-heartbeat", "500ms")
        token = self._mesh(first, "token", "show", "worker", "-q").strip()
        for name in others:
            self._mesh(name, "join", "--token", token, f"{self.lab.address(first)}:{MANAGER_PORT}")
        self._until("every node is ready", lambda: self._mesh(first, "node", "ls").count("Ready") == self.hosts)
        self._show(first, "node", "ls")
        return f"{self.hosts} nodes ready"

    def _make_services(self) -> str:
        first, last = self._names()[0], self._names()[-1]
        self._show(first, "network", "create", "web")
        self._show(
            first, "service", "create", "-d", "--name", "api", "--replicas", str(REPLICAS), "--network", "web",
            "--publish", f"{PUBLISHED}:80", "--restart-delay", "1s", *self._kind(), "--", *self._server(),
        )  # fmt: skip
        self._show(
            first, "service", "create", "-d", "--name", "client", "--network", "web",
            "--constraint", f"node.hostname!={last}", *self._kind(), "--", "sleep", "infinity",
        )  # fmt: skip
        self._until("all tasks run", lambda: len(self._tasks("api")) == REPLICAS and len(self._tasks("client")) == 1)
        self._until("all tasks answer", lambda: all(self._answers(t) for t in self._tasks("api")))
        self._show(first, "service", "ls")
        self._show(first, "task", "ls")
        return f"{REPLICAS} + 1 tasks running and answering"

    def _ask_inside(self) -> str:
        (client,) = self._tasks("client")
        vip = self._inside(client, "dig", "+short", "+search", "api").strip()
        self.say(f"  client.1 on {client.node} $ dig +short +search api\n    {vip}")
        if not re.fullmatch(r"\d+\.\d+\.\d+\.\d+", vip):
            raise DemoError(f'the name "api" gave {vip!r}, not one virtual address')
        many = sorted(self._inside(client, "dig", "+short", "+search", "tasks.api").split())
        self.say(f"  client.1 on {client.node} $ dig +short +search tasks.api\n    {' '.join(many)}")
        if many != sorted(t.address for t in self._tasks("api")):
            raise DemoError(f'the name "tasks.api" gave {many}, not the tasks\' addresses')
        seen = self._replies(self._inside(client, "sh", "-c", self._loop("http://api/json")))
        hosts = self._table(seen)
        if len(hosts) != self.hosts:
            raise DemoError(f"{REQUESTS} requests reached tasks on {sorted(hosts)} only")
        self._all_saw(seen, client.address)
        return f"api is {vip}; {len(seen)} requests on {len(hosts)} hosts, all from {client.address}"

    def _ask_outside(self) -> str:
        seen = [reply for name in self._names() for reply in self._outside(name, REPLICAS)]
        self._table(seen)
        self._all_saw(seen, self.lab.address(CLIENT))
        return f"{len(seen)} requests through {self.hosts} hosts, all from {self.lab.address(CLIENT)}"

    def _ask_empty_host(self) -> str:
        first = self._names()[0]
        few = self.hosts - 1
        self._show(first, "service", "scale", "-d", f"api={few}")
        self._until(f"{few} tasks are left", lambda: len(self._tasks("api")) == few)
        empty = sorted(set(self._names()) - {t.node for t in self._tasks("api")})[0]
        seen = self._outside(empty, REQUESTS // 2)
        self._table(seen)
        self._all_saw(seen, self.lab.address(CLIENT))
        self._show(first, "service", "scale", "-d", f"api={REPLICAS}")
        self._until("all tasks run again", lambda: len(self._tasks("api")) == REPLICAS)
        self._until("all tasks answer", lambda: all(self._answers(t) for t in self._tasks("api")))
        return f"{len(seen)} requests through {empty}, which runs none, all from {self.lab.address(CLIENT)}"

    def _kill_a_host(self) -> str:
        first, victim = self._names()[0], self._names()[-1]
        (client,) = self._tasks("client")
        lost = {t.address for t in self._tasks("api") if t.node == victim}
        self.say(
            f"  power off {victim}, which runs {len(lost)} of the tasks, under load from client.1 on {client.node}"
        )
        load = self._start_load(client)
        try:
            time.sleep(1.0)
            self.lab.kill(victim)
            began = time.monotonic()
            self._until("its tasks are out of DNS", lambda: not lost & self._named(client))
            out_s = time.monotonic() - began
            self._until("replacements run", lambda: self._replaced(victim))
            replaced_s = time.monotonic() - began
            self._until("replacements answer", lambda: all(self._answers(t) for t in self._tasks("api")))
        finally:
            os.killpg(load.pid, signal.SIGKILL)  # it is a chain of processes, in a group of their own
            codes = load.communicate(timeout=STEP_TIMEOUT_S)[0].split()
        self._show(first, "node", "ls")
        self._show(first, "service", "ps", "api")
        answered = Counter(codes)["200"]
        after = self._replies(self._inside(client, "sh", "-c", self._loop("http://api/json")))
        if len(after) != REQUESTS:
            raise DemoError(f"only {len(after)} of {REQUESTS} requests were answered after the replacement")
        return (
            f"out of DNS after {out_s:.1f} s, replaced after {replaced_s:.1f} s; "
            f"{answered} of {len(codes)} requests answered meanwhile, all afterwards"
        )

    # --- what steps are made of -------------------------------------------------------------------------------------

    def _kind(self) -> tuple[str, ...]:
        """Options that make tasks containers; with an init, which ends when it is told to."""
        return ("--image", LAB_IMAGE, "--init") if self.containers else ()

    def _server(self) -> tuple[str, ...]:
        """The command of the web server."""
        if self.containers:
            return (PYTHON, "-I", "-S", SERVER, "--port", "80")
        return (sys.executable, "-m", "mesh.lab.whoami", "--port", "80")

    def _names(self) -> list[str]:
        return [f"h{i}" for i in range(1, self.hosts + 1)]

    def _mesh(self, host: str, *args: str) -> str:
        done = self.lab.exec(host, ["mesh", *args], timeout=STEP_TIMEOUT_S)
        if done.returncode:
            raise DemoError(f"{host} $ mesh {' '.join(args)}: {done.stderr.strip()}")
        return done.stdout

    def _show(self, host: str, *args: str) -> None:
        out = self._mesh(host, *args).rstrip()
        shown = " ".join("python" if a == sys.executable else a for a in args)
        self.say(f"  {host} $ mesh {shown}")
        for line in out.splitlines():
            self.say(f"    {line}")

    def _tasks(self, service: str) -> list[Task]:
        """The running tasks of a service."""
        template = "{{.Name}}|{{.Node}}|{{.Addresses}}|{{.CurrentState}}"
        out = self._mesh(self._names()[0], "task", "ls", "--filter", f"service={service}", "--format", template)
        rows = [line.split("|") for line in out.splitlines()]
        up = {row.name for row in self.lab.status() if row.state == "up"}
        return [Task(name, node, address) for name, node, address, state in rows
                if state.startswith("Running") and node in up]  # fmt: skip

    def _inside(self, task: Task, *argv: str) -> str:
        """Run a command in a task."""
        return self.lab.exec(task.node, ["mesh", "task", "exec", task.name, "--", *argv], timeout=STEP_TIMEOUT_S).stdout

    def _named(self, client: Task) -> set[str]:
        return set(self._inside(client, "dig", "+short", "+search", "tasks.api").split())

    def _answers(self, task: Task) -> bool:
        done = self.lab.exec(task.node, ["mesh", "task", "exec", task.name, "--", "curl", "-s", "http://127.0.0.1/"])
        return done.returncode == 0

    def _replaced(self, victim: str) -> bool:
        tasks = self._tasks("api")
        return len(tasks) == REPLICAS and all(t.node != victim for t in tasks)

    def _outside(self, host: str, requests: int) -> list[dict[str, str]]:
        """Ask a host's published port from outside."""
        url = f"http://{self.lab.address(host)}:{PUBLISHED}/json"
        done = self.lab.exec(CLIENT, ["sh", "-c", self._loop(url, requests)])
        found = [reply | {"through": host} for reply in self._replies(done.stdout)]
        if len(found) != requests:
            raise DemoError(f"{len(found)} of {requests} requests to {url} were answered: {done.stderr.strip()}")
        return found

    def _loop(self, url: str, requests: int = REQUESTS) -> str:
        return f"for i in $(seq {requests}); do curl -sS -m 3 {url}; done"

    def _replies(self, out: str) -> list[dict[str, str]]:
        return [json.loads(line) for line in out.splitlines() if line.startswith("{")]

    def _table(self, seen: Sequence[dict[str, str]]) -> set[str]:
        """Show who answered what; returns the hosts that did."""
        nodes = {t.address: t.node for t in self._tasks("api")}
        kinds = Counter(
            (
                reply.get("through", "VIP"),
                reply["host"],
                nodes.get(reply["address"], "?"),
                reply["client"].split(":")[0],
            )
            for reply in seen
        )
        self.say(f"    {'THROUGH':10}{'TASK':10}{'ON':6}{'CLIENT SEEN':18}REQUESTS")
        for (through, task, node, client), count in sorted(kinds.items()):
            self.say(f"    {through:10}{task:10}{node:6}{client:18}{count}")
        return {node for _, _, node, _ in kinds}

    def _all_saw(self, seen: Sequence[dict[str, str]], address: str) -> None:
        wrong = {reply["client"].split(":")[0] for reply in seen} - {address}
        if wrong:
            raise DemoError(f"tasks saw the client as {sorted(wrong)}, not as {address}")

    def _start_load(self, client: Task) -> subprocess.Popen[str]:
        argv = ["mesh", "task", "exec", client.name, "--", "sh", "-c", LOAD]
        command, environment = self.lab.command(client.node, argv)
        return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True, start_new_session=True)

    def _until(self, what: str, holds: Callable[[], bool]) -> None:
        deadline = time.monotonic() + STEP_TIMEOUT_S
        while not holds():
            if time.monotonic() > deadline:
                raise DemoError(f"after {STEP_TIMEOUT_S:.0f} s it still does not hold that {what}")
            time.sleep(POLL_S)
