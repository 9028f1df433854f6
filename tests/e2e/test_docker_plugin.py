"""Containers that others start, on real engines: `docker run --network`, labels, attach; found like tasks."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator

import pytest

from mesh.lab.image import BUSYBOX_IMAGE, LAB_IMAGE, PYTHON, SERVER
from tests.e2e.conftest import Cluster, with_engines

pytestmark = [pytest.mark.root, pytest.mark.e2e, pytest.mark.timeout(240)]

SERVE = (PYTHON, "-I", "-S", SERVER, "--port", "80")


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """Two hosts with engines as one cluster, with the network "web"."""
    with with_engines("ptest", heartbeat="500ms") as made:
        for host in made.hosts:
            made.until(f"{host} has the network", lambda host=host: "web" in networks(made, host))
        yield made


def docker(cluster: Cluster, host: str, *command: str) -> str:
    """What a docker command says."""
    done = cluster.lab.exec(host, ["docker", *command])
    assert done.returncode == 0, done.stderr + cluster.logs()
    return done.stdout.strip()


def refused(cluster: Cluster, host: str, *command: str) -> str:
    """The sentence of a docker command that fails."""
    done = cluster.lab.exec(host, ["docker", *command])
    assert done.returncode, done.stdout
    return done.stderr


def networks(cluster: Cluster, host: str) -> set[str]:
    """The engine's networks of our driver."""
    return set(docker(cluster, host, "network", "ls", "--filter", "driver=mesh", "--format", "{{.Name}}").split())


def run(cluster: Cluster, host: str, name: str, network: str, *command: str, options: tuple[str, ...] = ()) -> None:
    image = BUSYBOX_IMAGE if command[:1] == ("sleep",) else LAB_IMAGE
    cluster.lab.exec(host, ["docker", "rm", "-f", name])  # of a first try of the same test
    docker(cluster, host, "run", "-d", "--init", "--name", name, f"--network={network}", *options, image, *command)


def answered(cluster: Cluster, host: str, client: str, url: str, times: int = 1) -> set[str]:
    """Who answers a container, by host name."""
    script = f"for i in $(seq {times}); do timeout 3 wget -qO- {url}; done"
    done = cluster.lab.exec(host, ["docker", "exec", client, "sh", "-c", script])
    return {line.split()[0].removeprefix("host=") for line in done.stdout.splitlines() if line.startswith("host=")}


def remove(cluster: Cluster, host: str, *names: str) -> None:
    docker(cluster, host, "rm", "-f", *names)


def test_docker_run_joins_the_network_and_is_found_from_everywhere(cluster: Cluster) -> None:
    run(cluster, "h1", "front", "web", *SERVE, options=("-p", "8081:80", "--hostname", "front"))
    run(cluster, "h2", "caller", "web", "sleep", "1000")
    # By the container's name from another host, from the moment on that it runs.
    assert "10." in docker(cluster, "h2", "exec", "caller", "nslookup", "front")
    cluster.until("it serves", lambda: answered(cluster, "h2", "caller", "http://front/") == {"front"})
    assert answered(cluster, "h2", "caller", "http://front.web.mesh/") == {"front"}
    assert "host=front" in cluster.outside("curl", "-sS", "-m", "3", f"http://{cluster.lab.address('h1')}:8081/").stdout
    assert "published already" in refused(
        cluster, "h1", "run", "--rm", "--network=web", "-p", "8081:80", BUSYBOX_IMAGE, "true"
    )
    assert "say which port" in refused(cluster, "h1", "run", "--rm", "--network=web", "-p", "80", BUSYBOX_IMAGE, "true")
    listed = cluster.rows("{{.Name}}|{{.Node}}|{{.Network}}|{{.State}}", "attachment", "ls", "--filter", "network=web")
    assert {("front", "h1", "web", "Ready"), ("caller", "h2", "web", "Ready")} <= {tuple(row) for row in listed}
    # Tasks and containers call each other.
    cluster.serve("plain", 1, "--network", "web")
    assert answered(cluster, "h2", "caller", "http://plain/") == {"plain.1"}
    assert "host=front" in cluster.task("plain.1", "curl", "-sS", "-m", "3", "http://front/").stdout
    remove(cluster, "h1", "front")
    cluster.until("front is forgotten", lambda: answered(cluster, "h2", "caller", "http://front/") == set())
    remove(cluster, "h2", "caller")
    cluster.mesh("service", "rm", "plain")


