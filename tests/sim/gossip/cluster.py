"""A cluster of SWIM cores in virtual time, on a network that loses, delays and parts. Deterministic by its seed."""

from __future__ import annotations

import heapq
import random
from collections import Counter
from collections.abc import Callable, Iterable, Sequence

from gossip.delegate import Address, Change, Member, MemberEvent, NullDelegate, State
from gossip.keyring import KeyRing
from gossip.members import EncodedMembers
from gossip.packet import Envelope
from gossip.profile import LAN, Profile
from gossip.stream import Reader
from gossip.swim import Swim
from gossip.swim_ports import OpenStream, SendPacket, StreamFailure, SwimConfig
from gossip.wire import VERSIONS, WireError

LATENCY_S = (0.0002, 0.002)


class Recorder(NullDelegate):
    """A delegate that remembers what it was told, and has messages for everybody."""

    def __init__(self) -> None:
        self.events: list[tuple[float, Change, str]] = []
        self.messages: list[bytes] = []
        self.conflicts: list[tuple[Member, Member]] = []
        self.meta = b""
        self.state = b""
        self.merged: list[bytes] = []
        self.pings: list[tuple[str, float]] = []
        self.to_all: list[bytes] = []

    def node_meta(self) -> bytes:
        return self.meta

    def user_message(self, message: bytes, now: float) -> None:
        self.messages.append(message)

    def broadcasts(self, overhead: int, limit: int) -> Sequence[bytes]:
        taken, self.to_all = self.to_all, []
        return taken

    def has_broadcasts(self, fresh: bool) -> bool:
        return bool(self.to_all)

    def local_state(self, join: bool) -> bytes:
        return self.state

    def merge_remote_state(self, state: bytes, join: bool, now: float) -> None:
        self.merged.append(state)

    def ack_payload(self) -> bytes:
        return b"payload"

    def ping_complete(self, member: Member, rtt_s: float, payload: bytes, now: float) -> None:
        self.pings.append((member.name, rtt_s))

    def conflict(self, existing: Member, other: Member, now: float) -> None:
        self.conflicts.append((existing, other))

    def member_changed(self, event: MemberEvent, now: float) -> None:
        self.events.append((now, event.change, event.member.name))

    def of(self, name: str) -> list[Change]:
        return [change for _, change, about in self.events if about == name]


class Node:
    """One machine: its core, and whether it runs."""

    def __init__(self, name: str, address: Address) -> None:
        self.name, self.address = name, address
        self.up = False
        self.life = 0  # what belongs to an earlier one is not delivered
        self.wake_s = float("inf")
        self.swim: Swim = None  # type: ignore[assignment]  # set by Cluster.start
        self.seen: Recorder = Recorder()


