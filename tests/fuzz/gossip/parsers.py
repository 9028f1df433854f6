"""Fuzz each parser on its own: `python -m tests.fuzz.gossip.parsers SECONDS [SEED] [PARSER...]` counts inputs of each.

Every parser is given right bytes, bent ones and junk, and may do two things: give a value, or raise the one error it
names. Anything else stops the run with the parser, the round and the input in hex. What grows with the input (numbers
of 4 GiB, bombs) is held to a bound of memory by `LIMIT_BYTES`, and to one of time by `SLOW_S`.
"""

from __future__ import annotations

import contextlib
import random
import resource
import sys
import time
from collections import Counter
from collections.abc import Callable

from gossip import lzw, rpc
from gossip.agent_config import AgentConfig, AgentConfigError, parse_file
from gossip.endpoints import EndpointTable, Health, Snapshot, TaskState, _ask, _delta_message, _parts
from gossip.keyring import DecryptError, KeyRing
from gossip.packet import DECOMPRESSED_MAX, Envelope, open_packet
from gossip.serf import messages as serf
from gossip.serf.keys import KeyCount, KeyTextError, parse_key
from gossip.serf.messages import decode_coordinate, decode_filter, decode_tags
from gossip.serf.pack import BadMessage
from gossip.serf.pattern import PatternError, compile_pattern
from gossip.serf_client import SerfClient, SerfError
from gossip.snapshot import parse
from gossip.stream import PAYLOAD_MAX, Reader
from gossip.wire import WireError, decode, encode
from tests.fuzz.gossip.inputs import KEY, Inputs

ROUND = 1000  # inputs of one parser, then the next one has its turn
SLOW_S = 0.5  # of the processor's time for one input
LIMIT_BYTES = 1 << 30  # of address space: an allocation by a length of 4 GiB fails the run

Parser = Callable[[bytes], None]
Maker = Callable[[Inputs], bytes]


def _raises(*errors: type[Exception]) -> Callable[[Callable[[bytes], object]], Parser]:
    def wrap(call: Callable[[bytes], object]) -> Parser:
        def parse_one(data: bytes) -> None:
            with contextlib.suppress(*errors):
                call(data)

        return parse_one

    return wrap


_PLAIN = Envelope(KeyRing([], random.Random(1).randbytes), b"")
_SEALED = Envelope(KeyRing([KEY], random.Random(1).randbytes), b"label")


def _stream(envelope: Envelope) -> Callable[[bytes], object]:
    def read(data: bytes) -> object:
        reader = Reader(envelope)
        step = 1 + len(data) // 3
        for at in range(0, len(data), step):
            if reader.feed(data[at : at + step]):
                return reader.message()
            assert reader.size <= PAYLOAD_MAX + 70000
        return None

    return read


def _endpoints(data: bytes) -> None:
    table = _endpoints.table  # type: ignore[attr-defined]  # one table for many inputs, as a node has
    table.receive(data, 1.0)
    table.drain()
    assert len(table._partial) <= 256
    if len(table._owners) > 500:
        _fresh_table()


def _fresh_table() -> None:
    table = EndpointTable("me", 5, random.Random(1), 0.0)
    table.set_local({"task": TaskState()})
    table.set_peers(["n1", "n2"], 0.0)
    _endpoints.table = table  # type: ignore[attr-defined]


def _rpc(data: bytes) -> None:
    requests = rpc.Requests()
    requests.feed(data)
    while (request := requests.next()) is not None:
        for name in ("Name", "Node", "Key", "Type", "LogLevel"):
            rpc.text(request.body, name)
        rpc.data(request.body, "Payload")
        rpc.texts(request.body, "Existing")
        rpc.pairs(request.body, "Tags")
        rpc.number(request.body, "ID", 1 << 63)
        rpc.parse_event_filters(rpc.text(request.body, "Type"))


