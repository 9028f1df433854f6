"""What the daemon tells the serving process: a plan as differences, and what it hears back. Pure.

Messages are MessagePack with their length in four bytes in front. Sockets travel beside `AddListener` (SCM_RIGHTS): one
for UDP, one for TCP. The first `Commit` makes a new process begin to serve; each is answered with `Applied`.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from ipaddress import ip_address, ip_network

import msgspec

from dns.plan import Address, DnsPlan, NetworkNames, ServiceNames, TaskNames

# A service of RECORDS_MAX tasks is a tenth of that. A longer one is a mistake, and the connection is given up.
MESSAGE_MAX = 8 * 1024 * 1024
TASKS_MAX = 20_000  # of one service; at 100 bytes each a quarter of a message. The rest would not fit any answer.
NODES_PER_MESSAGE = 1000
HOMES_PER_MESSAGE = 1000

_LENGTH = struct.Struct("!I")


class _Message(msgspec.Struct, frozen=True, array_like=True, tag=True, gc=False):
    """Common to all."""


class Task(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """`TaskNames` with addresses as text."""

    id: str
    slot: int
    hostname: str
    aliases: tuple[str, ...]
    addresses: tuple[str, ...]
    ready: bool
    local: bool


class SetNetwork(_Message, frozen=True):
    """A network. A new one, or one with another name, has no services yet; otherwise they stay."""

    id: str
    name: str
    gateway: str
    subnets: tuple[str, ...]


class DropNetwork(_Message, frozen=True):
    id: str


class PutService(_Message, frozen=True):
    """A service on a network, as it is now."""

    network_id: str
    name: str
    aliases: tuple[str, ...]
    vips: tuple[str, ...]
    tasks: tuple[Task, ...]
    ttl_s: int
    ports: tuple[tuple[str, str, int], ...]
    local_first: bool


class DropService(_Message, frozen=True):
    network_id: str
    name: str


class PutNodes(_Message, frozen=True):
    nodes: dict[str, str]


class DropNodes(_Message, frozen=True):
    names: tuple[str, ...]


class PutHomes(_Message, frozen=True):
    """Tasks on several networks: (network asked on, address, their networks)."""

    homes: tuple[tuple[str, str, tuple[str, ...]], ...]


class DropHomes(_Message, frozen=True):
    homes: tuple[tuple[str, str], ...]


class SetUpstreams(_Message, frozen=True):
    """Who is asked for names of others: (address, port, scope), in order."""

    servers: tuple[tuple[str, int, str], ...]


class AddListener(_Message, frozen=True):
    """Serve a network's view (None: the host's) on the two sockets that come with this."""

    number: int
    network_id: str | None
    address: str
    port: int
    host: bool  # in the host's namespace: not to be asked as an upstream


class DropListener(_Message, frozen=True):
    number: int


class Commit(_Message, frozen=True):
    number: int


class Applied(_Message, frozen=True):
    """Everything up to this commit is served."""

    number: int


class Stats(_Message, frozen=True):
    """Numbers for metrics, and a sign of life."""

    counters: dict[str, int]  # since the process began
    levels: dict[str, int]  # as of now
    upstreams: tuple[str, ...]


Change = SetNetwork | DropNetwork | PutService | DropService | PutNodes | DropNodes | PutHomes | DropHomes
ToServer = Change | SetUpstreams | AddListener | DropListener | Commit
FromServer = Applied | Stats

_encoder = msgspec.msgpack.Encoder()
_to_server: msgspec.msgpack.Decoder[ToServer] = msgspec.msgpack.Decoder(ToServer)
_from_server: msgspec.msgpack.Decoder[FromServer] = msgspec.msgpack.Decoder(FromServer)


class FeedError(Exception):
    """The other side sent what it must not: a bug, not a bad peer. The process is to be started anew."""


def encode(message: ToServer | FromServer) -> bytes:
    """A message with its length. Raises FeedError when it is too long."""
    data = _encoder.encode(message)
    if len(data) > MESSAGE_MAX:
        raise FeedError(f"a message of {len(data)} bytes")
    return _LENGTH.pack(len(data)) + data


class Frames:
    """Bytes in, messages' bytes out."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._at = 0

    def feed(self, data: bytes) -> None:
        self._buffer += data

    def __len__(self) -> int:
        return len(self._buffer) - self._at

    def next(self) -> bytes | None:
        """The next message, when it is complete."""
        if len(self) < _LENGTH.size:
            return None
        (length,) = _LENGTH.unpack_from(self._buffer, self._at)
        if length > MESSAGE_MAX:
            raise FeedError(f"a message of {length} bytes")
        if len(self) < _LENGTH.size + length:
            return None
        start = self._at + _LENGTH.size
        data = bytes(self._buffer[start : start + length])
        self._at = start + length
        if self._at == len(self._buffer) or self._at > 1 << 20:  # not at each message: that would be quadratic
            del self._buffer[: self._at]
            self._at = 0
        return data