def test_endpoints_of_a_service_by_option_and_by_label(cluster: Cluster) -> None:
    cluster.serve("api", 1, "--network", "web")
    run(cluster, "h1", "more1", "name=web,driver-opt=mesh.service=api", *SERVE, options=("--hostname", "more1"))
    label = ("--hostname", "more2", "--label", "mesh.service=api")
    run(cluster, "h2", "more2", "web", *SERVE, options=label)
    run(cluster, "h2", "caller", "web", "sleep", "1000")
    everybody = {"api.1", "more1", "more2"}
    cluster.until("all answer", lambda: answered(cluster, "h2", "caller", "http://api/", 6) == everybody)
    docker(cluster, "h2", "kill", "more2")
    cluster.until("it is out", lambda: answered(cluster, "h2", "caller", "http://api/", 6) == everybody - {"more2"})
    cluster.mesh("service", "rm", "api")
    cluster.until("the name is its own", lambda: answered(cluster, "h2", "caller", "http://api/", 4) == {"more1"})
    remove(cluster, "h1", "more1")
    remove(cluster, "h2", "more2", "caller")


def test_attach_and_labels_on_containers_of_other_networks(cluster: Cluster) -> None:
    run(cluster, "h2", "caller", "web", "sleep", "1000")
    options = ("--hostname", "old", "--label", "mesh.service=store", "--label", "mesh.port=http=80")
    run(cluster, "h1", "old", "none", *SERVE, options=options)
    assert cluster.mesh("attach", "old", "--network", "web", "--check", "http::80/").stdout.startswith("web 10.")
    cluster.until("it is found", lambda: answered(cluster, "h2", "caller", "http://store/") == {"old"})
    assert "is on no network" not in cluster.mesh("dns", "dump").stdout
    cluster.mesh("detach", "old")
    cluster.until("it is forgotten", lambda: answered(cluster, "h2", "caller", "http://store/") == set())
    assert "was attached" in cluster.mesh("detach", "old", check=False).stderr
    # A label asks for the same; it goes when the container dies, and a check keeps it out while it does not serve.
    options = ("--hostname", "auto", "--label", "mesh.network=web", "--label", "mesh.service=auto")
    run(cluster, "h1", "auto", "none", *SERVE, options=options)
    cluster.until("it is found", lambda: answered(cluster, "h2", "caller", "http://auto/") == {"auto"})
    options = ("--label", "mesh.network=web", "--label", "mesh.service=auto", "--label", "mesh.check=tcp:80")
    run(cluster, "h1", "ill", "none", "sleep", "1000", options=options)
    cluster.until("it is there", lambda: "ill" in (cluster.lab.exec("h1", ["cat", BOOK]).stdout))
    assert answered(cluster, "h2", "caller", "http://auto/", 4) == {"auto"}
    docker(cluster, "h1", "kill", "auto")
    cluster.until("it is forgotten", lambda: answered(cluster, "h2", "caller", "http://auto/") == set())
    remove(cluster, "h1", "old", "auto", "ill")
    remove(cluster, "h2", "caller")


BOOK = "/var/lib/meshd/containers.json"


COMPOSE = f"""
version: "3.5"
services:
  shop:
    image: {LAB_IMAGE}
    hostname: shop
    command: [{", ".join(json.dumps(word) for word in SERVE)}]
    ports: ["8082:80"]
    networks: {{web: {{aliases: [store]}}}}
    labels: {{mesh.weight: "1"}}
  till:
    image: {LAB_IMAGE}
    command: [sleep, "1000"]
    depends_on: [shop]
    networks: [web, inner]
networks:
  web: {{external: true}}
  inner: {{driver: mesh, ipam: {{driver: mesh}}, driver_opts: {{mesh.name: inner}}}}
"""


