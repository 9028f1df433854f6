"""Names in whole clusters: what real clients get, inside tasks and on machines, is what `mesh dns` says they get."""

from __future__ import annotations

import re
import subprocess
from ipaddress import ip_address
from pathlib import Path

import pytest

from tests.e2e.conftest import Cluster

pytestmark = [pytest.mark.root, pytest.mark.e2e, pytest.mark.timeout(240)]

HOST_LISTENER = "127.0.0.153"


def dig(cluster: Cluster, task: str, *question: str) -> list[str]:
    """The lines of dig's short answer inside a task."""
    return sorted(cluster.task(task, "dig", "+short", "+search", *question).stdout.split("\n"))[1:]


def from_host(cluster: Cluster, host: str, *question: str) -> str:
    done: subprocess.CompletedProcess[str] = cluster.lab.exec(host, ["dig", f"@{HOST_LISTENER}", *question], timeout=30)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def said(cluster: Cluster, task: str, name: str, kind: str = "A") -> tuple[str, list[str]]:
    """What `mesh dns query --from` says: the outcome, and the answers."""
    out = cluster.mesh("dns", "query", name, "--type", kind, "--from", task, host=cluster.node_of(task)).stdout
    lines = out.splitlines()
    assert any(line.startswith("because ") for line in lines), out
    return lines[0].partition(" (as ")[0], sorted(line.strip() for line in lines if line.startswith("  "))


def dumped(cluster: Cluster, host: str) -> dict[tuple[str, str], set[str]]:
    """(name, type) -> values, of the network "web", as `mesh dns dump` lists them."""
    template = "{{.Network}}|{{.Name}}|{{.Type}}|{{.Value}}"
    found: dict[tuple[str, str], set[str]] = {}
    for line in cluster.mesh("dns", "dump", "--format", template, host=host).stdout.splitlines():
        network, name, kind, value = line.split("|")
        if network == "web":
            found.setdefault((name, kind), set()).add(value)
    return found


def ttl_of(answer: str) -> set[int]:
    return {int(line.split()[1]) for line in answer.splitlines()}


def test_what_is_said_is_what_clients_get(cluster: Cluster) -> None:
    cluster.serve("api", 3, "--network", "name=web,alias=backend", "--port", "http=80")
    cluster.serve("plain", 2, "--network", "web", "--endpoint-mode", "dnsrr", "--dns-ttl", "2")
    cluster.serve("client", 2, "--network", "web")
    task = "client.1"
    tasks = {name: address.partition("/")[0] for name, (_, address) in cluster.running("api").items()}
    questions = [
        *((name, "A") for name in ("api", "backend", "tasks.api", "plain", "tasks.plain", "2.api", "api.web.mesh")),
        ("_http._tcp.api", "SRV"), ("_http._tcp.backend", "SRV"), ("api", "AAAA"), ("api", "TXT"), ("nobody", "A"),
    ]  # fmt: skip
    dump = dumped(cluster, cluster.node_of(task))
    for name, kind in questions:
        outcome, answers = said(cluster, task, name, kind)
        got = [line.rstrip(".") for line in dig(cluster, task, name, kind)]
        assert got == answers, (name, kind)
        assert outcome == ("no such name" if name == "nobody" else "answer" if answers else "no data"), (name, kind)
        if not name.endswith(".mesh"):
            assert set(answers) == dump.get((name, kind), set()), (name, kind)
    assert set(dig(cluster, task, "tasks.api")) == set(tasks.values())
    services = {line.rstrip(".") for line in dig(cluster, task, "_http._tcp.api", "SRV")}
    assert services == {f"0 1 80 {slot}.api.web.mesh" for slot in (1, 2, 3)}
    whole = cluster.task(task, "dig", "+noall", "+additional", "_http._tcp.api.web.mesh", "SRV").stdout
    assert {line.split()[-1] for line in whole.splitlines()} >= set(tasks.values()), "addresses come with SRV"
    assert ttl_of(cluster.task(task, "dig", "+noall", "+answer", "api.web.mesh").stdout) == {5}
    assert ttl_of(cluster.task(task, "dig", "+noall", "+answer", "plain.web.mesh").stdout) == {2}
    (vip,) = dig(cluster, task, "api")
    for address, name in ((vip, "api"), (tasks["api.2"], "2.api")):
        assert dig(cluster, task, "-x", address) == [f"{name}.web.mesh."]
        assert said(cluster, task, address, "PTR") == ("answer", [f"{name}.web.mesh"])


