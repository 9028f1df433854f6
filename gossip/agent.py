"""A whole gossip node: SWIM, the Serf layer, endpoint state, the snapshot file and the RPC, in one asyncio loop.

meshd embeds `Agent`; `agent_main` runs it alone. It has no task of its own: packets come by the `Network`, one timer
drives what is due, and the RPC has a task for each connection. All events go, in order and within the loop's turn, to
the `listeners`, which must be quick. `start` returns when the sockets are open, `leave` within LEAVE_TIMEOUT_S.
"""

from __future__ import annotations

import asyncio
import random
import socket
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path
from typing import Protocol

from gossip.coordinates import Coordinate
from gossip.delegate import Address, Delegate, Membership
from gossip.endpoints import TYPES as ENDPOINT_TYPES
from gossip.endpoints import EndpointChange, EndpointTable, Snapshot, TaskState
from gossip.keyring import KeyRing
from gossip.profile import LAN, Profile
from gossip.rpc_server import RpcServer
from gossip.serf.core import SerfCore
from gossip.serf.keys import KeyCommand, KeyResult
from gossip.serf.ports import ConflictOver, Event, KeyDone, QuerySeen, Refused, SerfConfig, UserEventSeen
from gossip.serf.roster import Kind, MemberChange, SerfMember
from gossip.snapshot import SnapshotFile

DEFAULT_PORT = 7946
# A member with this tag speaks the endpoint protocol of this version. Stock agents do not, and are sent none of it.
MESH_TAG, MESH_VERSION = "_mesh", "1"
BROADCAST_TIMEOUT_S = 5.0  # Serf's: in which a leave must have gone out
# After the word has gone out, a leaving node answers probes for as long as others need to hear of it.
LEAVE_PROPAGATE_S = 1.0
LEAVE_TIMEOUT_S = 2 * BROADCAST_TIMEOUT_S + LEAVE_PROPAGATE_S
JOIN_TIMEOUT_S = 10.0  # of all addresses together
JOIN_MAX = 1024  # addresses in one join
SNAPSHOT_INTERVAL_S = 0.5  # Serf's, at the least; clocks that moved without an event are written within TIMER_MAX_S
TIMER_MAX_S = 2.0  # nothing else is due that neither a command nor an event has armed the timer for
POLL_S = 0.02  # how often a join or a leave looks whether it is through
LOGS_MAX = 512  # lines that a monitor is shown first, as Serf does

AgentEvent = Event | EndpointChange
Listener = Callable[[AgentEvent], None]
Log = Callable[[str, str], None]


@dataclass(frozen=True)
class AgentSettings:
    """One node. `address` is where to listen, `advertise` what to tell others (None: `address`)."""

    name: str
    address: Address
    advertise: Address | None = None
    tags: Mapping[str, str] = field(default_factory=dict)
    keys: Sequence[bytes] = ()
    label: str = ""
    profile: Profile = LAN
    compression: bool = True
    snapshot: Path | None = None
    rejoin_after_leave: bool = False
    endpoints: bool = False  # whether this node takes part in the endpoint protocol
    boot_epoch: int = 1  # greater than at any earlier boot, such as the seconds since 1970
    reconnect_timeout_s: float = 24 * 3600.0
    tombstone_timeout_s: float = 24 * 3600.0
    resolve_conflicts: bool = True


class Network(Protocol):
    """SWIM on sockets. `gossip.agent_network` is one; tests have others."""

    @property
    def membership(self) -> Membership: ...

    async def start(self) -> None:
        """Open the sockets. Raises OSError."""
        ...

    async def close(self) -> None:
        """Close them, without a word to anybody."""
        ...

    def silence(self) -> None:
        """Take and send nothing any more."""
        ...

    def poke(self) -> None:
        """The membership was asked to send something from outside of the delegate's methods."""
        ...

    def stats(self) -> Mapping[str, str]:
        """Numbers, "health_score" among them."""
        ...


MakeNetwork = Callable[[AgentSettings, Delegate, KeyRing, random.Random], Network]


