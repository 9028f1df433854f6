"""`mesh dns query`, `dump` and `setup`."""

from __future__ import annotations

from pathlib import Path

import pytest

from control.rpc import control_pb2 as pb
from dns.upstreams import parse_resolv_conf
from tests.mesh.cli.fake import Mesh

PLAIN = "# by dhclient\nnameserver 192.0.2.53\nsearch example.org\noptions edns0\n"


def test_an_answer_comes_with_its_reasons(mesh: Mesh) -> None:
    mesh.daemon.dns_reply = pb.DnsQueryReply(
        view="web", outcome="answer", answers=["10.128.0.2"], why=["service api", "it has a virtual address"]
    )
    assert mesh.ok("dns", "query", "--from", "web.1", "-t", "AAAA", "api").splitlines() == [
        "answer (as web)",
        "  10.128.0.2",
        "because service api",
        "because it has a virtual address",
    ]
    assert mesh.daemon.dns_asked == pb.DnsQueryRequest(name="api", type="AAAA", task="web.1")


def test_all_names_are_listed(mesh: Mesh) -> None:
    mesh.daemon.dns_names = [pb.DnsName(network="web", name="api", type="A", value="10.128.0.2", why="its VIP")]
    table = [line.split() for line in mesh.ok("dns", "dump").splitlines()]
    assert table == [["NETWORK", "NAME", "TYPE", "VALUE"], ["web", "api", "A", "10.128.0.2"]]
    assert mesh.ok("dns", "dump", "--format", "{{.Name}} {{.Why}}") == "api its VIP\n"
    assert '"value": "10.128.0.2"' in mesh.ok("dns", "dump", "--format", "json")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    made = tmp_path / "root"
    (made / "etc").mkdir(parents=True)
    (made / "run/systemd/resolve").mkdir(parents=True)
    return made


def setup(mesh: Mesh, root: Path, *arguments: str) -> str:
    return mesh.ok("dns", "setup", "--root", str(root), *arguments)


def test_a_plain_resolv_conf_gets_our_server_first_and_keeps_the_others(mesh: Mesh, root: Path) -> None:
    file = root / "etc/resolv.conf"
    file.write_text(PLAIN)
    assert "is asked first" in setup(mesh, root)
    assert [str(server) for server in parse_resolv_conf(file.read_text())] == ["127.0.0.153:53", "192.0.2.53:53"]
    once = file.read_text()
    assert "first already" in setup(mesh, root)
    assert file.read_text() == once
    setup(mesh, root, "--undo")
    assert file.read_text() == PLAIN
    assert setup(mesh, root, "--undo") == "nothing to undo\n"


def test_what_others_change_in_resolv_conf_meanwhile_survives_the_undo(mesh: Mesh, root: Path) -> None:
    file = root / "etc/resolv.conf"
    file.write_text(PLAIN)
    setup(mesh, root)
    file.write_text(file.read_text().replace("192.0.2.53", "192.0.2.99"))
    setup(mesh, root, "--undo")
    assert file.read_text() == PLAIN.replace("192.0.2.53", "192.0.2.99")


def test_systemd_resolved_gets_a_drop_in_for_our_domain_only(mesh: Mesh, root: Path) -> None:
    stub = root / "run/systemd/resolve/stub-resolv.conf"
    stub.write_text("nameserver 127.0.0.53\n")
    (root / "etc/resolv.conf").symlink_to(stub)
    drop_in = root / "etc/systemd/resolved.conf.d/meshd.conf"
    setup(mesh, root)
    assert drop_in.read_text().splitlines()[1:] == ["[Resolve]", "DNS=127.0.0.153", "Domains=~mesh"]
    assert stub.read_text() == "nameserver 127.0.0.53\n"
    setup(mesh, root, "--undo")
    assert not drop_in.exists()


def test_a_configured_listener_is_used_and_a_port_that_resolv_conf_cannot_say_is_refused(
    mesh: Mesh, root: Path
) -> None:
    (root / "etc/meshd").mkdir()
    config = root / "etc/meshd/meshd.toml"
    (root / "etc/resolv.conf").write_text(PLAIN)
    config.write_text('dns_listen = "127.0.0.1:5353"\n')
    refused = mesh("dns", "setup", "--root", str(root))
    assert (refused.code, refused.err) == (
        1,
        "error: a plain resolv.conf knows no ports: set dns_listen to 127.0.0.1:53\n",
    )
    config.write_text('dns_listen = ""\n')
    refused = mesh("dns", "setup", "--root", str(root))
    assert "meshd does not answer this machine" in refused.err
    assert (root / "etc/resolv.conf").read_text() == PLAIN
