"""One network namespace seen through netlink: the door to its nf_tables, conntrack, routes and rules.

A namespace is visited, not held: a socket that stays open keeps a deleted namespace alive, and with it its VXLAN
device and VNI. `visit` runs a function in a thread that lives only for it, so that no thread of the daemon ever changes
its namespace. A visit costs some 0.2 ms.

Blocking; errors are OSError with the kernel's errno.
"""

from __future__ import annotations

import ctypes
import errno
import os
import socket
import struct
import threading
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from mesh.vip import wire
from mesh.vip.flowtable import DEVICES_PER_MESSAGE
from mesh.vip.ingress import RouteOrRule
from mesh.vip.plan import Address
from mesh.vip.rules import Edit, Held, HeldChain, Key, Map
from mesh.vip.wire import Message, Nf, Rt

T = TypeVar("T")

_CLONE_NEWNET = 0x40000000
_NETLINK_ROUTE, _NETLINK_NETFILTER = 0, 12
_SOL_NETLINK, _NETLINK_GET_STRICT_CHECK = 270, 12
_SO_NETNS_COOKIE = 71  # Linux 5.14
# The kernel answers at once or never; never must not hang the daemon.
_ANSWER_TIMEOUT = struct.pack("@ll", 5, 0)  # struct timeval
_RECEIVE_BYTES = 65536  # twice what the kernel puts into one datagram of a dump
# Changes in one datagram. Their answers must fit into the receive buffer, at some 1.3 KB of memory each.
_RECEIVE_BUFFER_BYTES = 1 << 20  # the kernel allows less (net.core.rmem_max), but seldom less than 200 KB
_BATCH = 128
# A dump is repeated when the kernel says that what it walked changed under it. Somebody who changes things all the
# time must not hold us up for ever: the last dump is then as good as any.
_DUMP_ATTEMPTS = 5
# Routes of others that are looked at: more has only a router of the Internet, which is no place for tasks.
_FOREIGN_ROUTES_MAX = 65_536

# Threads that are still leaving, while the next ones work: more would only wait for the same grace period.
_MAX_VISITORS = 16
_visitors = threading.BoundedSemaphore(_MAX_VISITORS)

_CONNECTION_COUNT = Path("/proc/sys/net/netfilter/nf_conntrack_count")

_libc = ctypes.CDLL(None, use_errno=True)


