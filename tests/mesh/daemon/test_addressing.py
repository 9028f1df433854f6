"""Which addresses of its machine a node uses, and what becomes of them when the machine has others."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address

import msgspec
import pytest

from mesh import machine
from mesh.config import Config
from mesh.daemon.addressing import Addressing
from mesh.daemon.identity import Identity
from mesh.daemon.local import StateError

ONE = machine.HostAddress(IPv4Address("192.0.2.1"), "eth0", 1500)
TWO = machine.HostAddress(IPv4Address("198.51.100.2"), "eth1", 1500)
MANAGER = Identity(
    node_id="n", node_number=1, secret="s", cluster_id="c", role="manager", data_address="192.0.2.1",
    managers=("192.0.2.1:7377",), address="192.0.2.1:7377",
)  # fmt: skip


def having(monkeypatch: pytest.MonkeyPatch, *addresses: machine.HostAddress, **config: str) -> Addressing:
    monkeypatch.setattr(machine, "addresses", lambda: list(addresses))
    monkeypatch.setattr(machine, "source_address", lambda manager: "192.0.2.1" if manager.startswith("192") else "")
    return Addressing(replace(Config(), **config))


@pytest.mark.parametrize(
    ("control", "data", "config", "expected"),
    [
        ("eth1", "", {}, ("198.51.100.2:7377", "198.51.100.2")),
        ("192.0.2.1:9", "eth1", {}, ("192.0.2.1:9", "198.51.100.2")),
        ("", "", {"advertise_address": "eth0", "data_address": "eth1"}, ("192.0.2.1:7377", "198.51.100.2")),
        ("", "", {"advertise_address": "eth0:8", "listen": "0.0.0.0:9"}, ("192.0.2.1:8", "192.0.2.1")),
        ("eth0", "", {"listen": "0.0.0.0:9"}, ("192.0.2.1:9", "192.0.2.1")),
    ],
)
async def test_a_first_manager(
    monkeypatch: pytest.MonkeyPatch, control: str, data: str, config: dict[str, str], expected: tuple[str, str]
) -> None:
    assert await having(monkeypatch, ONE, TWO, **config).first(control, data) == expected


async def test_what_is_not_here_or_not_said_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(StateError, match='"eth7" is no address or device of this machine'):
        await having(monkeypatch, ONE, TWO).first("eth7", "")
    with pytest.raises(StateError, match="several addresses"):
        await having(monkeypatch, ONE, TWO).first("", "")


async def test_who_joins_uses_the_address_towards_the_manager(monkeypatch: pytest.MonkeyPatch) -> None:
    made = having(monkeypatch, ONE, TWO)
    assert await made.towards("", "192.0.2.9:7377") == "192.0.2.1"
    assert await made.towards("eth1", "192.0.2.9:7377") == "198.51.100.2"
    assert await having(monkeypatch, TWO).towards("", "") == "198.51.100.2"
    assert await having(monkeypatch, ONE, TWO, data_address="eth1").towards("", "192.0.2.9:1") == "198.51.100.2"


async def test_a_machine_that_has_moved(monkeypatch: pytest.MonkeyPatch) -> None:
    assert await having(monkeypatch, ONE, TWO).settled(MANAGER) == MANAGER
    moved = await having(monkeypatch, TWO).settled(MANAGER)
    assert (moved.data_address, moved.address) == ("198.51.100.2", "198.51.100.2:7377")
    assert moved.managers == MANAGER.managers
    worker = msgspec.structs.replace(MANAGER, role="worker", address="")
    assert (await having(monkeypatch, TWO).settled(worker)).address == ""
