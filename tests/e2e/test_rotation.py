"""Roots and keys of gossip change while the cluster works: without its leader, with a node away, and under traffic."""

from __future__ import annotations

import subprocess
import sys
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from control.ca.root import key_pem, pem
from mesh.lab.lab import MESHD, Daemon, Lab
from tests.e2e.conftest import Cluster, a_lab
from tests.e2e.test_managers import leader, managed, voters

pytestmark = [pytest.mark.root, pytest.mark.e2e, pytest.mark.timeout(300)]


def corporate_root(directory: Path) -> tuple[str, str]:
    """Files of a root and its key, as somebody else's tool makes them."""
    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.now(UTC)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Example Corp Root"),
                      x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Example")])  # fmt: skip
    certificate = (
        x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
        .serial_number(x509.random_serial_number()).not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=3650))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA384())
    )  # fmt: skip
    files = directory / "root.pem", directory / "root.key"
    files[0].write_bytes(pem(certificate))
    files[1].write_bytes(key_pem(key))
    return str(files[0]), str(files[1])


def roots(cluster: Cluster, host: str) -> bytes:
    return (cluster.lab.directory / host / "disk/tls/roots.pem").read_bytes()


@pytest.mark.hosts(3)
def test_another_leader_ends_the_change_of_the_root(bare_lab: Lab, tmp_path: Path) -> None:
    """The one that began it is gone before all nodes have followed; so is a manager that was away all the time."""
    cluster = managed(bare_lab)
    cluster.serve("api", 2, "--network", "web")
    first = leader(cluster, "h1")
    asked = next(host for host in cluster.hosts if host != first)
    before = cluster.mesh("ca", "show", host=asked).stdout
    certificate, key = corporate_root(tmp_path)
    digest = cluster.mesh("ca", "rotate", "--detach", "--ca-cert", certificate, "--ca-key", key, host=asked).stdout
    bare_lab.kill_daemon(first)
    shown = cluster.mesh("ca", "show", "--format", "{{.Changing}} {{.Digest}}", host=asked)
    assert shown.stdout.split()[1] == digest.strip(), "the change is not lost"
    cluster.until("another leads", lambda: leader(cluster, asked) not in ("", first))

    def settled() -> bool:
        done = cluster.mesh("ca", "show", "--format", "{{.Changing}}", host=asked, check=False)
        return done.returncode == 0 and done.stdout.strip() == "false"

    cluster.until("the change is over", settled)
    after = Path(certificate).read_text()
    assert cluster.mesh("ca", "show", host=asked).stdout == after != before
    bare_lab.start_daemon(first)
    cluster.until("the leader of before is back", lambda: len(voters(cluster, asked)) == 3)
    cluster.until("it has a session", lambda: cluster.connected(first))
    cluster.until(
        "all believe the new root only", lambda: {roots(cluster, h) for h in cluster.hosts} == {after.encode()}
    )
    for host in cluster.hosts:
        cluster.mesh("network", "create", f"by-{host}", host=host)
    token = cluster.mesh("token", "show", "worker", "-q", host=asked).stdout
    assert digest.strip() in token


@pytest.mark.hosts(2)
def test_a_cluster_of_a_root_that_was_brought(bare_lab: Lab, tmp_path: Path) -> None:
    certificate, key = corporate_root(tmp_path)
    other = tmp_path / "other"
    other.mkdir()
    cluster = Cluster(bare_lab, tuple(bare_lab.hosts()))
    refused = cluster.mesh("init", "--ca-cert", certificate, "--ca-key", corporate_root(other)[1], check=False)
    assert "the CA's key is not that of the CA's certificate" in refused.stderr
    cluster.mesh("init", "--ca-cert", certificate, "--ca-key", key, "--cert-expiry", "2h")
    assert cluster.mesh("ca", "show").stdout == Path(certificate).read_text()
    token = cluster.mesh("token", "show", "worker", "-q").stdout.strip()
    cluster.mesh("join", "--token", token, f"{bare_lab.address('h1')}:7377", host="h2")
    cluster.until("all nodes are ready", cluster.ready)
    chain = (bare_lab.directory / "h2/disk/tls/chain.pem").read_bytes()
    left = x509.load_pem_x509_certificates(chain)[0].not_valid_after_utc - datetime.now(UTC)
    assert timedelta(hours=1.5) < left <= timedelta(hours=2)
    refused = cluster.mesh("cluster", "update", "--cert-expiry", "59m", check=False)
    assert refused.returncode != 0
    assert "life of certificates" in refused.stderr
    # Roots of one's own are taken back, too.
    assert cluster.mesh("ca", "rotate", "--timeout", "50").returncode == 0
    cluster.until("h2 has its session", lambda: cluster.connected("h2"))


