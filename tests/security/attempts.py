"""The attempts at each port, and the program that makes them; see `attacker`."""

from __future__ import annotations

import os
import resource
import socket
import struct
import sys
import traceback

import msgpack
import msgspec

from tests.security import attacker
from tests.security.attacker import (
    CLOSED,
    GIB,
    MUTANTS,
    Attempt,
    Found,
    Plan,
    Target,
    asked,
    called,
    greets,
    joins,
    returns,
    shown,
)

API, DOOR, RAFT, GOSSIP, GOSSIP_UDP, RPC, METRICS, DNS, DNS_UDP = (
    "7377 managers' API", "7376 door for newcomers", "7378 Raft", "7946 gossip, TCP", "7946 gossip, UDP",
    "7373 Serf's RPC", "9100 metrics", "53 names, TCP", "53 names, UDP",
)  # fmt: skip


# --- gossip and names: no TLS -----------------------------------------------------------------------------------------


def encrypted_by_nobody(target: Target) -> str:
    """A push-pull in the clear, and one that is encrypted by a key of the attacker's."""
    for data in (
        bytes([6]) + msgpack.packb({"Nodes": 0, "UserStateLen": 0, "Join": True}),
        sealed(target.random.randbytes(80)),
    ):
        assert target.say(data, end=True) == b"", "nothing is said to strangers"
    return CLOSED


def sealed(junk: bytes) -> bytes:
    """As memberlist has it: 10, a length, a version, a nonce, and what decrypts to nothing."""
    return bytes([10]) + struct.pack(">I", len(junk) + 1) + bytes([1]) + junk


def announced_gossip(target: Target) -> str:
    """An encrypted message of 1 GiB."""
    assert target.say(bytes([10]) + struct.pack(">I", GIB) + bytes(1000)) == b""
    return CLOSED


def mutated_gossip(target: Target) -> str:
    for number in range(MUTANTS):
        data = bytearray(sealed(target.random.randbytes(200)))
        data[target.random.randrange(5)] ^= 1 << target.random.randrange(8)
        target.say(bytes(data[: target.random.randrange(1, len(data))] if number % 2 else data), end=True)
    return CLOSED


