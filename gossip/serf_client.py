"""A client of Serf's RPC, for our own agent and for `serf agent`: blocking, one socket, no threads.

The words are those of serf-python (`event`, `force_leave`, `join`, `members`, `stream`, `respond`, ...), which is for
Python 2 only. A command returns its body; streams are iterators, and what they do not read stays in the kernel: a
client that runs several keeps one `SerfClient` for each.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from ipaddress import ip_address
from typing import Any, Self

import msgspec

from gossip import rpc

CONNECT_TIMEOUT_S = 5.0
# Leaving and joining take up to a broadcast's and a stream's time-out; key commands as long as a query.
COMMAND_TIMEOUT_S = 60.0
READ_BYTES = 64 << 10
# A body of the agent's: a cluster of ten thousand members is 3 MB.
BODY_MAX = 64 << 20
DEFAULT_ADDRESS = f"127.0.0.1:{rpc.DEFAULT_PORT}"


class SerfError(Exception):
    """The agent refused a command; the text is its own."""


class SerfConnectionError(SerfError):
    """The agent cannot be reached, or the connection broke."""


class Member(msgspec.Struct, frozen=True):
    """A member as the agent shows it."""

    name: str
    address: str
    port: int
    tags: dict[str, str]
    status: str
    protocol: tuple[int, int, int]  # min, max, current


class KeyReport(msgspec.Struct, frozen=True):
    """What the nodes of a cluster answered about keys. `error` is empty when all did as asked."""

    messages: dict[str, str]
    keys: dict[str, int]
    nodes: int
    responses: int
    errors: int
    error: str


class SerfClient:
    """One connection. Methods raise SerfError."""

    def __init__(self, address: str = DEFAULT_ADDRESS, auth_key: str = "") -> None:
        """`address`: HOST:PORT, [HOST]:PORT, or the path of a unix socket."""
        self.address = address
        self._auth_key = auth_key
        self._socket: socket.socket | None = None
        self._objects = rpc.Objects(BODY_MAX)
        self._seq = 0

    def __enter__(self) -> Self:
        self.connect()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def connect(self) -> None:
        """Connect, shake hands and authenticate."""
        try:
            self._socket = self._open()
        except OSError as error:
            raise SerfConnectionError(f"cannot reach the gossip agent at {self.address}: {error.strerror}") from error
        self._socket.settimeout(COMMAND_TIMEOUT_S)
        self.handshake()
        if self._auth_key:
            self.auth(self._auth_key)

    def close(self) -> None:
        """End the connection."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def set_timeout(self, timeout_s: float | None) -> None:
        """How long a read may take; None: for ever, as streams want it."""
        assert self._socket is not None, "not connected"
        self._socket.settimeout(timeout_s)

    def handshake(self) -> None:
        """Agree on the version."""
        self._call("handshake", {"Version": rpc.VERSION})

    def auth(self, auth_key: str) -> None:
        """Prove that we may."""
        self._call("auth", {"AuthKey": auth_key})

    def event(self, name: str, payload: bytes = b"", coalesce: bool = True) -> None:
        """Send a user event."""
        self._call("event", {"Coalesce": coalesce, "Name": name, "Payload": payload})

    def force_leave(self, node: str, prune: bool = False) -> None:
        """Declare a failed node to have left."""
        self._call("force-leave", {"Node": node, "Prune": prune})

    def join(self, existing: Sequence[str], replay: bool = False) -> int:
        """Join a cluster by the addresses of some of its members; how many were reached."""
        head = self._send("join", {"Existing": list(existing), "Replay": replay})
        body = self._body()
        with self._understood():
            if error := rpc.text(head, "Error"):
                raise SerfError(error)
            return rpc.number(body, "Num", 1 << 31)

    def leave(self) -> None:
        """Make the agent leave and end."""
        self._call("leave")

    def members(self) -> list[Member]:
        """All members."""
        self._call("members")
        return self._members()

    def members_filtered(self, tags: Mapping[str, str] | None = None, status: str = "", name: str = "") -> list[Member]:
        """Members that match all expressions."""
        self._call("members-filtered", {"Name": name, "Status": status, "Tags": dict(tags or {})})
        return self._members()

    def tags(self, tags: Mapping[str, str] | None = None, delete_tags: Sequence[str] = ()) -> None:
        """Change the agent's tags."""
        self._call("tags", {"DeleteTags": list(delete_tags), "Tags": dict(tags or {})})

    def stats(self) -> dict[str, dict[str, str]]:
        """Numbers of the agent, in blocks."""
        self._call("stats")
        body = self._body()
        with self._understood():
            return {name: rpc.pairs(body, name) for name in body}

    def get_coordinate(self, node: str) -> dict[str, Any] | None:
        """A node's coordinate (Vec, Error, Adjustment, Height), or None."""
        self._call("get-coordinate", {"Node": node})
        body = self._body()
        place = body.get("Coord")
        return place if body.get("Ok") and isinstance(place, dict) else None

    def install_key(self, key: str) -> KeyReport:
        """Make a key known to all."""
        return self._keys("install-key", {"Key": key})

    def use_key(self, key: str) -> KeyReport:
        """Encrypt with a key that all know."""
        return self._keys("use-key", {"Key": key})

    def remove_key(self, key: str) -> KeyReport:
        """Make all forget a key."""
        return self._keys("remove-key", {"Key": key})

    def list_keys(self) -> KeyReport:
        """Keys that nodes have."""
        return self._keys("list-keys", None)

    def respond(self, query_id: int, payload: bytes) -> None:
        """Answer a query that a stream brought."""
        self._call("respond", {"ID": query_id, "Payload": payload})

    def stream(self, types: str = "*") -> Iterator[dict[str, Any]]:
        """Records of what happens; see `rpc.parse_event_filters` for `types`."""
        self._call("stream", {"Type": types})
        return self._records()

    def monitor(self, level: str = "DEBUG") -> Iterator[str]:
        """Lines of the agent's log."""
        self._call("monitor", {"LogLevel": level})
        return self._lines()

    def stop(self, seq: int) -> None:
        """End a stream by the number of its request."""
        self._call("stop", {"Stop": seq})

    def query(
        self,
        name: str,
        payload: bytes = b"",
        *,
        nodes: Sequence[str] = (),
        tags: Mapping[str, str] | None = None,
        ack: bool = False,
        relay_factor: int = 0,
        timeout_s: float = 0.0,
    ) -> Iterator[tuple[str, str, bytes]]:
        """Ask, then ("ack" or "response", node, payload) for each that comes, until the time is over."""
        body = {
            "FilterNodes": list(nodes),
            "FilterTags": dict(tags or {}),
            "Name": name,
            "Payload": payload,
            "RelayFactor": relay_factor,
            "RequestAck": ack,
            "Timeout": int(timeout_s * 1e9),
        }
        self._call("query", body)
        return self._answers()

    @property
    def last_seq(self) -> int:
        """Number of the last request."""
        return self._seq

    # The wire

    @contextmanager
    def _understood(self) -> Iterator[None]:
        try:
            yield
        except rpc.RpcError as error:
            raise SerfConnectionError(
                f"the gossip agent at {self.address} does not speak Serf's RPC: {error}"
            ) from error

    def _members(self) -> list[Member]:
        body = self._body()
        with self._understood():
            return [_member(item) for item in rpc.maps(body, "Members")]

    def _lines(self) -> Iterator[str]:
        for record in self._records():
            with self._understood():
                line = rpc.text(record, "Log")
            yield line

    def _answers(self) -> Iterator[tuple[str, str, bytes]]:
        for record in self._records():
            with self._understood():
                answer = rpc.text(record, "Type"), rpc.text(record, "From"), rpc.data(record, "Payload")
            if answer[0] == "done":
                return
            yield answer

    def _records(self) -> Iterator[dict[str, Any]]:
        while True:
            self._check(self._body())
            yield self._body()

    def _keys(self, command: str, body: object) -> KeyReport:
        head = self._send(command, body)
        report = self._body()
        keys = report.get("Keys")
        with self._understood():
            return KeyReport(
                rpc.pairs(report, "Messages"),
                {key: rpc.number(keys, key, 1 << 31) for key in keys} if isinstance(keys, dict) else {},
                rpc.number(report, "NumNodes", 1 << 31),
                rpc.number(report, "NumResp", 1 << 31),
                rpc.number(report, "NumErr", 1 << 31),
                rpc.text(head, "Error"),
            )

    def _call(self, command: str, body: object = None) -> None:
        """Send a command; its body, if one comes, is still to be read."""
        self._check(self._send(command, body))

    def _check(self, head: Mapping[str, Any]) -> None:
        with self._understood():
            error = rpc.text(head, "Error")
        if error:
            raise SerfError(error)

    def _send(self, command: str, body: object) -> dict[str, Any]:
        if self._socket is None:
            raise SerfConnectionError("not connected to a gossip agent")
        self._seq += 1
        head = {"Command": command, "Seq": self._seq}
        try:
            self._socket.sendall(rpc.encode(head) if body is None else rpc.encode(head, body))
        except OSError as error:
            raise SerfConnectionError(f"the gossip agent at {self.address} does not listen any more") from error
        return self._body()

    def _body(self) -> dict[str, Any]:
        try:
            with self._understood():
                while (found := self._objects.next()) is None:
                    assert self._socket is not None, "not connected"
                    got = self._socket.recv(READ_BYTES)
                    if not got:
                        raise SerfConnectionError(f"the gossip agent at {self.address} closed the connection")
                    self._objects.feed(got)
        except TimeoutError as error:
            raise SerfConnectionError(f"the gossip agent at {self.address} does not answer") from error
        except OSError as error:
            raise SerfConnectionError(f"the gossip agent at {self.address} closed the connection") from error
        return found

    def _open(self) -> socket.socket:
        if "/" in self.address:
            door = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            door.settimeout(CONNECT_TIMEOUT_S)
            try:
                door.connect(self.address)
            except OSError:
                door.close()
                raise
            return door
        host, _, port = self.address.rpartition(":")
        if not port.isdecimal():
            raise SerfConnectionError(f'"{self.address}" must be HOST:PORT or the path of a socket')
        return socket.create_connection((host.strip("[]"), int(port)), CONNECT_TIMEOUT_S)


def _member(body: Mapping[str, Any]) -> Member:
    packed = rpc.data(body, "Addr")
    address = ip_address(packed) if len(packed) in (4, 16) else None
    mapped = getattr(address, "ipv4_mapped", None)
    protocol = tuple(rpc.number(body, f"Protocol{which}", 255) for which in ("Min", "Max", "Cur"))
    return Member(
        rpc.text(body, "Name"),
        str(mapped or address or ""),
        rpc.number(body, "Port", 65535),
        rpc.pairs(body, "Tags"),
        rpc.text(body, "Status"),
        (protocol[0], protocol[1], protocol[2]),
    )
