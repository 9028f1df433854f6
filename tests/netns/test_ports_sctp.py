"""SCTP through published ports, by its first packet, on a real kernel."""

from __future__ import annotations

import socket

import pytest
from scapy.layers.inet import IP
from scapy.layers.sctp import SCTP, SCTPChunkInit

from mesh.vip.namespace import visit
from tests.netns.vip_lab import Lab, arrived, listening
from tests.netns.world import OUTSIDE

pytestmark = pytest.mark.root

PORT = 8080


@pytest.mark.parametrize("entry", [1, 2, 3])
def test_sctp_is_carried_to_a_task_from_every_host_with_the_clients_address(lab: Lab, entry: int) -> None:
    """By its first packet: this machine has no SCTP sockets, only the kernel's translation."""
    web = lab.nets["web"]
    web.backends, web.ports = {lab.address("web2"): 1}, {("sctp", PORT): 2905}
    lab.apply()
    init = SCTP(sport=5000, dport=PORT, tag=0) / SCTPChunkInit(init_tag=7, n_out_streams=1, n_in_streams=1, init_tsn=1)
    packet = bytes(IP(src=OUTSIDE, dst=str(lab.hosts[entry - 1].address)) / init)
    with (
        listening(lab.netns("web2")) as task,
        visit(lab.outside, lambda _: socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)) as raw,
    ):
        raw.sendto(packet, (str(lab.hosts[entry - 1].address), 0))
        seen = [(one.src, one[SCTP].dport) for one in map(IP, arrived(task)) if SCTP in one]
    assert (OUTSIDE, 2905) in seen