def test_a_project_of_compose_joins_as_it_is(cluster: Cluster) -> None:
    directory = cluster.lab.directory / "h1" / "project"
    directory.mkdir(exist_ok=True)
    (directory / "docker-compose.yml").write_text(COMPOSE)
    compose = ("docker-compose", "--no-ansi", "-p", "proj", "-f", str(directory / "docker-compose.yml"))
    run(cluster, "h2", "caller", "web", "sleep", "1000")
    cluster.serve("plain", 1, "--network", "web")
    up = cluster.lab.exec("h1", [*compose, "up", "-d"], timeout=120)
    assert up.returncode == 0, up.stderr + cluster.logs()
    # From another host by its container's name, from its own project by its alias, through its port from outside.
    cluster.until("it serves", lambda: answered(cluster, "h2", "caller", "http://proj-shop-1/") == {"shop"})
    till = next(name for name in docker(cluster, "h1", "ps", "--format", "{{.Names}}").split() if "till" in name)
    assert docker(cluster, "h1", "exec", till, "curl", "-sS", "http://store/").startswith("host=shop")
    assert docker(cluster, "h1", "exec", till, "curl", "-sS", "http://plain/").startswith("host=plain.1")
    assert "host=shop" in cluster.outside("curl", "-sS", "-m", "3", f"http://{cluster.lab.address('h1')}:8082/").stdout
    cluster.until("h2 has its network", lambda: "inner" in networks(cluster, "h2"))
    down = cluster.lab.exec("h1", [*compose, "down"], timeout=120)
    assert down.returncode == 0, down.stderr
    cluster.until("it is forgotten", lambda: answered(cluster, "h2", "caller", "http://proj-shop-1/") == set())
    cluster.until("its network is gone", lambda: "inner" not in networks(cluster, "h2"))
    assert "web" in networks(cluster, "h1"), "which was not the project's"
    remove(cluster, "h2", "caller")
    cluster.mesh("service", "rm", "plain")


def test_clients_of_both_libraries_hear_at_once_of_names_that_nobody_has(cluster: Cluster) -> None:
    """busybox, and curl and dig with glibc; through the engine's resolver. No upstream is asked (a lab has none)."""
    run(cluster, "h1", "libc", "web", *SERVE)
    run(cluster, "h2", "asks", "web", *SERVE)
    for name in ("libc", "libc.web.mesh"):
        cluster.until("glibc finds it", lambda name=name: curls(cluster, name) == 0)
        assert "10." in docker(cluster, "h2", "exec", "asks", "busybox", "nslookup", name)
    for name in ("nobody-has-it", "nobody-has-it.web.mesh", "nobody.mesh"):
        said = docker(cluster, "h2", "exec", "asks", "dig", "+tries=1", "+time=3", name)
        assert "status: NXDOMAIN" in said
        assert " aa " in said, "or the engine asks the next server"
        assert curls(cluster, name) == 6  # could not resolve
    remove(cluster, "h1", "libc")
    remove(cluster, "h2", "asks")


def curls(cluster: Cluster, name: str) -> int:
    """How curl, with glibc, ends in a container."""
    return cluster.lab.exec("h2", ["docker", "exec", "asks", "curl", "-sS", "-m", "5", f"http://{name}/"]).returncode


def test_containers_have_both_families_on_a_network_of_both(cluster: Cluster) -> None:
    cluster.mesh("network", "create", "--ipv6", "six")
    for host in cluster.hosts:
        cluster.until(f"{host} has the network", lambda host=host: "six" in networks(cluster, host))
    run(cluster, "h1", "front6", "six", *SERVE, options=("--hostname", "front6"))
    run(cluster, "h2", "asks", "six", *SERVE)
    cluster.until("it serves", lambda: curls(cluster, "front6") == 0)
    told = docker(cluster, "h2", "exec", "asks", "dig", "+short", "AAAA", "front6.six.mesh")
    own = docker(cluster, "h1", "exec", "front6", "busybox", "ip", "-6", "address", "show", "scope", "global")
    assert told.startswith("fd")
    assert f" {told}/128 " in own
    assert told in docker(cluster, "h1", "inspect", "-f", "{{json .NetworkSettings.Networks.six}}", "front6")
    pinged = docker(cluster, "h2", "exec", "asks", "busybox", "ping", "-c", "2", "-W", "10", told)
    assert " 0% packet loss" in pinged, "across hosts"
    cluster.serve("plain6", 1, "--network", "six")
    for family in ("-4", "-6"):  # a service's virtual address of either
        assert "host=plain6.1" in docker(
            cluster, "h2", "exec", "asks", "curl", family, "-sSm5", "http://plain6.six.mesh/"
        )
    cluster.mesh("service", "rm", "plain6")
    cluster.until("no task is left", lambda: cluster.rows("{{.ID}}", "task", "ls") == [])
    remove(cluster, "h1", "front6")
    remove(cluster, "h2", "asks")
    cluster.mesh("network", "rm", "six")


