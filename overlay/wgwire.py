"""WireGuard's two languages for its settings <-> values: generic netlink of the kernel, text of the program. Pure.

Netlink as linux/wireguard.h has it, in the few attributes that are needed; the text is the "cross-platform userspace
implementation" protocol of wireguard.com/xplatform. The kernel and the program are trusted to be well-formed; what is
not known is passed over.
"""

from __future__ import annotations

import base64
import struct
from collections.abc import Callable, Iterator
from dataclasses import replace
from ipaddress import ip_address, ip_network

from overlay.tunnels import WgChange, WgDevice, WgPeer

FAMILY = "wireguard"
CONTROLLER, _GET_FAMILY, _FAMILY_ID, _FAMILY_NAME = 0x10, 3, 1, 2  # of generic netlink itself
_GET_DEVICE, _SET_DEVICE, _VERSION = 0, 1, 1
_IFNAME, _PRIVATE, _PUBLIC, _PORT, _PEERS = 2, 3, 4, 6, 8
_PEER_PUBLIC, _PEER_FLAGS, _ENDPOINT, _KEEPALIVE, _HANDSHAKE, _ALLOWED = 1, 3, 4, 5, 6, 9
_ALLOWED_FAMILY, _ALLOWED_ADDRESS, _ALLOWED_MASK = 1, 2, 3
_REMOVE, _REPLACE_ALLOWED = 0x1, 0x2
_AF_INET, _AF_INET6 = 2, 10

HEADER = struct.Struct("=IHHII")  # length, type, flags, sequence, port
_GENERIC = struct.Struct("=BBH")
_ATTRIBUTE = struct.Struct("=HH")
_NESTED, _KIND = 0x8000, 0x3FFF
_REQUEST, _ACK, _DUMP = 0x1, 0x4, 0x300
_SOCKADDR, _SOCKADDR6 = struct.Struct("=H2s4s8x"), struct.Struct("=H2sI16sI")

Attributes = list[tuple[int, bytes]]
Request = Callable[[int], bytes]  # made when the number of the family is known


# --- netlink ------------------------------------------------------------------------------------------------------


def ask_family(sequence: int) -> bytes:
    """A request for the number of the family, which loads the module if there is one."""
    return _message(
        CONTROLLER, _REQUEST | _ACK, sequence, _GET_FAMILY, _attribute(_FAMILY_NAME, FAMILY.encode() + b"\0")
    )


def family_of(payload: bytes) -> int | None:
    """The answer; None when the number is not in this message."""
    found = dict(attributes(payload[_GENERIC.size :])).get(_FAMILY_ID)
    return struct.unpack("=H", found)[0] if found else None


def ask_device(family: int, sequence: int, name: str) -> bytes:
    """A request for all of a device."""
    return _message(family, _REQUEST | _ACK | _DUMP, sequence, _GET_DEVICE, _attribute(_IFNAME, name.encode() + b"\0"))


def set_device(family: int, sequence: int, name: str, private: str, port: int) -> bytes:
    """A request for a key and a port."""
    body = _attribute(_PRIVATE, base64.b64decode(private)) + _attribute(_PORT, struct.pack("=H", port))
    return _message(family, _REQUEST | _ACK, sequence, _SET_DEVICE, _attribute(_IFNAME, name.encode() + b"\0") + body)


def set_peer(family: int, sequence: int, name: str, change: WgChange) -> bytes:
    """A request for one peer."""
    peer = _attribute(_PEER_PUBLIC, base64.b64decode(change.public))
    if change.endpoint is not None:
        peer += _attribute(_ENDPOINT, _endpoint(*change.endpoint))
    if change.keepalive_s is not None:
        peer += _attribute(_KEEPALIVE, struct.pack("=H", change.keepalive_s))
    if change.allowed is not None:
        peer += _attribute(_PEER_FLAGS, struct.pack("=I", _REPLACE_ALLOWED))
        peer += _nested(_ALLOWED, b"".join(_nested(0, _allowed(prefix)) for prefix in sorted(change.allowed)))
    return _peer_request(family, sequence, name, peer)


def remove_peer(family: int, sequence: int, name: str, public: str) -> bytes:
    """A request that ends a peer."""
    peer = _attribute(_PEER_PUBLIC, base64.b64decode(public)) + _attribute(_PEER_FLAGS, struct.pack("=I", _REMOVE))
    return _peer_request(family, sequence, name, peer)


def device_of(payloads: list[bytes]) -> WgDevice:
    """The answer to `ask_device`: the messages of a dump, in which a peer may go on in the next one."""
    public, port, peers = "", 0, dict[str, WgPeer]()
    for payload in payloads:
        for kind, value in attributes(payload[_GENERIC.size :]):
            if kind == _PUBLIC:
                public = _base64(value)
            elif kind == _PORT:
                port = struct.unpack("=H", value)[0]
            elif kind == _PEERS:
                for _, one in attributes(value):
                    name, peer = _peer(attributes(one))
                    before = peers.get(name)
                    peers[name] = peer if before is None else replace(before, allowed=before.allowed | peer.allowed)
    return WgDevice(public, port, peers)


def attributes(data: bytes) -> Attributes:
    """Attributes in their order, of which one kind may come several times."""
    return list(_attributes(data))


def _attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at + _ATTRIBUTE.size <= len(data):
        length, kind = _ATTRIBUTE.unpack_from(data, at)
        if length < _ATTRIBUTE.size:
            return
        yield kind & _KIND, data[at + _ATTRIBUTE.size : at + length]
        at += (length + 3) & ~3