class _Said:
    """A socket that has said something and says no more."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def sendall(self, data: bytes) -> None:
        del data

    def recv(self, size: int) -> bytes:
        data, self._data = self._data[:size], self._data[size:]
        return data

    def close(self) -> None:
        self._data = b""


def _client(data: bytes) -> None:
    for call in (SerfClient.members, SerfClient.stats, SerfClient.list_keys, lambda c: list(c.query("q"))):
        client = SerfClient("127.0.0.1:1")
        client._socket = _Said(data)  # type: ignore[assignment]
        with contextlib.suppress(SerfError):
            call(client)


def _text(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape")


def _expression(data: bytes) -> None:
    compile_pattern(_text(data[:80])).search("web-01.example" * 3)


def _lzw(data: bytes) -> None:
    assert len(lzw.decompress(data, DECOMPRESSED_MAX)) <= DECOMPRESSED_MAX


_EXPRESSIONS = (b"^web-[0-9]+$", b"(a|b)*c{2,5}", b"(?i)x[^a-f\\d]?\\.", b"((a*)*)*b", b"\\bweb\\B.*", b"a{0,999}")
_LINES = (b"alive: n1 127.0.0.1:7946\n", b"not-alive: n1\n", b"clock: 12\nevent-clock: 7\n", b"leave\n", b"#x\n")
_SETTINGS = (
    b'{"node_name": "a", "bind": "127.0.0.1:7946", "tags": {"a": "b"}, "role": "x", "rejoin_after_leave": true}',
    b'{"start_join": ["a", "b:1"], "encrypt_key": "a2tra2tra2tra2tra2tra2s=", "profile": "wan", "retry_max": 3}',
    b'{"reconnect_timeout": "1h3m", "rpc_addr": "[::1]:7373", "log_level": "debug", "event_handlers": []}',
)


def _ignore(value: object) -> None:
    del value


def _serf(inputs: Inputs) -> bytes:
    pick, clock, name = inputs.random, inputs.random.choice((0, 1, 2**32, 2**64 - 1)), inputs.name()
    makers: list[Callable[[], bytes]] = [
        inputs.user,
        lambda: serf.encode(serf.Query(clock, 7, inputs.address(), name, (b"\0\x90",), 1, 2, 10**9, "q", b"p")),
        lambda: serf.encode(serf.QueryResponse(clock, 7, name, pick.choice((0, 1)), inputs.some_bytes(40))),
        lambda: serf.encode(serf.KeyResponse(True, "m", ("k",), "k")),
        lambda: serf.encode(serf.KeyRequest(inputs.some_bytes(32))),
        lambda: serf.encode(serf.PushPull(clock, {name: clock}, (name,), clock, ((clock, ((name, b"x"),)),), clock)),
    ]
    return pick.choice(makers)()


def _endpoint_message(inputs: Inputs) -> bytes:
    tasks = {inputs.random.randbytes(8): TaskState(inputs.random.choice(list(Health)), 100) for _ in range(3)}
    owner = inputs.random.choice(("me", "n1", "n2", "n3", f"x{inputs.random.randrange(600)}"))
    epoch, version = inputs.random.choice((0, 5, 1 << 62, (1 << 64) - 1)), inputs.random.randrange(4)
    before, after = Snapshot(owner, epoch, 0, {}), Snapshot(owner, epoch, version, tasks)
    makers: list[Callable[[], bytes]] = [
        lambda: _parts(after)[0],
        lambda: _delta_message(before, after),
        lambda: _ask("n1", [owner, "me"]),
        _endpoints.table._sums_message,  # type: ignore[attr-defined]
        lambda: bytes((0xE4,)) + inputs.some_bytes(120),
    ]
    return inputs.random.choice(makers)()


def _request(inputs: Inputs) -> bytes:
    command = inputs.random.choice([*rpc.COMMANDS, "nothing"])
    body = {
        "Type": "member-join,user:deploy,query:*,*", "Tags": {"a": "b"}, "Name": "n", "ID": 7, "Members": [{"Name": 1}],
        "Payload": b"x", "Existing": ["a"], "Keys": {"k": 1}, "Messages": {"n": "m"}, "Error": "", "Seq": 1,
    }  # fmt: skip
    chosen = {key: body[key] for key in inputs.random.sample(sorted(body), inputs.random.randrange(len(body)))}
    return rpc.encode({"Command": command, "Seq": inputs.number(), "Error": ""}, chosen) * inputs.random.choice((1, 3))


PARSERS: dict[str, tuple[Parser, Maker]] = {
    "packet": (_raises(WireError, DecryptError)(lambda d: open_packet(d, _PLAIN)), lambda i: i.packet(i.plain)),
    "packet, sealed": (
        _raises(WireError, DecryptError)(lambda d: open_packet(d, _SEALED)),
        lambda i: i.packet(i.sealed),
    ),
    "message": (_raises(WireError)(decode), lambda i: encode(i.message())),
    "stream": (_raises(WireError)(_stream(_PLAIN)), lambda i: i.stream(i.plain)),
    "stream, sealed": (_raises(WireError)(_stream(_SEALED)), lambda i: i.stream(i.sealed)),
    "lzw": (_raises(lzw.LzwError)(_lzw), lambda i: lzw.compress(i.some_bytes(300) * i.random.choice((1, 9)))),
    "key ring": (
        _raises(DecryptError)(lambda d: _SEALED.keys.open(d, b"label")),
        lambda i: _SEALED.keys.seal(i.some_bytes(200), b"label"),
    ),
    "serf message": (_raises(BadMessage)(serf.decode), _serf),
    "tags": (lambda d: _ignore(decode_tags(d)), lambda i: serf.encode_tags({i.name(): i.name()})),
    "coordinate": (_raises(BadMessage)(decode_coordinate), lambda i: b"\x01" + i.map()),
    "filter": (_raises(BadMessage)(decode_filter), lambda i: i.random.choice((b"\0", b"\1")) + i.map()),
    "key answer": (lambda d: _ignore(KeyCount(5).add("n1", d)), _serf),
    "key text": (_raises(KeyTextError)(lambda d: parse_key(_text(d))), lambda i: b"a2tra2tra2tra2tra2tra2s="),
    "expression": (_raises(PatternError)(_expression), lambda i: i.random.choice(_EXPRESSIONS)),
    "endpoints": (_endpoints, _endpoint_message),
    "snapshot": (lambda d: _ignore(parse(_text(d), rejoin_after_leave=False)), lambda i: i.random.choice(_LINES) * 3),
    "rpc request": (_raises(rpc.RpcError)(_rpc), _request),
    "rpc answer": (_client, _request),
    "settings": (
        _raises(AgentConfigError)(lambda d: parse_file(_text(d), "file", AgentConfig())),
        lambda i: i.random.choice(_SETTINGS),
    ),
}


def fuzz_parser(name: str, seed: int, number: int, count: int = ROUND) -> int:
    """So many inputs for one parser; how many were slow. AssertionError or whatever else is a fault."""
    parser, make = PARSERS[name]
    source = random.Random(f"{seed}/{name}/{number}")
    inputs, slow = Inputs(source, b"label" if "sealed" in name else b""), 0
    _fresh_table()
    base = make(inputs)
    for index in range(count):
        if index % 20 == 0:
            base = make(inputs)
        roll = source.random()
        data = base if index % 20 == 0 else inputs.bend(base) if roll < 0.95 else source.randbytes(int(roll * 100))
        began = time.process_time()
        try:
            parser(data)
        except BaseException:
            sys.stderr.write(f"fault: {name}, seed {seed}, round {number}, input {index}: {data.hex()}\n")
            raise
        slow += time.process_time() - began > SLOW_S
    return slow


def main() -> None:
    seconds, seed = float(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 1
    names = sys.argv[3:] or list(PARSERS)
    resource.setrlimit(resource.RLIMIT_AS, (LIMIT_BYTES, LIMIT_BYTES))
    until, number, counts = time.monotonic() + seconds, 0, Counter[str]()
    while time.monotonic() < until:
        for name in names:
            counts["slow"] += fuzz_parser(name, seed, number)
            counts[name] += ROUND
        number += 1
        if number % 50 == 0:
            print(f"round {number}: {sum(counts.values()) - counts['slow']}", flush=True)
    for name in names:
        print(f"| {name} | {counts[name]} |")
    print(f"{sum(counts.values()) - counts['slow']} inputs, {counts['slow']} slow")


if __name__ == "__main__":
    main()
