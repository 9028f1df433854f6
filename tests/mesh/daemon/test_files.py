"""Identity, the copy of the assignments, readiness, metrics: what the daemon writes and says."""

from __future__ import annotations

import asyncio
import os
import socket
from pathlib import Path

import pytest

from control.assignment import Peer, Settings
from mesh.agent import disk
from mesh.agent.view import Assignments
from mesh.daemon import identity
from mesh.daemon.identity import Identity, IdentityError
from mesh.daemon.notify import notify
from mesh.daemon.scrape import serve_metrics
from mesh.metrics import Metrics
from tests.ports import free_port

WHO = Identity(
    node_id="n1", node_number=1, secret="s", cluster_id="c", role="worker", data_address="10.0.0.1", managers=("m:1",)
)


def test_the_identity_is_kept_for_root_only_and_forgotten_on_leave(tmp_path: Path) -> None:
    assert identity.load(tmp_path) is None
    identity.save(tmp_path, WHO)
    assert identity.load(tmp_path) == WHO
    assert (tmp_path / "identity.json").stat().st_mode & 0o777 == 0o600
    identity.forget(tmp_path)
    assert identity.load(tmp_path) is None


def test_an_identity_that_others_could_read_is_refused(tmp_path: Path) -> None:
    identity.save(tmp_path, WHO)
    (tmp_path / "identity.json").chmod(0o644)
    with pytest.raises(IdentityError, match=r"can be used by others \(mode 0644\)"):
        identity.load(tmp_path)


def test_an_unreadable_identity_is_said_and_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "identity.json").touch(0o600)
    (tmp_path / "identity.json").write_text("{")
    with pytest.raises(IdentityError, match=r"cannot read .*identity"):
        identity.load(tmp_path)


def test_the_copy_of_the_assignments_survives_and_a_broken_one_is_as_none(tmp_path: Path) -> None:
    file = tmp_path / "assignments"
    records = [
        Settings(cluster_id="c", cluster_name="lab", vxlan_port=4789, heartbeat_period_s=5.0),
        Peer(node_id="n1", number=1, name="h1", data_address="10.0.0.1", state="ready"),
    ]
    disk.save(file, Assignments().updated(0, 7, records, ()))
    assert disk.load(file) == Assignments().updated(0, 0, records, ())
    data = file.read_bytes()
    for broken in (b"", data[:-1], b"\xc1" + data, data.replace(b"peer", b"poor")):
        file.write_bytes(broken)
        assert disk.load(file).records == {}


def test_readiness_is_told_to_the_service_manager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(path)
        monkeypatch.setenv("NOTIFY_SOCKET", path)
        notify("READY=1")
        assert manager.recv(100) == b"READY=1"
    os.unlink(path)
    notify("STOPPING=1")  # nobody listens: no error


def test_what_the_name_server_counts_is_read_when_it_is_asked_for() -> None:
    metrics, counters = Metrics(), {"queries_udp": 1}
    metrics.table("meshd_dns_total", "What the name server did", lambda: counters)
    counters["queries_udp"] = 7
    assert metrics.render().splitlines() == [
        "# HELP meshd_dns_total What the name server did",
        "# TYPE meshd_dns_total counter",
        'meshd_dns_total{what="queries_udp"} 7',
    ]


async def test_metrics_are_served_and_junk_is_refused() -> None:
    port = free_port()
    metrics = Metrics()
    metrics.counter("meshd_repairs_total", "Repairs").add(3)

    async def ask(request: bytes) -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(request)
        answer = await reader.read()
        writer.close()
        return answer

    async with asyncio.TaskGroup() as group:
        server = group.create_task(serve_metrics(f"127.0.0.1:{port}", metrics))
        await asyncio.sleep(0.1)
        good = await ask(b"GET /metrics HTTP/1.1\r\n\r\n")
        assert good.startswith(b"HTTP/1.1 200 OK")
        assert b"\nmeshd_repairs_total 3\n" in good
        assert (await ask(b"POST /metrics HTTP/1.1\r\n\r\n")).startswith(b"HTTP/1.1 404")
        assert await ask(b"x" * 20000) == b""
        server.cancel()


async def test_many_that_say_nothing_are_not_in_the_way_of_who_scrapes() -> None:
    port, metrics = free_port(), Metrics()
    async with asyncio.TaskGroup() as group, asyncio.timeout(60):
        server = group.create_task(serve_metrics(f"127.0.0.1:{port}", metrics))
        silent = []
        while len(silent) < 200:
            try:
                silent.append(await asyncio.open_connection("127.0.0.1", port))
            except OSError:  # it does not listen yet
                await asyncio.sleep(0.01)
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET /metrics HTTP/1.1\r\n\r\n")
        assert (await reader.read()).startswith(b"HTTP/1.1 200 OK")
        assert await silent[0][0].read() == b"", "the oldest have given way"
        for _, one in (*silent, (reader, writer)):
            one.close()
        server.cancel()