def _peer(found: Attributes) -> tuple[str, WgPeer]:
    held = dict(found)
    handshake = held.get(_HANDSHAKE, b"")
    allowed = [dict(attributes(one)) for _, one in attributes(held.get(_ALLOWED, b""))]
    return _base64(held[_PEER_PUBLIC]), WgPeer(
        _endpoint_of(held.get(_ENDPOINT, b"")),
        frozenset(f"{ip_address(one[_ALLOWED_ADDRESS])}/{one[_ALLOWED_MASK][0]}" for one in allowed),
        struct.unpack("=H", held.get(_KEEPALIVE, b"\0\0"))[0],
        struct.unpack_from("=q", handshake)[0] if len(handshake) >= 8 else 0,
    )


def _endpoint(address: str, port: int) -> bytes:
    packed = ip_address(address).packed
    if len(packed) == 4:
        return _SOCKADDR.pack(_AF_INET, struct.pack(">H", port), packed)
    return _SOCKADDR6.pack(_AF_INET6, struct.pack(">H", port), 0, packed, 0)


def _endpoint_of(data: bytes) -> tuple[str, int] | None:
    if len(data) < _SOCKADDR.size:
        return None
    address = data[8:24] if len(data) >= _SOCKADDR6.size else data[4:8]
    return str(ip_address(address)), int.from_bytes(data[2:4], "big")


def _allowed(prefix: str) -> bytes:
    network = ip_network(prefix)
    family = _AF_INET if network.version == 4 else _AF_INET6
    return (
        _attribute(_ALLOWED_FAMILY, struct.pack("=H", family))
        + _attribute(_ALLOWED_ADDRESS, network.network_address.packed)
        + _attribute(_ALLOWED_MASK, bytes([network.prefixlen]))
    )


def _peer_request(family: int, sequence: int, name: str, peer: bytes) -> bytes:
    body = _attribute(_IFNAME, name.encode() + b"\0") + _nested(_PEERS, _nested(0, peer))
    return _message(family, _REQUEST | _ACK, sequence, _SET_DEVICE, body)


def _message(kind: int, flags: int, sequence: int, command: int, body: bytes) -> bytes:
    payload = _GENERIC.pack(command, _VERSION, 0) + body
    return HEADER.pack(HEADER.size + len(payload), kind, flags, sequence, 0) + payload


def _attribute(kind: int, value: bytes) -> bytes:
    return _ATTRIBUTE.pack(_ATTRIBUTE.size + len(value), kind) + value + b"\0" * (-len(value) % 4)


def _nested(kind: int, value: bytes) -> bytes:
    return _attribute(kind | _NESTED, value)


def _base64(raw: bytes) -> str:
    return base64.b64encode(raw).decode()


# --- text ---------------------------------------------------------------------------------------------------------

GET = "get=1\n\n"


def set_text(private: str, port: int) -> str:
    """A request for a key and a port."""
    return f"set=1\nprivate_key={_hex(private)}\nlisten_port={port}\n\n"


def peer_text(change: WgChange) -> str:
    """A request for one peer."""
    lines = ["set=1", f"public_key={_hex(change.public)}"]
    if change.endpoint is not None:
        address, port = change.endpoint
        lines.append(f"endpoint=[{address}]:{port}" if ":" in address else f"endpoint={address}:{port}")
    if change.keepalive_s is not None:
        lines.append(f"persistent_keepalive_interval={change.keepalive_s}")
    if change.allowed is not None:
        lines += ["replace_allowed_ips=true", *(f"allowed_ip={prefix}" for prefix in sorted(change.allowed))]
    return "\n".join(lines) + "\n\n"


def removal_text(public: str) -> str:
    """A request that ends a peer."""
    return f"set=1\npublic_key={_hex(public)}\nremove=true\n\n"


def error_of(text: str) -> int:
    """The error number of an answer, 0 for none. Raises ValueError when it is not whole."""
    for line in text.splitlines():
        if line.startswith("errno="):
            return abs(int(line.removeprefix("errno=")))
    raise ValueError("the answer has no end")


def device_text(text: str) -> tuple[str, int, dict[str, WgPeer]]:
    """The answer to `GET`: the private key (base64, "" for none), the port, the peers."""
    private, port, peers, public = "", 0, dict[str, WgPeer](), ""
    for line in text.splitlines():
        name, _, value = line.partition("=")
        if name == "private_key":
            private = _base64(bytes.fromhex(value))
        elif name == "listen_port":
            port = int(value)
        elif name == "public_key":
            public = _base64(bytes.fromhex(value))
            peers[public] = WgPeer(None, frozenset())
        elif public:
            peers[public] = _with_line(peers[public], name, value)
    return private, port, peers


def _with_line(peer: WgPeer, name: str, value: str) -> WgPeer:
    match name:
        case "endpoint":
            address, _, port = value.rpartition(":")
            return replace(peer, endpoint=(address.strip("[]"), int(port)))
        case "allowed_ip":
            return replace(peer, allowed=peer.allowed | {value})
        case "persistent_keepalive_interval":
            return replace(peer, keepalive_s=int(value))
        case "last_handshake_time_sec":
            return replace(peer, handshake_s=int(value))
        case _:
            return peer


def _hex(key: str) -> str:
    return base64.b64decode(key).hex()
