"""The messages of IPVS as bytes. Against a kernel they are tried in tests/vm."""

from __future__ import annotations

import struct
from ipaddress import ip_address

import pytest

from mesh.vip import ipvs_wire
from mesh.vip.ipvs_plan import (
    AF_INET,
    AF_INET6,
    DeleteBackend,
    DeleteService,
    Destination,
    Operation,
    PutBackend,
    PutService,
    Service,
    ServiceId,
)
from mesh.vip.wire import attribute, attributes

BY_MARK = ServiceId(AF_INET, mark=0x0A0100C8)
BY_PORT = ServiceId(AF_INET, 0, 17, ip_address("169.254.0.2").packed, 8080)
SIX = ServiceId(AF_INET6, 0, 6, ip_address("fd00::2").packed, 443)
TASK = Destination(ip_address("10.1.0.11").packed, 80)


def parts(payload: bytes) -> tuple[int, dict[int, bytes], dict[int, bytes]]:
    """(command, attributes of the service, attributes of the backend)."""
    found = attributes(payload, 4)
    return payload[0], attributes(found[1]), attributes(found[2]) if 2 in found else {}


def as_dumped(nested: int, payload: bytes) -> bytes:
    """What the kernel would send for what we sent: the same attributes in a message of its own."""
    body = attributes(payload, 4)[nested]
    return bytes(4) + attribute(nested, body)


@pytest.mark.parametrize(
    ("operation", "command"),
    [
        (PutService(BY_MARK, Service("rr", 0, 0), new=True), 1),
        (PutService(BY_MARK, Service("rr", 0, 0), new=False), 2),
        (DeleteService(BY_MARK), 3),
        (PutBackend(BY_MARK, TASK, 1, new=True), 5),
        (PutBackend(BY_MARK, TASK, 1, new=False), 6),
        (DeleteBackend(BY_MARK, TASK), 7),
    ],
)
def test_each_operation_has_its_command_and_names_the_service(operation: Operation, command: int) -> None:
    kind, service, _ = parts(ipvs_wire.encode(operation))
    assert kind == command
    assert service[1] == struct.pack("=H", AF_INET)
    assert service[5] == struct.pack("=I", 0x0A0100C8)


@pytest.mark.parametrize("id_", [BY_MARK, BY_PORT, SIX, ServiceId(AF_INET6, mark=0x40000007)])
@pytest.mark.parametrize("service", [Service("wlc", 0, 0), Service("mh", 0x8 | 0x1, 600)])
def test_a_service_reads_back_as_it_was_written(id_: ServiceId, service: Service) -> None:
    sent = ipvs_wire.encode(PutService(id_, service, new=True))
    assert ipvs_wire.service(as_dumped(1, sent)) == (id_, service)


def test_what_the_kernel_adds_to_the_flags_is_not_read_as_ours() -> None:
    sent = ipvs_wire.encode(PutService(BY_PORT, Service("rr", 0x1 | 0x2, 60), new=True))
    assert ipvs_wire.service(as_dumped(1, sent))[1] == Service("rr", 0x1, 60)


def test_affinity_is_by_whole_addresses_in_both_families() -> None:
    for id_, mask in ((BY_PORT, b"\xff\xff\xff\xff"), (SIX, struct.pack("=I", 128))):
        _, service, _ = parts(ipvs_wire.encode(PutService(id_, Service("rr", 1, 60), new=True)))
        assert service[9] == mask


@pytest.mark.parametrize(("id_", "address"), [(BY_PORT, "10.1.0.11"), (SIX, "fd00::11")])
def test_a_backend_reads_back_as_it_was_written(id_: ServiceId, address: str) -> None:
    task = Destination(ip_address(address).packed, 80)
    sent = ipvs_wire.encode(PutBackend(id_, task, 7, new=True))
    _, _, backend = parts(sent)
    assert backend[3] == struct.pack("=I", 0)  # masquerading, which is not what IPVS does by itself
    assert backend[11] == struct.pack("=H", id_.family)
    assert ipvs_wire.backend(id_.family, as_dumped(2, sent)) == (task, 7)


def test_a_backend_of_another_forward_method_is_like_none_of_ours() -> None:
    sent = ipvs_wire.encode(PutBackend(BY_PORT, TASK, 7, new=True))
    there = bytearray(as_dumped(2, sent))
    method = there.index(struct.pack("=HH", 8, 3)) + 4
    there[method : method + 4] = struct.pack("=I", 3)  # direct routing
    assert ipvs_wire.backend(AF_INET, bytes(there)) == (TASK, ipvs_wire.UNLIKE)


def test_the_family_and_the_time_out_are_found_in_their_answers() -> None:
    assert b"IPVS\0" in ipvs_wire.ask_family("IPVS")
    assert ipvs_wire.family_number(bytes(4) + attribute(1, struct.pack("=H", 37))) == 37
    asked = ipvs_wire.set_tcp_timeout(8100)
    assert asked[0] == ipvs_wire.Command.SET_CONFIG
    assert ipvs_wire.tcp_timeout(bytes(4) + asked[4:]) == 8100