class Netlink:
    """A netlink socket of the namespace it is opened in."""

    def __init__(self, family: int) -> None:
        """Raises OSError."""
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, family)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, _ANSWER_TIMEOUT)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BUFFER_BYTES)
        if family == _NETLINK_ROUTE:
            self._socket.setsockopt(_SOL_NETLINK, _NETLINK_GET_STRICT_CHECK, 1)
        self._socket.bind((0, 0))
        self._sequence = 0
        self._interrupted = False  # the last dump was

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()

    def cookie(self) -> tuple[int, int]:
        """What tells this namespace from all others that ever were (on old kernels: that there are)."""
        try:
            data = self._socket.getsockopt(socket.SOL_SOCKET, _SO_NETNS_COOKIE, 8)
            return 0, int(struct.unpack("=Q", data)[0])
        except OSError:
            status = os.stat("/proc/thread-self/ns/net")
            return status.st_dev, status.st_ino

    def ask(self, kind: int, payload: bytes) -> bytes:
        """The one answer to a request."""
        self._send(kind, wire.NLM_F_REQUEST, payload)
        answer = next(self._answers(self._sequence))
        if answer.type == wire.NLMSG_ERROR:
            raise _error(wire.error_number(answer.payload))
        return answer.payload

    def dump(self, kind: int, payload: bytes, most: int | None = None) -> list[bytes]:
        """All of a kind, or the first so many. Raises OSError; ENOENT when that of which it is asked is not there."""
        found: list[bytes] = []
        for _ in range(_DUMP_ATTEMPTS):
            found = []
            for one in self.stream(kind, payload):  # to its end: nothing else may be asked before
                if most is None or len(found) < most:
                    found.append(one)
            if not self._interrupted:
                break
        return found

    def stream(self, kind: int, payload: bytes) -> Iterator[bytes]:
        """As `dump`, one after the other, whatever changes meanwhile. Nothing else may be asked until its end."""
        self._interrupted = False
        self._send(kind, wire.NLM_F_REQUEST | wire.NLM_F_DUMP, payload)
        for answer in self._answers(self._sequence):
            if answer.flags & wire.NLM_F_DUMP_INTERRUPTED:
                self._interrupted = True
            if answer.type == wire.NLMSG_DONE:
                return
            if answer.type == wire.NLMSG_ERROR:
                raise _error(wire.error_number(answer.payload))
            yield answer.payload

    def change(self, requests: list[tuple[int, int, bytes]]) -> list[int]:
        """Make changes, each (type, flags, payload); returns the errno of each, 0 for success."""
        results: list[int] = []
        for start in range(0, len(requests), _BATCH):
            results += self._batch(requests[start : start + _BATCH])
        return results

    def _batch(self, requests: list[tuple[int, int, bytes]]) -> list[int]:
        first = self._sequence + 1
        data = b""
        for kind, flags, payload in requests:
            self._sequence += 1
            body = wire.message(kind, wire.NLM_F_REQUEST | wire.NLM_F_ACK | flags, self._sequence, payload)
            data += body + bytes(-len(body) % 4)
        self._socket.send(data)
        results: dict[int, int] = {}
        while len(results) < len(requests):
            for answer in wire.messages(self._receive()):
                if answer.type == wire.NLMSG_ERROR and answer.sequence >= first:
                    results[answer.sequence] = wire.error_number(answer.payload)
        return [results[first + index] for index in range(len(requests))]

    def transaction(self, requests: list[tuple[int, int, bytes]]) -> None:
        """Send what happens whole or not at all, in one datagram. Raises OSError with the first that was refused."""
        first, data = self._sequence + 1, b""
        for kind, flags, payload in requests:
            self._sequence += 1
            data += wire.message(kind, wire.NLM_F_REQUEST | flags, self._sequence, payload)
        self._socket.send(data)
        while True:
            for answer in wire.messages(self._receive()):
                if answer.type != wire.NLMSG_ERROR or answer.sequence < first:
                    continue
                if number := wire.error_number(answer.payload):
                    raise _error(number)
                return

    def _send(self, kind: int, flags: int, payload: bytes) -> None:
        self._sequence += 1
        self._socket.send(wire.message(kind, flags, self._sequence, payload))

    def _answers(self, sequence: int) -> Iterator[Message]:
        """What comes back to a request, until the caller has enough; older answers are passed over."""
        while True:
            for answer in wire.messages(self._receive()):
                if answer.sequence == sequence:
                    yield answer

    def _receive(self) -> bytes:
        try:
            return self._socket.recv(_RECEIVE_BYTES)
        except BlockingIOError as error:
            raise OSError(errno.ETIMEDOUT, "the kernel did not answer") from error