class Cluster:
    """`loss` is of each packet; `cut(a, b)` says that nothing goes from a to b; `cut_udp` only packets."""

    def __init__(
        self,
        seed: int,
        *,
        profile: Profile = LAN,
        loss: float = 0.0,
        compress: bool = False,
        keys: Sequence[bytes] = (),
    ) -> None:
        self.random = random.Random(seed)
        self.profile, self.loss, self.compress, self.keys = profile, loss, compress, keys
        self.now = 0.0
        self.nodes: dict[str, Node] = {}
        self.at: dict[Address, Node] = {}
        self.cut: Callable[[Node, Node], bool] = lambda a, b: False
        self.cut_udp: Callable[[Node, Node], bool] = lambda a, b: False
        self.unsendable: Callable[[Node], bool] = lambda a: False
        self.counts: Counter[str] = Counter()
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self._serial = 0
        self._encoded = EncodedMembers()

    # Nodes

    def start(
        self,
        name: str,
        *,
        address: Address | None = None,
        incarnation: int | None = None,
        recorder: type[Recorder] = Recorder,
    ) -> Node:
        """A machine (again); its incarnation is from the clock unless it is given."""
        place = len(self.nodes)
        host = f"10.0.{place // 250}.{place % 250 + 1}"
        node = self.nodes.get(name) or Node(name, address or Address(host, 7946))
        if address is not None:
            self.at.pop(node.address, None)
            node.address = address
        self.nodes[name] = self.at[node.address] = node
        node.life += 1
        node.up = True
        node.wake_s = float("inf")
        node.seen = recorder()
        self._make(node, 1000 + int(self.now / 60) if incarnation is None else incarnation)
        node.swim.start(self.now)
        self.turn(node)
        return node

    def _make(self, node: Node, incarnation: int) -> None:
        counter = random.Random(self.random.random())
        envelope = Envelope(KeyRing(self.keys, counter.randbytes))
        config = SwimConfig(node.name, node.address, incarnation, self.profile, self.compress)
        source = random.Random(self.random.random())
        node.swim = Swim(config, node.seen, source, envelope, self.now, self._encoded)

    def formed(self, count: int, recorder: type[Recorder] = Recorder) -> list[Node]:
        """So many nodes that know each other already."""
        nodes = [self.start(f"n{number}", recorder=recorder) for number in range(count)]
        members = [node.swim.me for node in nodes]
        for node in nodes:
            node.swim.bootstrap(members)
        return nodes

    def kill(self, node: Node) -> None:
        node.up = False
        node.life += 1

    # Time

    def after(self, delay_s: float, action: Callable[[], None]) -> None:
        self._serial += 1
        heapq.heappush(self._heap, (self.now + delay_s, self._serial, action))

    def run(self, until_s: float) -> None:
        while self._heap and self._heap[0][0] <= until_s:
            self.now, _, action = heapq.heappop(self._heap)
            action()
        self.now = until_s

    def run_for(self, time_s: float) -> None:
        self.run(self.now + time_s)

    def until(self, true: Callable[[], bool], limit_s: float, step_s: float = 0.1) -> float:
        """Run until it is; how long it took. AssertionError if it takes too long."""
        began_s = self.now
        while not true():
            assert self.now - began_s < limit_s, f"not within {limit_s} s"
            self.run_for(step_s)
        return self.now - began_s

    def turn(self, node: Node) -> None:
        """What a shell does after each call of a core."""
        for output in node.swim.drain():
            if isinstance(output, SendPacket):
                self._packet(node, output)
            else:
                self._stream(node, output)
        due_s = node.swim.deadline()
        if due_s < node.wake_s:
            node.wake_s = due_s
            self.after(max(0.0, due_s - self.now), self._waker(node))

    def _waker(self, node: Node) -> Callable[[], None]:
        due_s, life = node.wake_s, node.life

        def wake() -> None:
            if node.wake_s == due_s:
                node.wake_s = float("inf")
            if node.life == life and node.up:
                node.swim.wake(self.now)
                self.turn(node)

        return wake

    # The network

    def _delay_s(self) -> float:
        return self.random.uniform(*LATENCY_S)

    def _packet(self, node: Node, output: SendPacket) -> None:
        self.counts["packets"] += 1
        self.counts["packet_bytes"] += len(output.data)
        if self.unsendable(node):
            node.swim.send_failed(output.to, self.now)
            return
        to = self.at.get(output.to)
        if to is None or not to.up or self.random.random() < self.loss or self.cut(node, to) or self.cut_udp(node, to):
            return
        life, source = to.life, node.address

        def deliver() -> None:
            if to.up and to.life == life:
                to.swim.receive(output.data, source, self.now)
                self.turn(to)

        self.after(self._delay_s(), deliver)

    def _stream(self, node: Node, output: OpenStream) -> None:
        self.counts["streams"] += 1
        self.counts["stream_bytes"] += len(output.data)
        to, life = self.at.get(output.to), node.life

        def finish(data: bytes | None, failure: StreamFailure | None) -> None:
            if node.up and node.life == life:
                message = None
                if data is not None:
                    reader = Reader(node.swim._outbox.envelope)
                    message = reader.message() if reader.feed(data) else None
                    failure = None if message is not None else StreamFailure.REMOTE
                node.swim.finish_stream(output.token, message, failure, self.now)
                self.turn(node)

        def arrive() -> None:
            assert to is not None
            answer = None
            if to.up:
                reader = Reader(to.swim._outbox.envelope)
                try:
                    if reader.feed(output.data):
                        answer = to.swim.accept_stream(reader.message(), node.address, self.now)
                        self.turn(to)
                except WireError:
                    pass
            if answer is not None:
                self.counts["stream_bytes"] += len(answer)
            failed = answer is None and (output.reply or not to.up)
            self.after(self._delay_s(), lambda: finish(answer, StreamFailure.REMOTE if failed else None))

        if self.unsendable(node):
            self.after(0.0, lambda: finish(None, StreamFailure.LOCAL))
        elif to is None or self.cut(node, to) or self.cut(to, node):
            self.after(output.timeout_s, lambda: finish(None, StreamFailure.REMOTE))
        else:
            self.after(2 * self._delay_s(), arrive)

    # What they see

    def up(self) -> list[Node]:
        return [node for node in self.nodes.values() if node.up]

    def agree(self, among: Iterable[Node] | None = None) -> bool:
        """Whether all of these see each other, and nobody else, alive."""
        nodes = list(self.up() if among is None else among)
        names = {node.name for node in nodes}
        return all(alive(node) == names for node in nodes)


def alive(node: Node) -> set[str]:
    """Whom a node sees alive and unsuspected."""
    return {member.name for member in node.swim.members() if member.state is State.ALIVE}


def member(
    name: str, port: int = 7946, incarnation: int = 1000, state: State = State.ALIVE, meta: bytes = b""
) -> Member:
    return Member(name, Address("10.1.0.1", port), meta, VERSIONS, incarnation, state, 0.0)