def decode_to_server(data: bytes) -> ToServer:
    """Raises FeedError."""
    try:
        return _to_server.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise FeedError(str(error)) from error


def decode_from_server(data: bytes) -> FromServer:
    """Raises FeedError."""
    try:
        return _from_server.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise FeedError(str(error)) from error


# --- differences --------------------------------------------------------------------------------------------------


def changes(old: DnsPlan, new: DnsPlan) -> Iterator[Change]:
    """What turns one plan into the other, listeners aside: those are sockets, and the shell's business.

    What is new comes before what goes: a service that moves from one name to another is never without.
    """
    networks = {n.id: n for n in old.networks}
    for network in new.networks:
        yield from _network_changes(networks.get(network.id), network)
    kept = {n.id for n in new.networks}
    yield from (DropNetwork(n) for n in networks if n not in kept)
    yield from _node_changes(old.nodes, new.nodes)
    yield from _home_changes(old.multihomed, new.multihomed)


def _network_changes(old: NetworkNames | None, new: NetworkNames) -> Iterator[Change]:
    if old is new:
        return
    if old is None or (old.name, old.gateway, old.subnets) != (new.name, new.gateway, new.subnets):
        yield SetNetwork(new.id, new.name, str(new.gateway), tuple(map(str, new.subnets)))
    known = {s.name: s for s in old.services} if old is not None and old.name == new.name else {}
    for service in new.services:
        before = known.pop(service.name, None)
        if before is not service and before != service:
            yield _put(new.id, service)
    yield from (DropService(new.id, name) for name in known)


def _put(network_id: str, service: ServiceNames) -> PutService:
    return PutService(
        network_id,
        service.name,
        service.aliases,
        _text(service.vips),
        tuple(
            Task(t.id, t.slot, t.hostname, t.aliases, _text(t.addresses), t.ready, t.local)
            for t in service.tasks[:TASKS_MAX]
        ),
        service.ttl_s,
        service.ports,
        service.local_first,
    )


def _text(addresses: tuple[Address, ...]) -> tuple[str, ...]:
    return tuple(map(str, addresses))


def _node_changes(old: Mapping[str, Address], new: Mapping[str, Address]) -> Iterator[Change]:
    if old == new:
        return
    put = [(name, str(address)) for name, address in new.items() if old.get(name) != address]
    for i in range(0, len(put), NODES_PER_MESSAGE):
        yield PutNodes(dict(put[i : i + NODES_PER_MESSAGE]))
    gone = [name for name in old if name not in new]
    for i in range(0, len(gone), NODES_PER_MESSAGE):
        yield DropNodes(tuple(gone[i : i + NODES_PER_MESSAGE]))


Homes = Mapping[tuple[str, Address], tuple[str, ...]]


def _home_changes(old: Homes, new: Homes) -> Iterator[Change]:
    if old == new:
        return
    put = [(n, str(address), homes) for (n, address), homes in new.items() if old.get((n, address)) != homes]
    for i in range(0, len(put), HOMES_PER_MESSAGE):
        yield PutHomes(tuple(put[i : i + HOMES_PER_MESSAGE]))
    gone = [(n, str(address)) for n, address in old if (n, address) not in new]
    for i in range(0, len(gone), HOMES_PER_MESSAGE):
        yield DropHomes(tuple(gone[i : i + HOMES_PER_MESSAGE]))


# --- back to values -----------------------------------------------------------------------------------------------


def network_of(message: SetNetwork) -> NetworkNames:
    """The network without services. Raises ValueError on what is no address."""
    subnets = tuple(ip_network(one) for one in message.subnets)
    return NetworkNames(message.id, message.name, ip_address(message.gateway), (), subnets)


def service_of(message: PutService) -> ServiceNames:
    """Raises ValueError on what is no address."""
    return ServiceNames(
        name=message.name,
        aliases=message.aliases,
        vips=tuple(map(ip_address, message.vips)),
        tasks=tuple(
            TaskNames(t.id, t.slot, t.hostname, t.aliases, tuple(map(ip_address, t.addresses)), t.ready, t.local)
            for t in message.tasks
        ),
        ttl_s=message.ttl_s,
        ports=message.ports,
        local_first=message.local_first,
    )
