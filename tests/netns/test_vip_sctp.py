"""SCTP spoken by real sockets, on a kernel that has them: through a VIP, and through a published port of every host."""

from __future__ import annotations

import contextlib
import errno
import socket
import threading
from collections.abc import Iterator

import pytest

from mesh.vip.namespace import visit
from tests.netns.vip_lab import Lab
from tests.netns.world import OUTSIDE

pytestmark = pytest.mark.root

PORT, TARGET = 8080, 2905
# An emulated machine shakes hands slowly, and loads the module first.
PATIENCE_S = 60.0
LOOK_S = 0.5  # so soon a server sees that it is over


def sctp(netns: str) -> socket.socket:
    made = visit(netns, lambda _: socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_SCTP))
    made.settimeout(PATIENCE_S)
    return made


@contextlib.contextmanager
def serving(netns: str, address: str, name: str) -> Iterator[None]:
    """A task that tells its name and who asks, one association after the other."""
    over = threading.Event()
    with sctp(netns) as door:
        door.settimeout(LOOK_S)
        door.bind((address, TARGET))
        door.listen(8)

        def serve() -> None:
            while not over.is_set():
                with contextlib.suppress(TimeoutError):
                    connection, client = door.accept()
                    with connection:
                        connection.settimeout(PATIENCE_S)
                        connection.recv(100)
                        connection.send(f"{name} {client[0]}".encode())

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()


def ask_sctp(netns: str, address: object, port: int) -> str:
    with sctp(netns) as connection:
        connection.connect((str(address), port))
        connection.send(b"?")
        return connection.recv(100).decode()


def test_sctp_is_spoken_through_a_vip_and_through_a_port_of_every_host(lab: Lab) -> None:
    web = lab.nets["web"]
    web.backends, web.ports = {lab.address("web2"): 1}, {("sctp", PORT): TARGET}
    lab.apply()
    with serving(lab.netns("web2"), str(lab.address("web2")), "web2"):
        assert ask_sctp(lab.netns("client1"), web.vip, TARGET) == f"web2 {lab.address('client1')}"
        for host in lab.hosts:
            assert ask_sctp(lab.outside, host.address, PORT) == f"web2 {OUTSIDE}", host.number


def test_without_a_backend_an_association_is_refused(lab: Lab) -> None:
    web = lab.nets["web"]
    web.backends, web.ports = {}, {("sctp", PORT): TARGET}
    lab.apply()
    for netns, address, port in ((lab.netns("client1"), web.vip, TARGET), (lab.outside, lab.hosts[0].address, PORT)):
        with pytest.raises(OSError, match="Protocol not available") as refusal:
            ask_sctp(netns, address, port)
        assert refusal.value.errno == errno.ENOPROTOOPT, "this is how SCTP hears of it; port unreachable it ignores"