class Namespace:
    """What a visitor sees. Only `visit` makes it."""

    def __init__(self) -> None:
        """Opens its sockets in the namespace of the running thread."""
        self.netfilter = Netlink(_NETLINK_NETFILTER)
        self.cookie = self.netfilter.cookie()
        self._route: Netlink | None = None

    def close(self) -> None:
        """Close the sockets."""
        self.netfilter.close()
        if self._route is not None:
            self._route.close()

    @property
    def route(self) -> Netlink:
        """Routes and rules."""
        if self._route is None:
            self._route = Netlink(_NETLINK_ROUTE)
        return self._route

    def generation(self) -> int:
        """The number of the namespace's rule set."""
        return wire.generation(self.netfilter.ask(Nf.GET_GENERATION, wire.nf_request(family=wire.AF_UNSPEC)))

    def table(self, maps: tuple[Map, ...]) -> Held | None:
        """Our table, with the elements of those of `maps` that are there in the right shape. None: there is none."""
        try:
            dormant = wire.is_dormant(self.netfilter.ask(Nf.GET_TABLE, wire.of_our_table()))
            chains = dict(wire.chain(p) for p in self._of_table(Nf.GET_CHAIN))
            tags: dict[str, list[str]] = {name: [] for name in chains}
            for chain, tag in map(wire.rule, self._of_table(Nf.GET_RULE)):
                tags.setdefault(chain, []).append(tag)
            shapes = dict(wire.shape(p) for p in self._of_table(Nf.GET_SET))
            flowtables = frozenset(name for name, _ in map(wire.flowtable, self._of_table(Nf.GET_FLOWTABLE)))
            elements = {
                one.name: dict(pair for p in self._elements(one) for pair in wire.elements(one, p))
                for one in maps
                if shapes.get(one.name) == one.shape
            }
        except FileNotFoundError:
            return None
        held = {name: HeldChain(c.hook, c.accepts, tuple(tags[name])) for name, c in chains.items()}
        return Held(dormant, shapes, held, elements, flowtables)

    def _of_table(self, kind: Nf) -> list[bytes]:
        return [p for p in self.netfilter.dump(kind, wire.of_our_table()) if wire.is_of_our_table(p)]

    def _elements(self, of: Map) -> list[bytes]:
        return self.netfilter.dump(Nf.GET_ELEMENT, wire.of_set(of.name))

    def elements(self, of: Map) -> dict[Key, Key]:
        """The elements of a map of our table; none when it is not there."""
        try:
            return dict(pair for p in self._elements(of) for pair in wire.elements(of, p))
        except FileNotFoundError:
            return {}

    def edit(self, edits: list[Edit], generation: int) -> None:
        """Make edits of elements of our table, all or none, if the rule set is still of that generation.

        Raises OSError: ERESTART when it is not, another when the table is not as the edits have it.
        """
        requests = [(int(kind), wire.NLM_F_CREATE, payload) for kind, payload in wire.element_changes(edits)]
        self._in_batch(requests, generation)

    def _in_batch(self, requests: list[tuple[int, int, bytes]], generation: int) -> None:
        last, flags, payload = requests[-1]
        requests[-1] = (last, flags | wire.NLM_F_ACK, payload)  # errors come unasked
        begin, end = (Nf.BATCH_BEGIN, 0, wire.batch_begin(generation)), (Nf.BATCH_END, 0, wire.batch_end())
        self.netfilter.transaction([begin, *requests, end])

    def devices_of(self, flowtable: str) -> frozenset[str]:
        """The devices of a flowtable of our table; none when it is not there."""
        return dict(map(wire.flowtable, self._of_table(Nf.GET_FLOWTABLE))).get(flowtable, frozenset())

    def change_devices(self, flowtable: str, add: list[str], delete: list[str]) -> int:
        """Add devices to a flowtable of our table and take others out, all or none; returns how many transactions.

        Raises OSError: ENOENT when a device is not there any more, ERESTART when others came between.
        """
        requests = [
            (int(kind), 0, wire.of_flowtable_with(flowtable, some[at : at + DEVICES_PER_MESSAGE]))
            for kind, some in ((Nf.DELETE_FLOWTABLE, delete), (Nf.NEW_FLOWTABLE, add))
            for at in range(0, len(some), DEVICES_PER_MESSAGE)
        ]
        if not requests:
            return 0
        self._in_batch(requests, self.generation())
        return 1

    def has_table(self) -> bool:
        """Whether our table is there."""
        try:
            self.netfilter.ask(Nf.GET_TABLE, wire.of_our_table())
        except FileNotFoundError:
            return False
        return True

    def has_former_table(self, by_set: str) -> bool:
        """Whether there is the table of an earlier version of this program, told by a set of it."""
        try:
            self.netfilter.ask(Nf.GET_SET, wire.of_former_set(by_set))
        except FileNotFoundError:
            return False
        return True

    def connections(self, translated_only: bool, answerers: Collection[int] | None = None) -> Iterator[wire.Connection]:
        """Tracked connections: all, at least those with a translated destination, or those that some addresses answer.

        There may be very many. To ask takes 9 ms however few there are: the kernel has one table for all namespaces,
        and goes through all of its places (262,144 on most machines) for each question.
        """
        asked = [wire.of_connections(translated_only)]
        if answerers is not None:
            asked = [wire.of_connections_answered_by(address) for address in answerers]
        if not _tracks_any():
            return
        for request in asked:
            yield from map(wire.connection, self.netfilter.stream(Nf.CT_GET, request))

    def forget(self, connections: list[wire.Connection]) -> int:
        """End the tracking of connections; returns how many were still there."""
        requests = [(int(Nf.CT_DELETE), 0, wire.nf_request(one.handle, family=one.family)) for one in connections]
        return self.netfilter.change(requests).count(0)

    def routing(self) -> frozenset[RouteOrRule]:
        """The routes and rules that carry our protocol number."""
        found: set[RouteOrRule | None] = set()
        for family in (wire.AF_INET, wire.AF_INET6):
            found.update(map(wire.route, self.route.dump(Rt.GET_ROUTE, wire.of_our_routes(family))))
            found.update(map(wire.routing_rule, self.route.dump(Rt.GET_RULE, wire.of_rules(family))))
        return frozenset(one for one in found if one is not None)

    def prefix_to(self, address: Address) -> int:
        """How many bits are fixed by the route that an address would take; 0: it has none but the default route."""
        try:
            return wire.prefix_length(self.route.ask(Rt.GET_ROUTE, wire.of_route_to(address)))
        except OSError as error:
            if error.errno in (errno.ENETUNREACH, errno.EHOSTUNREACH):
                return 0
            raise

    def ways_of_others(self, to: Collection[Address]) -> frozenset[Address]:
        """Those of some addresses that a route of the main table leads to which is not ours, and no default route."""
        found: set[Address] = set()
        for family, bits in ((wire.AF_INET, 32), (wire.AF_INET6, 128)):
            wanted = {int(one): one for one in to if one.max_prefixlen == bits}
            if not wanted:
                continue
            for payload in self.route.dump(Rt.GET_ROUTE, wire.of_main_table(family), _FOREIGN_ROUTES_MAX):
                prefix = wire.foreign_prefix(payload)
                if prefix is not None:
                    shift = bits - prefix[1]
                    found.update(one for number, one in wanted.items() if number >> shift == prefix[0] >> shift)
        return frozenset(found)

    def add_routing(self, wanted: list[RouteOrRule]) -> None:
        """Make routes and rules. Raises OSError for the first that failed, when all have been tried."""
        requests = []
        for one in wanted:
            is_rule, payload = wire.encode(one)
            flags = wire.NLM_F_CREATE | (wire.NLM_F_EXCL if is_rule else wire.NLM_F_REPLACE)
            requests.append((int(Rt.NEW_RULE if is_rule else Rt.NEW_ROUTE), flags, payload))
        _check(self.route.change(requests), wanted, "add", errno.EEXIST)

    def delete_routing(self, unwanted: list[RouteOrRule]) -> None:
        """Remove routes and rules. Raises OSError as `add_routing`."""
        requests = []
        for one in unwanted:
            is_rule, payload = wire.encode(one)
            requests.append((int(Rt.DELETE_RULE if is_rule else Rt.DELETE_ROUTE), 0, payload))
        _check(self.route.change(requests), unwanted, "remove", errno.ESRCH, errno.ENOENT)

    def addresses(self) -> frozenset[int]:
        """The namespace's own addresses, as numbers."""
        return frozenset(map(wire.own_address, self.route.dump(Rt.GET_ADDRESS, wire.of_addresses())))

    def has_device(self, name: str) -> bool:
        """Whether there is a device of that name."""
        try:
            socket.if_nametoindex(name)
        except OSError:
            return False
        return True

    def device_index(self, name: str) -> int:
        """The index of a device. Raises OSError when there is none of that name."""
        try:
            return socket.if_nametoindex(name)
        except OSError as error:
            raise OSError(errno.ENODEV, f"there is no device {name}") from error