class Agent:
    """One node. Methods that take commands raise Refused with a sentence for who gave it."""

    def __init__(
        self,
        settings: AgentSettings,
        make_network: MakeNetwork,
        *,
        source: random.Random,
        nonce: Callable[[int], bytes],
        log: Log | None = None,
    ) -> None:
        """`nonce(n)`: n unpredictable bytes; `log(level, line)`: where lines go beside the monitors."""
        self.settings = settings
        self.listeners: list[Listener] = []
        self.counts: Counter[str] = Counter()
        self.ring = KeyRing(settings.keys, nonce)
        self.keys_changed: Callable[[Sequence[bytes]], None] | None = None  # to write the key ring to disk
        self.tags_changed: Callable[[Mapping[str, str]], None] | None = None
        self.stopped = asyncio.Event()  # somebody made it leave by the RPC
        self.conflict_lost = False
        self.rpc: RpcServer | None = None
        self._loop = asyncio.get_running_loop()
        now = self._loop.time()
        tags = dict(settings.tags) | ({MESH_TAG: MESH_VERSION} if settings.endpoints else {})
        self.core = SerfCore(
            SerfConfig(
                settings.name,
                settings.profile,
                settings.reconnect_timeout_s,
                settings.tombstone_timeout_s,
                resolve_conflicts=settings.resolve_conflicts,
            ),
            tags=tags,
            ring=self.ring,
            source=source,
            now=now,
            extension=self._extension,
            ready=self._flush_soon,
        )
        self.endpoints = EndpointTable(settings.name, settings.boot_epoch, source, now) if settings.endpoints else None
        self.snapshot: SnapshotFile | None = None
        self._network = make_network(settings, self.core, self.ring, source)
        self._logs: deque[tuple[str, str]] = deque(maxlen=LOGS_MAX)
        self._log = log
        self._key_waiters: dict[int, asyncio.Future[KeyResult]] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._flushing = False
        self._running = False
        self._next_snapshot_s = now

    # Life

    async def start(self) -> None:
        """Open the sockets and begin; members of the snapshot are looked for. Raises OSError."""
        settings = self.settings
        if settings.snapshot is not None:
            self.snapshot = SnapshotFile(settings.snapshot, rejoin_after_leave=settings.rejoin_after_leave)
            state = self.snapshot.state
            self.core.restore_clocks(state.clock, state.event_clock, state.query_clock)
        await self._network.start()
        self._running = True
        self.core.start(self.membership, self._loop.time())
        self.log("INFO", f"agent: {settings.name} listens on {self.membership.me.address}")
        previous = [a for name, a in (self.snapshot.previous if self.snapshot else {}).items() if name != settings.name]
        if previous:
            self.log("INFO", f"agent: looking for {len(previous)} members of before")
            self.membership.join(previous[:JOIN_MAX], self._loop.time())
        self._tick()

    async def leave(self) -> None:
        """Tell everybody that this node leaves, and wait until they know. It no longer takes part afterwards."""
        if not self._running or self.core.leaving:
            return
        self.log("INFO", "agent: leaving")
        self.core.leave_begins(self._loop.time())
        if self.snapshot is not None:
            self.snapshot.leave()
        if self.core.roster.others_alive():
            await self._until(lambda: not self.core.intents.waiting(self.settings.name), BROADCAST_TIMEOUT_S)
            self.membership.leave(self._loop.time())
            self._network.poke()
            await self._until(lambda: self.membership.left, BROADCAST_TIMEOUT_S)
            await asyncio.sleep(LEAVE_PROPAGATE_S)

    async def close(self) -> None:
        """Stop at once; others take it for a failure if it has not left."""
        self._running = False
        if self._timer is not None:
            self._timer.cancel()
        if self.rpc is not None:
            await self.rpc.close()
        await self._network.close()
        if self.snapshot is not None:
            self._record_clocks()
            self.snapshot.close()
        for waiter in self._key_waiters.values():
            waiter.cancel()

    async def serve_rpc(self, address: str, auth_key: str = "") -> None:
        """Listen for clients at HOST:PORT or the path of a socket. Raises OSError."""
        self.rpc = self.rpc or RpcServer(self, auth_key, self._loop.time)
        if "/" in address:
            await self.rpc.listen_unix(Path(address))
        else:
            host, _, port = address.rpartition(":")
            await self.rpc.listen_tcp(host.strip("[]"), int(port))

    @property
    def membership(self) -> Membership:
        """What SWIM knows."""
        return self._network.membership

    def stop(self) -> None:
        """Somebody wants the process to end."""
        self.stopped.set()

    # Commands; also those of RPC clients

    def members(self) -> Sequence[SerfMember]:
        """All members."""
        return self.core.members()

    def user_event(self, name: str, payload: bytes, coalesce: bool = True) -> None:
        """Tell everybody."""
        self._check_running()
        self.core.user_event(name, payload, coalesce, self._loop.time())

    def query(
        self,
        name: str,
        payload: bytes,
        *,
        nodes: Sequence[str] = (),
        tags: Mapping[str, str] | None = None,
        ack: bool = False,
        relay_factor: int = 0,
        timeout_s: float = 0.0,
    ) -> int:
        """Ask; QueryAnswer and QueryDone events with this number follow."""
        self._check_running()
        number = self.core.query(
            name,
            payload,
            self._loop.time(),
            nodes=nodes,
            tags=tags,
            ack=ack,
            relay_factor=relay_factor,
            timeout_s=timeout_s,
        )
        self._loop.call_soon(self._tick)  # not at once: who asks must know the number before answers are told
        return number

    def respond(self, query: QuerySeen, payload: bytes) -> None:
        """Answer a query."""
        self._check_running()
        self.core.respond(query, payload, self._loop.time())
        self._network.poke()

    async def force_leave(self, node: str, prune: bool = False) -> None:
        """Declare a failed node to have left."""
        self._check_running()
        self.core.force_leave(node, prune, self._loop.time())
        self._network.poke()

    async def join(self, existing: Sequence[str], replay: bool = False) -> tuple[int, str]:
        """Join by addresses of members: how many were reached, and an error if none was. They are tried on for ever."""
        self._check_running()
        if len(existing) > JOIN_MAX:
            raise Refused(f"a join takes at most {JOIN_MAX} addresses, not {len(existing)}")
        seeds, errors = await self._resolve(existing)
        if not seeds:
            return 0, "; ".join(errors) or "no address to join was given"
        self.core.ignore_old_events = not replay
        self.membership.join(seeds, self._loop.time())
        self._network.poke()
        await self._until(lambda: self._reached(seeds) == len(seeds), JOIN_TIMEOUT_S)
        self.core.ignore_old_events = True
        reached = self._reached(seeds)
        if not reached:
            return 0, f"Failed to join {', '.join(str(seed) for seed in seeds)}: no answer"
        self.core.joined_cluster(self._loop.time())
        return reached, ""

    async def key_command(self, command: KeyCommand, key: str = "") -> KeyResult:
        """Ask all to install, use, remove or list keys; what they answered."""
        self._check_running()
        number = self.core.key_query(command, key, self._loop.time())
        waiter = self._key_waiters[number] = self._loop.create_future()
        self._tick()
        try:
            result: KeyResult = await waiter
            return result
        finally:
            self._key_waiters.pop(number, None)

    def tags(self) -> Mapping[str, str]:
        """This node's tags."""
        return self.core.tags

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Replace them; that this node speaks the endpoint protocol stays."""
        self._check_running()
        kept = {MESH_TAG: MESH_VERSION} if self.endpoints is not None else {}
        self.core.set_tags(dict(tags) | kept, self._loop.time())
        self._network.poke()
        if self.tags_changed is not None:
            self.tags_changed(self.core.tags)

    def set_keys(self, keys: Sequence[bytes]) -> None:
        """The key ring as it is to be, the first one primary (from the managers). Raises Refused."""
        try:
            for key in keys:
                self.ring.install(key)
            if keys:
                self.ring.use(keys[0])
            for key in set(self.ring.keys) - set(keys):
                self.ring.remove(key)
        except ValueError as error:
            raise Refused(str(error)) from error

    def set_local_endpoints(self, tasks: Mapping[str, TaskState]) -> bool:
        """State of all tasks of this node by id; whether that is news. Raises endpoints.EndpointError."""
        assert self.endpoints is not None, "this agent has no endpoints"
        news = self.endpoints.set_local(tasks)
        self._tick()
        return news

    def endpoints_of(self, owner: str) -> Snapshot | None:
        """What a node says of its tasks; None while it is not there."""
        return self.endpoints.get(owner) if self.endpoints is not None else None

    def coordinate(self, node: str) -> Coordinate | None:
        """A node's place."""
        return self.core.vivaldi.coordinate if node == self.settings.name else self.core.coordinates.get(node)

    def stats(self) -> dict[str, dict[str, str]]:
        """Numbers in blocks, as Serf's."""
        network = dict(self._network.stats())
        serf = self.core.stats() | {"health_score": network.pop("health_score", "0")}
        blocks = {
            "agent": {"name": self.settings.name, "name_conflict": "lost" if self.conflict_lost else "none"},
            "runtime": {"implementation": "meshd"},
            "serf": serf,
            "tags": dict(self.core.tags),
            "event_handlers": {},
            "gossip": network | {key: str(count) for key, count in sorted(self.core.counts.items())},
        }
        if self.endpoints is not None:
            blocks["endpoints"] = {key: str(count) for key, count in self.endpoints.stats().items()}
        if self.rpc is not None:
            blocks["rpc"] = {key: str(count) for key, count in sorted(self.rpc.counts.items())}
        return blocks

    def log(self, level: str, line: str) -> None:
        """A line for the log and the monitors."""
        self._logs.append((level, line))
        if self.rpc is not None:
            self.rpc.log(level, line)
        if self._log is not None:
            self._log(level, line)

    def recent_logs(self) -> Iterable[tuple[str, str]]:
        """The last lines."""
        return tuple(self._logs)

    # Turning

    def _check_running(self) -> None:
        if self.conflict_lost:
            raise Refused(f'another node has the name "{self.settings.name}": this one no longer takes part')
        if not self._running or self.core.leaving:
            raise Refused("the agent is leaving")

    def _tick(self) -> None:
        """Do what is due, tell what happened, and arm the timer anew."""
        if not self._running:
            return
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        now = self._loop.time()
        if self.core.deadline() <= now:
            self.core.wake(now)
        if self.endpoints is not None and self.endpoints.deadline() <= now:
            self.endpoints.wake(now)
        if self.snapshot is not None and now >= self._next_snapshot_s:
            self._next_snapshot_s = now + SNAPSHOT_INTERVAL_S
            self._record_clocks()
        self._flush()

    def _arm(self) -> None:
        """The timer for what is due first, if it is not armed for something sooner."""
        due_s = min(self.core.deadline(), self._loop.time() + TIMER_MAX_S)
        if self.endpoints is not None:
            due_s = min(due_s, self.endpoints.deadline())
        if self._timer is not None:
            if self._timer.when() <= due_s:
                return
            self._timer.cancel()
        self._timer = self._loop.call_at(due_s, self._tick)

    def _flush_soon(self) -> None:
        if not self._flushing:
            self._flushing = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        """Tell what has happened, and send what endpoints want to say."""
        self._flushing = False
        for event in self.core.drain():
            self._before(event)
            if self.rpc is not None:
                self.rpc.dispatch(event)
            self._tell(event)
        if self.endpoints is not None:
            sends, changes = self.endpoints.drain()
            for send in sends:
                if (member := self.core.roster.get(send.to)) is not None:
                    self.membership.send_user(member.address, send.message, self._loop.time())
            for change in changes:
                self._tell(change)
        if self._running:
            self._arm()
            self._network.poke()
        if self.core.ring_changed:
            self.core.ring_changed = False
            if self.keys_changed is not None:
                self.keys_changed(self.ring.keys)

    def _tell(self, event: AgentEvent) -> None:
        for listener in self.listeners:
            listener(event)

    def _before(self, event: Event) -> None:
        """What the agent itself does with an event."""
        match event:
            case MemberChange(kind, member):
                self.log("INFO", f"serf: {_LOG_NAMES[kind]}: {member.name} {member.address.host}")
                self._record_member(kind, member)
                if self.endpoints is not None and kind not in (Kind.SUSPECT, Kind.REFUTE):
                    self.endpoints.set_peers(self._mesh_peers(), self._loop.time())
            case UserEventSeen(_, name):
                self.log("DEBUG", f"serf: user event {name}")
            case KeyDone(number, result):
                waiter = self._key_waiters.get(number)
                if waiter is not None and not waiter.done():
                    waiter.set_result(result)
            case ConflictOver(kept, matching, responses):
                verdict = "majority" if kept else "minority"
                self.log("WARN", f"serf: {verdict} in name conflict resolution [{matching} / {responses}]")
                if not kept:
                    self._lose_name()
            case _:
                pass

    def _lose_name(self) -> None:
        """Another node has our name: stay silent, and up, so that somebody can look at it through the RPC."""
        self.conflict_lost = True
        self._running = False
        if self._timer is not None:
            self._timer.cancel()
        self._network.silence()

    def _mesh_peers(self) -> list[str]:
        return [member.name for member in self.core.roster.others_alive() if MESH_TAG in member.tags]

    def _extension(self, message: bytes, now: float) -> None:
        if self.endpoints is None or message[0] not in ENDPOINT_TYPES:
            self.counts["unknown_messages"] += 1
            return
        self.endpoints.receive(message, now)
        self._flush_soon()

    # The snapshot

    def _record_member(self, kind: Kind, member: SerfMember) -> None:
        if self.snapshot is None or kind not in (Kind.JOIN, Kind.LEAVE, Kind.FAILED):
            return
        alive = kind is Kind.JOIN
        self.snapshot.record([f"alive: {member.name} {member.address}" if alive else f"not-alive: {member.name}"])

    def _record_clocks(self) -> None:
        if self.snapshot is None:
            return
        core = self.core
        self.snapshot.clocks(core.clock.time - 1, core.event_clock.time - 1, core.query_clock.time - 1)
        if self.snapshot.error is not None:
            self.counts["snapshot_errors"] += 1

    # Joining

    async def _resolve(self, written: Sequence[str]) -> tuple[list[Address], list[str]]:
        """Addresses of "HOST", "HOST:PORT", "[HOST]:PORT" or "NAME/HOST:PORT", and what is wrong with the others."""
        seeds: list[Address] = []
        errors: list[str] = []
        for item in written:
            place = item.rpartition("/")[2]
            host, port = split_place(place)
            if is_address(host):
                seeds.append(Address(host, port))
                continue
            try:
                async with asyncio.timeout(JOIN_TIMEOUT_S):
                    found = await self._loop.getaddrinfo(host, port, type=socket.SOCK_DGRAM)
            except (OSError, TimeoutError, UnicodeError) as error:
                errors.append(f'Failed to resolve "{item}": {error}')
                continue
            seeds += [Address(str(place[0]), int(place[1])) for *_, place in found[:1]]
        return list(dict.fromkeys(seeds)), errors

    def _reached(self, seeds: Sequence[Address]) -> int:
        return sum(map(self.membership.reached, seeds))

    async def _until(self, done: Callable[[], bool], timeout_s: float) -> None:
        until = self._loop.time() + timeout_s
        while not done() and self._loop.time() < until:  # noqa: ASYNC110  # what SWIM knows has no event to wait for
            await asyncio.sleep(POLL_S)


_LOG_NAMES = {
    Kind.JOIN: "EventMemberJoin",
    Kind.LEAVE: "EventMemberLeave",
    Kind.FAILED: "EventMemberFailed",
    Kind.UPDATE: "EventMemberUpdate",
    Kind.REAP: "EventMemberReap",
    Kind.SUSPECT: "EventMemberSuspect",
    Kind.REFUTE: "EventMemberRefute",
}


def is_address(text: str) -> bool:
    """Whether it is an address, not a name."""
    try:
        ip_address(text)
    except ValueError:
        return False
    return True


def split_place(place: str) -> tuple[str, int]:
    """Host and port of "HOST", "HOST:PORT" or "[HOST]:PORT"; a bare IPv6 address is a host."""
    if place.startswith("["):
        host, _, port = place[1:].partition("]")
        port = port.removeprefix(":")
    elif place.count(":") == 1:
        host, _, port = place.partition(":")
    else:
        host, port = place, ""
    return host, int(port) if port.isdecimal() and int(port) < 65536 else DEFAULT_PORT
