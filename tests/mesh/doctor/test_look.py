"""What is read of a machine: formats of the kernel, and a look at the real thing."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path

import pytest

from mesh.doctor.facts import Chain
from mesh.doctor.look import dropping_chains, gather, listening

TCP = """  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:1CD1 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 777
   1: 0100007F:1CD2 0100007F:9999 01 00000000:00000000 00:00000000 00000000     0        0 778
"""
UDP6 = """  sl  local_address                         remote_address                        st tx_queue
   1: 00000000000000000000000001000000:14E9 00000000000000000000000000000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 9 2 0000000000000000 0
"""  # noqa: E501


def test_what_listens_is_read_as_the_kernel_writes_it() -> None:
    assert list(listening(TCP, "tcp")) == [(IPv4Address("127.0.0.1"), 7377, 777)]
    assert list(listening(UDP6, "udp")) == [(IPv6Address("::1"), 5353, 9)]


def test_chains_that_drop_are_found_in_what_nft_prints() -> None:
    def chain(**fields: str) -> dict[str, object]:
        return {"chain": {"family": "ip", "table": "filter", "name": "FORWARD", **fields}}

    listing = [
        {"metainfo": {}},
        chain(hook="forward", policy="drop"),
        chain(hook="output", policy="drop"),
        chain(hook="input", policy="accept"),
        chain(),
    ]
    assert list(dropping_chains(json.dumps({"nftables": listing}))) == [Chain("ip", "filter", "FORWARD", "forward")]
    assert list(dropping_chains("")) == []
    assert list(dropping_chains("no json")) == []


@pytest.mark.root
def test_this_machine_is_seen(tmp_path: Path) -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        facts = gather(tmp_path / "not" / "there")
        mine = [one for one in facts.sockets if one.port == server.getsockname()[1]]
    assert [(one.protocol, str(one.address), bool(one.program)) for one in mine] == [("tcp", "127.0.0.1", True)]
    assert facts.kernel_can["namespaces"] == facts.kernel_can["veth"] == facts.kernel_can["nftables"] == ""
    tried = {"namespaces", "veth", "vxlan", "nftables", "flowtable", "ipvs", "sctp", "wireguard"}
    assert set(facts.kernel_can) == tried
    assert facts.sysctls["net.ipv4.ip_forward"] in ("0", "1")
    assert facts.disk_free_bytes
    assert facts.clock_synchronised is not None


@pytest.mark.root
def test_the_probe_leaves_nothing_behind() -> None:
    def links() -> str:
        return subprocess.run(["ip", "-br", "link"], capture_output=True, text=True, check=True).stdout

    before = links()
    subprocess.run([sys.executable, "-m", "mesh.doctor.probe"], capture_output=True, check=True, timeout=30)
    assert "probe" not in links()
    assert before.count("\n") == links().count("\n")
