"""Generic netlink bytes <-> values: the messages of IPVS. Pure.

pyroute2 0.9.7 has them too, but reads every backend back with forward method 3, deletes for "update", and knows neither
IPv6 nor marks; none of that is usable for a difference. Layouts: linux/genetlink.h, linux/ip_vs.h.
"""

from __future__ import annotations

import struct
from enum import IntEnum

from mesh.vip.ipvs_plan import (
    AF_INET,
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

FAMILY = "IPVS"
CONTROLLER = 0x10  # GENL_ID_CTRL: the family that knows the numbers of the others

_GENERIC = struct.Struct("=BBH")  # command, version, 0
_CTRL_GET_FAMILY, _CTRL_ATTR_FAMILY_ID, _CTRL_ATTR_FAMILY_NAME = 3, 1, 2
_VERSION = 1
_U16, _U32, _BE16, _BE32 = struct.Struct("=H"), struct.Struct("=I"), struct.Struct(">H"), struct.Struct(">I")
_FLAGS = struct.Struct("=II")  # flags, mask
_MASQUERADE, _METHODS = 0, 0x7  # IP_VS_CONN_F_MASQ, IP_VS_CONN_F_FWD_MASK
UNLIKE = -1  # no weight that anybody wants
_HASHED = 0x2  # IP_VS_SVC_F_HASHED: the kernel's own
_ALL = 0xFFFFFFFF
_ADDRESS_BYTES = {AF_INET: 4}


class Command(IntEnum):
    """IPVS_CMD_*."""

    NEW_SERVICE = 1
    SET_SERVICE = 2
    DELETE_SERVICE = 3
    GET_SERVICE = 4
    NEW_BACKEND = 5
    SET_BACKEND = 6
    DELETE_BACKEND = 7
    GET_BACKEND = 8
    SET_CONFIG = 12
    GET_CONFIG = 13
    FLUSH = 17


class _Attr(IntEnum):
    """IPVS_CMD_ATTR_*."""

    SERVICE = 1
    BACKEND = 2
    TCP_TIMEOUT = 4


class _Svc(IntEnum):
    """IPVS_SVC_ATTR_*."""

    FAMILY = 1
    PROTOCOL = 2
    ADDRESS = 3
    PORT = 4
    MARK = 5
    SCHEDULER = 6
    FLAGS = 7
    TIMEOUT = 8
    NETMASK = 9


class _Dest(IntEnum):
    """IPVS_DEST_ATTR_*."""

    ADDRESS = 1
    PORT = 2
    METHOD = 3
    WEIGHT = 4
    UPPER, LOWER = 5, 6
    FAMILY = 11


def ask_family(name: str) -> bytes:
    """Payload that asks the controller for the number of a family; the kernel loads its module."""
    return _GENERIC.pack(_CTRL_GET_FAMILY, 1, 0) + attribute(_CTRL_ATTR_FAMILY_NAME, name.encode() + b"\0")


def family_number(payload: bytes) -> int:
    """The number of a family in the controller's answer."""
    return int(_U16.unpack(attributes(payload, _GENERIC.size)[_CTRL_ATTR_FAMILY_ID])[0])


def command(kind: Command, body: bytes = b"") -> bytes:
    """Payload of a command."""
    return _GENERIC.pack(kind, _VERSION, 0) + body


def of_backends(id_: ServiceId) -> bytes:
    """Payload that asks for the backends of a service."""
    return command(Command.GET_BACKEND, attribute(_Attr.SERVICE, _service_id(id_)))


def set_tcp_timeout(seconds: int) -> bytes:
    """Payload that sets after how long an idle TCP connection ends, for the whole namespace."""
    return command(Command.SET_CONFIG, attribute(_Attr.TCP_TIMEOUT, _U32.pack(seconds)))


def tcp_timeout(payload: bytes) -> int:
    """The time-out in the answer to GET_CONFIG, in seconds."""
    return int(_U32.unpack(attributes(payload, _GENERIC.size)[_Attr.TCP_TIMEOUT])[0])


def encode(operation: Operation) -> bytes:
    """Payload that does it."""
    match operation:
        case PutService(id_, service, new):
            kind = Command.NEW_SERVICE if new else Command.SET_SERVICE
            return command(kind, attribute(_Attr.SERVICE, _service_id(id_) + _settings(id_, service)))
        case DeleteService(id_):
            return command(Command.DELETE_SERVICE, attribute(_Attr.SERVICE, _service_id(id_)))
        case PutBackend(id_, destination, weight, new):
            limits = attribute(_Dest.UPPER, _U32.pack(0)) + attribute(_Dest.LOWER, _U32.pack(0))
            body = attribute(_Dest.METHOD, _U32.pack(_MASQUERADE)) + attribute(_Dest.WEIGHT, _U32.pack(weight))
            return _on_backend(Command.NEW_BACKEND if new else Command.SET_BACKEND, id_, destination, body + limits)
        case DeleteBackend(id_, destination):
            return _on_backend(Command.DELETE_BACKEND, id_, destination, b"")
    raise AssertionError(operation)


def _on_backend(kind: Command, id_: ServiceId, destination: Destination, settings: bytes) -> bytes:
    body = (
        attribute(_Dest.ADDRESS, _address(destination.address))
        + attribute(_Dest.PORT, _BE16.pack(destination.port))
        + attribute(_Dest.FAMILY, _U16.pack(id_.family))
        + settings
    )
    return command(kind, attribute(_Attr.SERVICE, _service_id(id_)) + attribute(_Attr.BACKEND, body))


def _service_id(id_: ServiceId) -> bytes:
    family = attribute(_Svc.FAMILY, _U16.pack(id_.family))
    if id_.mark:
        return family + attribute(_Svc.MARK, _U32.pack(id_.mark))
    return (
        family
        + attribute(_Svc.PROTOCOL, _U16.pack(id_.protocol))
        + attribute(_Svc.ADDRESS, _address(id_.address))
        + attribute(_Svc.PORT, _BE16.pack(id_.port))
    )


def _settings(id_: ServiceId, service: Service) -> bytes:
    """Affinity is by whole client addresses: a mask of all bits, which for IPv6 is a length."""
    netmask = _BE32.pack(_ALL) if id_.family == AF_INET else _U32.pack(128)
    return (
        attribute(_Svc.SCHEDULER, service.scheduler.encode() + b"\0")
        + attribute(_Svc.FLAGS, _FLAGS.pack(service.flags, _ALL))
        + attribute(_Svc.TIMEOUT, _U32.pack(service.affinity_s))
        + attribute(_Svc.NETMASK, netmask)
    )


def _address(packed: bytes) -> bytes:
    """Addresses of both families take the room of the longer (union nf_inet_addr)."""
    return packed + bytes(16 - len(packed))


# --- what comes back --------------------------------------------------------------------------------------------------


def service(payload: bytes) -> tuple[ServiceId, Service]:
    """A service in a dump, without its backends."""
    found = attributes(attributes(payload, _GENERIC.size)[_Attr.SERVICE])
    (family,) = _U16.unpack(found[_Svc.FAMILY])
    flags, _ = _FLAGS.unpack(found[_Svc.FLAGS])
    scheduler = found[_Svc.SCHEDULER].rstrip(b"\0").decode()
    (timeout,) = _U32.unpack(found[_Svc.TIMEOUT])
    settings = Service(scheduler, flags & ~_HASHED, timeout, {})
    if _Svc.MARK in found:
        return ServiceId(family, int(_U32.unpack(found[_Svc.MARK])[0])), settings
    return ServiceId(
        family,
        0,
        int(_U16.unpack(found[_Svc.PROTOCOL])[0]),
        found[_Svc.ADDRESS][: _ADDRESS_BYTES.get(family, 16)],
        int(_BE16.unpack(found[_Svc.PORT])[0]),
    ), settings


def backend(family: int, payload: bytes) -> tuple[Destination, int]:
    """A backend in a dump, with its weight; UNLIKE: it is not as we make them (another forward method)."""
    found = attributes(attributes(payload, _GENERIC.size)[_Attr.BACKEND])
    address = found[_Dest.ADDRESS][: _ADDRESS_BYTES.get(family, 16)]
    destination = Destination(address, int(_BE16.unpack(found[_Dest.PORT])[0]))
    (method,) = _U32.unpack(found[_Dest.METHOD])
    (weight,) = _U32.unpack(found[_Dest.WEIGHT])
    return destination, int(weight) if method & _METHODS == _MASQUERADE else UNLIKE
