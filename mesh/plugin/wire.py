"""What an engine asks of a network and IPAM plugin, and what it is answered: JSON, decoded and made. Pure.

Docker's plugin protocol (libnetwork `drivers/remote/api`, `ipams/remote/api`). Engines leave fields out, send null for
empty ones, and add new ones: all that is not needed here is ignored. An error is `{"Err": …}` for the network driver
and `{"Error": …}` for IPAM; its text reaches the user's terminal.
"""

from __future__ import annotations

from typing import Any, TypeVar

import msgspec

from control.model import Network

GENERIC = "com.docker.network.generic"
PORT_MAP = "com.docker.network.portmap"
INTERNAL = "com.docker.network.internal"
ADDRESS_TYPE, GATEWAY_TYPE = "RequestAddressType", "com.docker.network.gateway"
LOCAL_SPACE, GLOBAL_SPACE = "mesh-local", "mesh-global"
PROTOCOLS = {6: "tcp", 17: "udp", 132: "sctp"}


class WireError(Exception):
    """The engine sent something that makes no sense. One sentence."""


class Message(msgspec.Struct, rename="pascal", frozen=True):
    """Base of what is asked: fields are named as in the protocol."""


class RequestPool(Message, frozen=True):
    pool: str = ""
    options: dict[str, Any] | None = None
    v6: bool = msgspec.field(default=False, name="V6")


class RequestAddress(Message, frozen=True):
    pool_id: str = msgspec.field(name="PoolID")
    address: str = ""
    options: dict[str, Any] | None = None


class ReleaseAddress(Message, frozen=True):
    pool_id: str = msgspec.field(name="PoolID")
    address: str = ""


class PoolData(Message, frozen=True):
    pool: str = ""


class CreateNetwork(Message, frozen=True):
    network_id: str = msgspec.field(name="NetworkID")
    options: dict[str, Any] | None = None
    ipv4_data: list[PoolData] | None = msgspec.field(default=None, name="IPv4Data")

    def label(self, name: str) -> str:
        """A driver option (`-o mesh.name=web`), "" if it is not there."""
        generic = (self.options or {}).get(GENERIC)
        return str(generic.get(name, "")) if isinstance(generic, dict) else ""


class OfNetwork(Message, frozen=True):
    network_id: str = msgspec.field(name="NetworkID")


class Interface(Message, frozen=True):
    address: str = ""


class OfEndpoint(Message, frozen=True):
    """CreateEndpoint, Join, Leave, DeleteEndpoint, Program- and RevokeExternalConnectivity, EndpointOperInfo."""

    network_id: str = msgspec.field(name="NetworkID")
    endpoint_id: str = msgspec.field(name="EndpointID")
    interface: Interface | None = None
    sandbox_key: str = ""
    options: dict[str, Any] | None = None

    def labels(self) -> dict[str, str]:
        """The options of ours: `--network name=web,driver-opt=mesh.service=api`."""
        return {k: str(v) for k, v in (self.options or {}).items() if k.startswith("mesh.")}


class PortMapping(msgspec.Struct, frozen=True):
    """`-p 127.0.0.1:8080:80`. `published` 0: the engine is to choose one."""

    protocol: str
    target: int
    published: int
    address: str = ""


class _Binding(Message, frozen=True):
    proto: int = 6
    port: int = 0
    host_port: int = 0
    host_ip: str = msgspec.field(default="", name="HostIP")


T = TypeVar("T", bound=Message)


def read(data: bytes, cls: type[T]) -> T:
    """A request. Raises WireError."""
    try:
        return msgspec.json.decode(data or b"{}", type=cls)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise WireError(f"unreadable {cls.__name__}: {error}") from error


def port_mappings(options: dict[str, Any] | None) -> tuple[PortMapping, ...]:
    """The ports that `-p` asks for. Raises WireError."""
    try:
        found = msgspec.convert((options or {}).get(PORT_MAP) or [], type=list[_Binding])
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise WireError(f"unreadable port map: {error}") from error
    return tuple(
        PortMapping(
            PROTOCOLS.get(b.proto, ""), b.port, b.host_port, "" if b.host_ip in ("0.0.0.0", "::") else b.host_ip
        )
        for b in found
    )


# Kinds of routes in an answer to Join.
BY_GATEWAY, CONNECTED = 0, 1


def endpoint_answer(address6: str) -> dict[str, Any]:
    """The IPv4 address is Docker's already; the IPv6 one it takes from here. "" where there is none.

    It is alone on its link: everything else of the network is behind the gateway.
    """
    return {"Interface": {"AddressIPv6": f"{address6}/128"} if address6 else {}}


def join_answer(device: str, network: Network) -> dict[str, Any]:
    """Docker moves the device into the container, names it, and sets its addresses and routes."""
    internal, gateway6 = network.spec.internal, network.gateway6
    answer: dict[str, Any] = {
        "InterfaceName": {"SrcName": device, "DstPrefix": "eth"},
        "Gateway": "" if internal else network.gateway,
        "DisableGatewayService": True,
    }
    if gateway6:
        answer["GatewayIPv6"] = "" if internal else gateway6
        answer["StaticRoutes"] = [
            {"Destination": f"{gateway6}/128", "RouteType": CONNECTED},
            {"Destination": network.subnet6, "RouteType": BY_GATEWAY, "NextHop": gateway6},
        ]
    return answer


def failure(method: str, sentence: str) -> bytes:
    """An error as the method's side of the engine reads it."""
    key = "Error" if method.startswith("/IpamDriver.") else "Err"
    return msgspec.json.encode({key: sentence})