def datagrams(target: Target) -> str:
    """Junk, cut and mutated datagrams, in the clear and not; whether any is answered."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.connect((target.plan.host, target.port))
        ping = msgpack.packb({"SeqNo": 1, "Node": "h1", "SourceAddr": b"\x0a\x42\x00\x01", "SourcePort": 7946})
        for number in range(MUTANTS * 5):
            data = bytearray((b"\0" + ping, b"\1" + target.random.randbytes(200), bytes(1400), b"")[number % 4])
            if data:
                data[target.random.randrange(len(data))] ^= 1 << target.random.randrange(8)
            sock.send(bytes(data[: target.random.randrange(len(data) + 1)] if number % 3 == 0 else data))
        sock.settimeout(1.0)
        try:
            return "answered" if sock.recv(65536) else "dropped"
        except (TimeoutError, ConnectionError):
            return "dropped"


def dns_datagrams(target: Target) -> str:
    """Junk and mutated questions: what is answered is an error, and no longer than what was asked and a little."""
    question = b"\x12\x34\x01\x00\x00\x01\0\0\0\0\0\0\x03api\x03web\x04mesh\0\0\x01\0\x01"
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.connect((target.plan.host, target.port))
        sock.settimeout(0.02)
        for number in range(MUTANTS):
            data = bytearray(question)
            data[target.random.randrange(len(data))] ^= 1 << target.random.randrange(8)
            if number % 3 == 0:
                del data[target.random.randrange(len(data)) :]
            sock.send(bytes(data))
            try:
                assert len(sock.recv(65536)) <= 1232
            except (TimeoutError, ConnectionError):
                continue
    return "dropped, or an error"


def dns_torn(target: Target) -> str:
    """A length of 65,535 and nothing behind it."""
    assert target.say(b"\xff\xff" + bytes(10), end=True) == b""
    return CLOSED


# --- Serf's RPC -------------------------------------------------------------------------------------------------------


def rpc(*, key: str = "", times: int = 1) -> Attempt:
    def attempt(target: Target) -> str:
        with target.connect() as sock:
            unpacker = msgpack.Unpacker(strict_map_key=False)

            def answer() -> object:
                while True:
                    for found in unpacker:
                        return found.get("Error")
                    if not (data := sock.recv(65536)):
                        return None
                    unpacker.feed(data)

            sock.sendall(msgpack.packb({"Command": "handshake", "Seq": 1}) + msgpack.packb({"Version": 1}))
            assert answer() == ""
            said: object = ""
            for number in range(times):
                if key:
                    sock.sendall(
                        msgpack.packb({"Command": "auth", "Seq": 2 + number}) + msgpack.packb({"AuthKey": key})
                    )
                    said = answer()
            if not key:
                sock.sendall(msgpack.packb({"Command": "members", "Seq": 9}))
                said = answer()
            return f"told: {said}" if times == 1 else CLOSED if not sock.recv(1) else "asked again"

    return attempt


def announced_rpc(target: Target) -> str:
    """A string of 1 GiB in MessagePack."""
    target.say(b"\xdb" + struct.pack(">I", GIB) + bytes(1000))
    return CLOSED


def read_only(target: Target) -> str:
    """Everything but GET, and a header without an end."""
    for data in (
        b"POST /metrics HTTP/1.1\r\n\r\n",
        b"GET /../../etc/passwd HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nA: " + b"a" * 200_000,
    ):
        said = target.say(data, end=True)
        assert b"root:" not in said
        assert not said.startswith(b"HTTP/1.1 200"), data[:30]
    return "an error, or connection closed"


# --- all of it --------------------------------------------------------------------------------------------------------

_TLS: dict[str, Attempt] = {
    "junk": attacker.junk,
    "truncated and mutated handshakes": attacker.torn_tls,
    "no certificate": shown(None),
    "a self-signed certificate": shown("self-signed"),
    "another cluster's certificate": shown("other cluster"),
    "an expired certificate": shown("expired"),
    "TLS 1.2": attacker.old_tls,
}

TABLE: dict[str, dict[str, Attempt]] = {
    API: {
        **_TLS,
        "a removed node's certificate": called("removed", "Quorum/Look"),
        "a removed node's certificate, for its renewal": called("removed", "Membership/Renew"),
        "a removed user's certificate": called("removed user", "Control/List"),
        "a worker's certificate, on a manager's call": called("worker", "Control/List"),
        "a worker's certificate, for another's renewal": called("worker", "Membership/Renew"),
        "a worker's certificate, for a join token": called("worker", "Control/RotateToken"),
        "a viewer's certificate, for a change": called("viewer", "Control/CreateService"),
        "a call that there is not": called("worker", "Control/Everything"),
        "truncated and mutated frames, by a member": attacker.mutated_h2,
        "a frame of 16 MiB, by a member": attacker.large_frame,
        "a message of 1 GiB announced, by a member": attacker.announced,
        "1,000 half-open connections": attacker.half_open,
    },
    DOOR: {
        "junk": attacker.junk,
        "truncated and mutated handshakes": attacker.torn_tls,
        "another protocol (ALPN)": attacker.greeted,
        "no token": asked(joins("none")),
        "a guessed token": asked(joins("guess")),
        "a replayed token, after a rotation": asked(joins("old worker")),
        "a worker's token, with the digest of another root": asked(joins("other root")),
        "a worker's token, to become a manager": asked(joins("worker")),
        "a removed node, by its key and its secret": asked(returns("removed")),
        "truncated and mutated requests": attacker.mutated_join,
        "a request of 1 GiB announced": asked(lambda _: struct.pack(">I", GIB) + bytes(1000)),
        "TLS 1.2": attacker.old_tls,
        "1,000 half-open connections": attacker.half_open,
    },
    RAFT: {
        **_TLS,
        "a worker's certificate": greets("worker"),
        "a worker's certificate, in a manager's name": greets("worker", sender=""),
        "a removed node's certificate": greets("removed"),
        "1,000 half-open connections": attacker.half_open,
    },
    GOSSIP: {
        "junk": attacker.junk,
        "in the clear, or by another key": encrypted_by_nobody,
        "truncated and mutated frames": mutated_gossip,
        "a message of 1 GiB announced": announced_gossip,
        "1,000 half-open connections": attacker.half_open,
    },
    GOSSIP_UDP: {"junk, in the clear, truncated and mutated": datagrams},
    RPC: {
        "no key": rpc(),
        "a wrong key": rpc(key="guess"),
        "wrong keys again and again": rpc(key="guess", times=5),
        "junk": attacker.junk,
        "a message of 1 GiB announced": announced_rpc,
        "1,000 half-open connections": attacker.half_open,
    },
    METRICS: {
        "other methods, other paths, headers without end": read_only,
        "1,000 half-open connections": attacker.half_open,
    },
    DNS: {
        "junk": attacker.junk,
        "a message that is not there": dns_torn,
        "1,000 half-open connections": attacker.half_open,
    },
    DNS_UDP: {"truncated and mutated questions": dns_datagrams},
}  # fmt: skip


def main() -> None:
    """See the module. An attempt that fails by itself ends the program: then nothing was tried."""
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    plan = msgspec.json.decode(sys.stdin.readline(), type=Plan)
    found: Found = []
    for port in plan.ports:
        for name, attempt in TABLE[port].items():
            try:
                found.append((port, name, attempt(Target(plan, int(port.split()[0])))))
            except Exception as error:  # noqa: BLE001 - any is told to the test, which fails
                traceback.print_exc()
                found.append((port, name, f"the attempt itself failed: {type(error).__name__}: {error}"))
            print(f"done {port}: {name}", file=sys.stderr, flush=True)
    sys.stdout.write(msgspec.json.encode(found).decode() + "\n")
    sys.stdout.flush()
    os._exit(0)  # gRPC's threads are not waited for


if __name__ == "__main__":
    main()