def test_a_machine_asks_its_own_node(cluster: Cluster) -> None:
    cluster.serve("api", 2, "--network", "web")
    cluster.serve("client", 1, "--network", "web")
    vip = dig(cluster, "client.1", "api")
    for host in cluster.hosts:
        # A node without a task on a network does not know its names.
        wanted = vip if host in {node for node, _ in cluster.running("api").values()} else []
        assert from_host(cluster, host, "+short", "api.web.mesh").split() == wanted
        for other in cluster.hosts:
            wanted = [cluster.lab.address(other)]
            assert from_host(cluster, host, "+short", f"{other}.node.mesh").split() == wanted, (host, other)
        assert "status: NXDOMAIN" in from_host(cluster, host, "nobody.web.mesh")
        assert "status: NXDOMAIN" in from_host(cluster, host, "api"), "only full names mean something on a machine"
    assert from_host(cluster, "h1", "+short", "-x", vip[0]).split() == ["api.web.mesh."]
    shown = cluster.mesh("dns", "query", "api.web.mesh").stdout
    assert shown.startswith("answer (as host)")
    assert vip[0] in shown


def test_programs_of_a_machine_find_services_once_it_is_set_up(cluster: Cluster, tmp_path: Path) -> None:
    cluster.serve("api", 2, "--network", "web")
    before = "# by hand\nnameserver 192.0.2.1\noptions timeout:1 attempts:1\n"
    conf = tmp_path / "resolv.conf"
    conf.write_text(before)
    find = "python3 -c 'import socket; print(socket.gethostbyname(\"api.web.mesh\"))'"
    script = f"""set -e
        mount --bind {conf} /etc/resolv.conf
        {find} 2>/dev/null && exit 9
        mesh dns setup
        {find}
        getent hosts h2.node.mesh
        mesh dns setup --undo"""
    # The lab's hosts share the machine's /etc: what is written goes to a file of ours.
    done = cluster.lab.exec("h1", ["unshare", "-m", "sh", "-c", script], timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    _, vip, node, _ = done.stdout.splitlines()
    assert vip in from_host(cluster, "h1", "+short", "api.web.mesh")
    assert node.split()[0] == cluster.lab.address("h2")
    assert conf.read_text() == before


def test_tasks_of_the_own_node_come_first_where_asked(cluster: Cluster) -> None:
    cluster.serve("near", 4, "--network", "web", "--endpoint-mode", "dnsrr", "--dns-local-first")
    cluster.serve("client", 2, "--network", "web")
    nodes = {address.partition("/")[0]: node for node, address in cluster.running("near").values()}
    assert set(nodes.values()) == set(cluster.hosts)
    for client, (own, _) in cluster.running("client").items():
        for _ in range(5):
            got = cluster.task(client, "dig", "+short", "+search", "near").stdout.split()
            assert sorted(got) == sorted(nodes)
            assert [nodes[address] == own for address in got] == [True, True, False, False]


def test_both_families_have_names(cluster: Cluster) -> None:
    cluster.mesh("network", "create", "--ipv6", "both")
    cluster.serve("six", 2, "--network", "both")
    cluster.serve("client", 1, "--network", "both")
    (vip,) = dig(cluster, "client.1", "six", "A")
    (vip6,) = dig(cluster, "client.1", "six", "AAAA")
    assert (ip_address(vip).version, ip_address(vip6).version) == (4, 6)
    tasks6 = dig(cluster, "client.1", "tasks.six", "AAAA")
    assert len(tasks6) == len(set(tasks6)) == len(dig(cluster, "client.1", "tasks.six", "A")) == 2
    assert dig(cluster, "client.1", "-x", vip6) == ["six.both.mesh."]
    assert said(cluster, "client.1", "six", "AAAA") == ("answer", [vip6])
    held = cluster.task("six.1", "ip", "-6", "addr", "show").stdout
    assert {a for a in tasks6 if re.search(rf"inet6 {a}/", held)}, "a task has the address that its name says"