def test_networks_are_the_same_in_docker_and_in_the_cluster(cluster: Cluster) -> None:
    docker(cluster, "h2", "network", "create", "-d", "mesh", "--ipam-driver", "mesh", "back")
    cluster.until("h1 has it too", lambda: "back" in networks(cluster, "h1"))
    assert "back" in cluster.mesh("network", "ls", "--format", "{{.Name}}").stdout
    named = ("--subnet", "10.77.0.0/24", "-o", "mesh.name=named")
    docker(cluster, "h2", "network", "create", "-d", "mesh", "--ipam-driver", "mesh", *named, "proj_named")
    cluster.until("h1 has it by its name", lambda: "named" in networks(cluster, "h1"))
    clash = refused(
        cluster, "h1", "network", "create", "-d", "mesh", "--ipam-driver", "mesh", "--subnet", "10.77.0.0/25",
        "-o", "mesh.name=other", "other",
    )  # fmt: skip
    assert 'overlaps network "named"' in clash
    # Removed behind our back it comes back, unless it was made by Docker and nobody uses it.
    docker(cluster, "h1", "network", "rm", "web")
    cluster.until("it is back", lambda: "web" in networks(cluster, "h1"))
    docker(cluster, "h2", "network", "rm", "back")
    cluster.until("it is gone everywhere", lambda: "back" not in networks(cluster, "h1"))
    cluster.mesh("network", "rm", "named")
    for host in cluster.hosts:
        cluster.until("it is gone", lambda host=host: not {"named", "proj_named"} & networks(cluster, host))


def test_it_outlives_restarts_of_either_side_and_starts_without_managers(cluster: Cluster) -> None:
    run(cluster, "h1", "caller", "web", "sleep", "1000")
    run(cluster, "h2", "stays", "web", *SERVE, options=("--hostname", "stays", "--restart", "always"))
    cluster.until("it serves", lambda: answered(cluster, "h1", "caller", "http://stays/") == {"stays"})
    cluster.lab.kill_daemon("h2")
    cluster.lab.start_daemon("h2")
    cluster.until("it is found", lambda: answered(cluster, "h1", "caller", "http://stays/") == {"stays"})
    # No call is replayed when an engine is restarted.
    cluster.lab.stop_engine("h2", signal.SIGKILL)
    cluster.lab.start_engine("h2")
    cluster.until("it serves again", lambda: answered(cluster, "h1", "caller", "http://stays/") == {"stays"})
    # Without a manager containers start, from leased addresses, and find those on this node and what was known.
    cluster.lab.kill_daemon("h1")
    run(cluster, "h2", "alone", "web", *SERVE, options=("--hostname", "alone"))
    run(cluster, "h2", "asks", "web", "sleep", "1000")
    cluster.until("it serves", lambda: answered(cluster, "h2", "asks", "http://alone/") == {"alone"})
    cluster.lab.start_daemon("h1")
    cluster.until("a manager is back", cluster.ready)
    cluster.until("it is known", lambda: answered(cluster, "h1", "caller", "http://alone/") == {"alone"})
    remove(cluster, "h2", "alone", "asks", "stays")
    cluster.until("all are free", lambda: json.loads(cluster.lab.exec("h2", ["cat", BOOK]).stdout)["entries"] == {})
    assert "is used by container" in cluster.mesh("network", "rm", "web", check=False).stderr
    remove(cluster, "h1", "caller")