def visit(path: str | None, work: Callable[[Namespace], T], leave: Callable[[], None] | None = None) -> T:
    """Run `work` in a namespace (None: this process's own) and return what it returns. Raises OSError.

    The visitor stays a moment longer than the answer: to close a socket of nf_tables is to wait until the kernel is
    done with what was deleted in the namespace (some 15 ms). `leave` is run then, too. See `settle`.
    """
    opened: list[Namespace] = []

    def run() -> T:
        if path is not None:
            _enter(path)
        opened.append(Namespace())
        return work(opened[0])

    def go() -> None:
        try:
            for namespace in opened:
                namespace.close()
            if leave is not None:
                leave()
        finally:
            _visitors.release()

    _visitors.acquire()
    thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="visit")
    try:
        return thread.submit(run).result()
    finally:
        thread.submit(go)
        thread.shutdown(wait=False)


def visit_new(work: Callable[[], T], leave: Callable[[], None]) -> T:
    """Run `work`, then `leave`, in a network namespace made for them, which goes with them. Raises OSError."""

    def run() -> T:
        if _libc.unshare(_CLONE_NEWNET) != 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
        try:
            return work()
        finally:
            leave()

    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="visit") as thread:
        return thread.submit(run).result()


def settle() -> None:
    """Wait until all visitors have left: a namespace that is then deleted is gone at once."""
    for _ in range(_MAX_VISITORS):
        _visitors.acquire()
    _visitors.release(_MAX_VISITORS)


def _enter(path: str) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        if _libc.setns(descriptor, _CLONE_NEWNET) != 0:
            number = ctypes.get_errno()
            reason = "it is not a network namespace" if number == errno.EINVAL else os.strerror(number)
            raise OSError(number, reason)
    finally:
        os.close(descriptor)


def _tracks_any() -> bool:
    """Whether there may be a tracked connection in the namespace of the running thread."""
    try:
        return _CONNECTION_COUNT.read_text().strip() != "0"
    except FileNotFoundError:  # a kernel without sysctls; nothing is known
        return True


def _check(results: list[int], what: list[RouteOrRule], verb: str, *harmless: int) -> None:
    for number, one in zip(results, what, strict=True):
        if number and number not in harmless:
            raise OSError(number, f"cannot {verb} {one}: {os.strerror(number)}")


def _error(number: int) -> OSError:
    return OSError(number, os.strerror(number))