@pytest.mark.hosts(3)
def test_an_external_ca_signs_for_all(bare_lab: Lab, tmp_path: Path) -> None:
    certificate, key = corporate_root(tmp_path)
    program = str(Path(__file__).parents[1] / "cfssl.py")
    command, environment = bare_lab.command("h1", [sys.executable, program, certificate, key, bare_lab.address("h1")])
    environment = {**environment, "PYTHONPATH": str(Path(__file__).parents[2])}
    cluster = Cluster(bare_lab, tuple(bare_lab.hosts()))
    refused = cluster.mesh("init", "--ca-cert", certificate, "--external-ca", "https://127.0.0.1:1/", check=False)
    assert "the external CA at https://127.0.0.1:1/ does not answer" in refused.stderr
    with subprocess.Popen(
        command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as server:
        try:
            assert server.stdout is not None
            url = server.stdout.readline().strip()
            assert url.startswith("https://10.66.0.11:"), url
            cluster.mesh("init", "--ca-cert", certificate, "--external-ca", url, "--dispatcher-heartbeat", "500ms")
            for host, role in (("h2", "worker"), ("h3", "manager")):
                token = cluster.mesh("token", "show", role, "-q").stdout.strip()
                cluster.mesh("join", "--token", token, f"{bare_lab.address('h1')}:7377", host=host)
            cluster.until("all nodes are ready", cluster.ready)
            cluster.mesh("node", "promote", "h2")
            cluster.until("h2 has a manager's certificate", lambda: voters(cluster) == {"h1", "h2", "h3"})
            refused = cluster.mesh("ca", "rotate", check=False)
            assert "are signed by the external CA at https://10.66.0.11:" in refused.stderr
        finally:
            assert server.stdin is not None
            server.stdin.close()
            server.wait(30)
    token = cluster.mesh("token", "show", "worker", "-q").stdout.strip()
    cluster.mesh("leave", "--force", host="h3")
    refused = cluster.mesh("join", "--token", token, f"{bare_lab.address('h1')}:7377", host="h3", check=False)
    assert "does not answer" in refused.stderr
    cluster.mesh("network", "create", "web")


# The daemon with other times: keys change every ten seconds instead of every twelve hours.
QUICK = (
    "import control.keymanager, gossip.keyring; control.keymanager.PERIOD_S = 10.0; "
    "gossip.keyring.HANDOVER_STEP_S = 2.0; from mesh.daemon.main import main; main()"
)


def ring(cluster: Cluster, host: str) -> dict[str, str]:
    """The keys of gossip, each with how many have it ("3/3")."""
    words = cluster.mesh("gossip", "keys", "ls", host=host, check=False).stdout.split()
    return dict(zip(words[::2], words[1::2], strict=False))


def seen(cluster: Cluster, host: str) -> dict[str, str]:
    """Who is alive in gossip, as a host knows it."""
    lines = cluster.mesh("gossip", "members", host=host).stdout.splitlines()[1:]
    return {words[0]: words[2] for words in map(str.split, lines)}


class Traffic(threading.Thread):
    """A client outside of the cluster that asks without a pause."""

    def __init__(self, cluster: Cluster, url: str) -> None:
        super().__init__(daemon=True)
        self._cluster, self._url, self._over = cluster, url, threading.Event()
        self.asked, self.failed = 0, 0

    def run(self) -> None:
        while not self._over.is_set():
            self.asked += 1
            self.failed += self._cluster.outside("curl", "-s", "-m", "5", self._url).returncode != 0

    def stop(self) -> None:
        self._over.set()
        self.join(30)


@pytest.mark.timeout(480)
def test_keys_of_gossip_change_under_traffic_and_while_a_node_is_away() -> None:
    quick = Daemon((sys.executable, "-c", QUICK, *MESHD.command[1:]), MESHD.socket)
    with a_lab("keys", 3, quick) as lab:
        cluster = managed(lab, managers=1)
        # Not on h3: a node without its daemon counts as lost after a while, and what is open to its tasks is ended.
        cluster.serve("api", 2, "--network", "web", "--publish", "8080:80", "--constraint", "node.hostname!=h3")
        alive = dict.fromkeys(cluster.hosts, "alive")
        cluster.until("all are in gossip", lambda: seen(cluster, "h1") == alive)
        traffic = Traffic(cluster, f"http://{lab.address('h2')}:8080/")
        traffic.start()
        first = set(ring(cluster, "h1"))
        assert len(first) >= 3

        def all_are_others() -> bool:
            assert seen(cluster, "h1") == seen(cluster, "h2") == alive, "nobody is lost by it"
            now = set(ring(cluster, "h1"))
            return len(now) >= 3 and not first & now

        cluster.until("all keys are others", all_are_others, timeout_s=120)
        lab.kill_daemon("h3")
        cluster.until("h3 is missed", lambda: seen(cluster, "h1")["h3"] != "alive")
        known = set(ring(cluster, "h2"))
        cluster.until("it knows no key any more", lambda: bool(now := set(ring(cluster, "h2"))) and not known & now,
                      timeout_s=120)  # fmt: skip
        lab.start_daemon("h3")
        for host in cluster.hosts:
            cluster.until(f"{host} sees all again", lambda host=host: seen(cluster, host) == alive)  # type: ignore[misc]
        cluster.until("all know all keys", lambda: set(ring(cluster, "h3").values()) == {"3/3"})
        traffic.stop()
        assert traffic.asked > 20
        assert traffic.failed == 0, f"{traffic.failed} of {traffic.asked} requests failed"
