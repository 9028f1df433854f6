"""The demo server says the truth about both ends, in bounded numbers."""

from __future__ import annotations

import http.client
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest

from mesh.lab import whoami


@pytest.fixture
def server(request: pytest.FixtureRequest) -> Iterator[whoami.Server]:
    """With MAX_THREADS places, or as many as the test asks for."""
    made = whoami.Server(("127.0.0.1", 0), getattr(request, "param", whoami.MAX_THREADS))
    thread = threading.Thread(target=made.serve_forever, args=(0.01,))
    thread.start()
    yield made
    made.shutdown()
    thread.join()
    made.server_close()


def connection(server: whoami.Server) -> http.client.HTTPConnection:
    return http.client.HTTPConnection("127.0.0.1", server.server_address[1], timeout=5)


def test_it_says_who_answered_and_whom_it_saw(server: whoami.Server) -> None:
    client = connection(server)
    for path, read in (("/", lambda text: dict(f.split("=") for f in text.split())), ("/json", json.loads)):
        client.request("GET", path)  # on one connection: it is kept alive
        assert client.sock is not None
        seen = read(client.getresponse().read().decode())
        assert seen == {
            "host": os.uname().nodename,
            "address": "127.0.0.1",
            "client": f"127.0.0.1:{client.sock.getsockname()[1]}",
            "path": path,
        }
    client.close()


def test_a_stream_goes_on_until_the_client_leaves(server: whoami.Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(whoami, "STREAM_INTERVAL_S", 0.001)
    before = threading.active_count()
    client = connection(server)
    client.request("GET", "/stream")
    answer = client.getresponse()
    lines = [answer.readline() for _ in range(3)]
    assert lines[0] == lines[1] == lines[2]
    assert b"path=/stream" in lines[0]
    (thread,) = [t for t in threading.enumerate() if "process_request_thread" in t.name]
    answer.close()
    client.close()
    thread.join(5)
    assert threading.active_count() == before


@pytest.mark.parametrize("server", [2], indirect=True)
def test_it_takes_no_more_connections_than_it_has_places(server: whoami.Server) -> None:
    clients = [connection(server) for _ in range(3)]
    for client in clients:
        client.request("GET", "/")
    for client in clients[:2]:
        assert client.getresponse().read()
    assert clients[2].sock is not None
    clients[2].sock.settimeout(0.2)
    with pytest.raises(TimeoutError):
        clients[2].sock.recv(1)
    clients[0].close()
    clients[2].sock.settimeout(5)
    assert clients[2].sock.recv(1024).startswith(b"HTTP/1.1 200")
    for client in clients[1:]:
        client.close()


def test_a_client_that_breaks_off_is_no_error(server: whoami.Server, capfd: pytest.CaptureFixture[str]) -> None:
    for _ in range(3):
        with socket.create_connection(("127.0.0.1", server.server_address[1])) as rude:
            rude.sendall(b"GET / HT")
            rude.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")  # closes with a reset
    client = connection(server)
    client.request("GET", "/")
    assert client.getresponse().status == 200
    client.close()
    assert "Traceback" not in capfd.readouterr().err


def test_datagrams_are_answered_from_the_address_that_they_were_sent_to() -> None:
    channel = whoami.udp_socket(0)
    port = channel.getsockname()[1]
    threading.Thread(target=whoami.serve_udp, args=(channel,), daemon=True).start()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.settimeout(5)
        client.bind(("127.0.0.1", 0))
        for address in ("127.0.0.1", "127.0.0.2"):
            client.sendto(b"?", (address, port))
            answer, source = client.recvfrom(2048)
            assert source == (address, port)
            assert f"address={address} client=127.0.0.1:{client.getsockname()[1]}" in answer.decode()


def test_a_port_that_is_taken_is_said(server: whoami.Server) -> None:
    port = str(server.server_address[1])
    done = subprocess.run(
        [sys.executable, "-m", "mesh.lab.whoami", "--port", port], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert done.stderr.startswith(f"whoami: cannot listen on port {port}")


def test_it_imports_little() -> None:
    """It is started by the dozen, as tasks on one machine."""
    script = "import sys, mesh.lab.whoami; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-I", "-c", script], capture_output=True, text=True, check=True)
    assert not {"asyncio", "click", "grpc", "msgspec", "pyroute2"} & set(done.stdout.split())


@pytest.mark.parametrize(("address", "shown"), [("127.0.0.1", "127.0.0.1"), ("::1", "[::1]")])
def test_it_answers_both_families_each_by_its_own_addresses(address: str, shown: str) -> None:
    with whoami.Server(("", 0)) as made:
        thread = threading.Thread(target=made.serve_forever, args=(0.01,))
        thread.start()
        try:
            client = http.client.HTTPConnection(address, made.server_address[1], timeout=5)
            client.request("GET", "/json")
            assert client.sock is not None
            seen = json.loads(client.getresponse().read())
            assert (seen["address"], seen["client"]) == (address, f"{shown}:{client.sock.getsockname()[1]}")
            client.close()
        finally:
            made.shutdown()
            thread.join()
