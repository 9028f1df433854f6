"""Endpoint state of each node's own tasks, spread among nodes: whole snapshots, the newest wins. Pure; `now` passed in.

Each node is the only writer of its own `Snapshot`, numbered (epoch, version): the epoch grows with every boot, the
version with every change. What is absent is gone: no tombstones, and nothing can be resurrected. Three ways, all
idempotent, bring it to the others:

1. a change is pushed as a delta (or whole, if that is no longer) to a few peers, who pass it on, some times each;
2. a delta that does not fit what a node has makes it ask for the whole;
3. every `DIGEST_INTERVAL_S`, and when a peer joins, two nodes compare sums over all owners, then what differs, and
   do so again until they are told that nothing does.

It says nothing about who a task is: that is the store's. A task is named by `task_key` (8 bytes of a hash), and state
about tasks that the store has not placed on that owner means nothing. A shared gossip key gives no identity.
"""

from __future__ import annotations

import enum
import hashlib
import random
import struct
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import msgspec

KEY_BYTES = 8
# A message must fit into one packet beside gossip's own overhead (1400 bytes less encryption, label, compound).
MESSAGE_MAX = 1300
# Tasks of one owner. A snapshot of more than fit one message goes out in parts.
TASKS_MAX = 4096
OWNERS_MAX = 16384  # members of a cluster, see gossip.serf.roster
NAME_MAX = 128
# Each node sends a change this often: few are missed, and a digest brings it to those (docs/decisions/0024).
TRANSMITS, TRANSMITS_LARGE, LARGE_FROM = 12, 16, 100
PEERS_PER_ROUND = 3
ROUND_S = 0.2
DIGEST_INTERVAL_S = 10.0
# Up to four messages bring what is missing, so at 25 % loss a third of all digests do. Those that were not answered
# with "equal" are repeated; not for ever: while something changes all the time, something is always under way.
AGAIN_S = 2.0
DIGEST_TRIES = 4
# State of owners that are not there is kept this long, so that one that comes back unchanged is there at once.
HIDDEN_FOR_S = 1800.0
BUCKETS = 64  # sums of a digest: 64 x 8 bytes fit one packet, and one owner's change resends 1/64 of the details
# Answers to one message of a digest; the next round brings the rest.
REPLIES_MAX = 16
# An epoch or version above this is a lie: it could never be passed by the owner itself.
NUMBER_MAX = 1 << 62
# Parts of a large snapshot that are put together at once, over all owners.
PARTIAL_MAX = 256


class Health(enum.IntEnum):
    """Of one task, as its own node sees it."""

    READY = 0
    DRAINING = 1
    UNHEALTHY = 2


class TaskState(msgspec.Struct, frozen=True, gc=False):
    """What balancers need to know beside the store. `weight`: 0 to 65535, 100 is usual."""

    health: Health = Health.READY
    weight: int = 100


class Snapshot(msgspec.Struct, frozen=True):
    """All of one owner's tasks by `task_key`."""

    owner: str
    epoch: int
    version: int
    tasks: dict[bytes, TaskState]

    @property
    def number(self) -> tuple[int, int]:
        """Newer is greater."""
        return self.epoch, self.version

    def state_of(self, task_id: str) -> TaskState | None:
        """The state of a task, or None: the owner does not run it."""
        return self.tasks.get(task_key(task_id))


class Delta(msgspec.Struct, frozen=True):
    """What changed from `base` to `version` of the same epoch."""

    owner: str
    epoch: int
    base: int
    version: int
    set: dict[bytes, TaskState]
    gone: tuple[bytes, ...]


class EndpointChange(msgspec.Struct, frozen=True):
    """An owner's state is another one. `after` is None when it is forgotten; hidden owners are told of like others."""

    owner: str
    before: Snapshot | None
    after: Snapshot | None


class Send(msgspec.Struct, frozen=True):
    """A message for one peer."""

    to: str
    message: bytes


class EndpointError(ValueError):
    """What this node wants to say of itself cannot be said."""


class _Bad(Exception):
    """Bytes of a peer that mean nothing."""


def task_key(task_id: str) -> bytes:
    """How a task is named here."""
    return hashlib.blake2b(task_id.encode(), digest_size=KEY_BYTES).digest()


class _Type(enum.IntEnum):
    """First byte of a message; above all of Serf's, so that both share user messages."""

    SNAPSHOT = 0xE0
    DELTA = 0xE1
    ASK = 0xE2
    SUMS = 0xE3
    NUMBERS = 0xE4


TYPES = frozenset(_Type)
_HEAD = struct.Struct("!QQHHH")  # epoch, version, part, parts, records
_DELTA = struct.Struct("!QQQHH")  # epoch, base, version, set, gone
_RECORD = struct.Struct("!8sBH")
_NUMBER = struct.Struct("!8sQQ")  # hash of the owner's name, epoch, version
_PER_PART = (MESSAGE_MAX - 2 - NAME_MAX - _HEAD.size) // _RECORD.size
_PER_NUMBERS = (MESSAGE_MAX - 27 - NAME_MAX) // _NUMBER.size
_LOWEST, _HIGHEST = b"\0" * KEY_BYTES, b"\xff" * KEY_BYTES


class EndpointTable:
    """All owners' state as this node knows it, its own included, and what must be sent to whom."""

    def __init__(self, own: str, epoch: int, source: random.Random, now: float) -> None:
        """`epoch`: greater than that of any earlier boot, such as the seconds since 1970."""
        self.counts: Counter[str] = Counter()
        self._own = own
        self._random = source
        self._owners: dict[str, Snapshot] = {own: Snapshot(own, epoch, 0, {})}
        self._names: dict[bytes, str] = {_name_hash(own): own}
        self._gone: dict[str, float] = {}  # owners that are not there, and since when
        self._peers: list[str] = []
        self._pushes: dict[str, tuple[bytes, int]] = {}  # owner -> message, times left; own first, newest only
        self._partial: dict[tuple[str, int, int], dict[int, dict[bytes, TaskState]]] = {}
        self._changes: list[EndpointChange] = []
        self._sends: list[Send] = []
        self._next_round_s = now
        self._next_digest_s = now + source.uniform(0, DIGEST_INTERVAL_S)
        self._tries = 0  # of the digest under way
        self._asked = ""  # the peer of the last one
        self._differing = ""  # one that is known to differ, "" nobody

    # Commands

    def set_local(self, tasks: Mapping[str, TaskState]) -> bool:
        """All tasks of this node by id; whether that is news. Raises EndpointError."""
        if len(tasks) > TASKS_MAX:
            raise EndpointError(f"a node has at most {TASKS_MAX} tasks, not {len(tasks)}")
        keyed = {task_key(task_id): state for task_id, state in tasks.items()}
        before = self._owners[self._own]
        if keyed == before.tasks:
            return False
        self._advance(before.epoch, before.version + 1, keyed)
        return True

    def set_peers(self, names: Iterable[str], now: float) -> None:
        """The members that are there and speak this protocol. New ones are compared with at once."""
        before, there = set(self._peers), set(names) - {self._own}
        names = sorted(there)
        new = [name for name in names if name not in before]
        for name in before - there:
            self._gone.setdefault(name, now)
        self._peers = names
        for name in names:
            self._gone.pop(name, None)
        # Who joins meets many; that a few of them compare with it is enough.
        if new and self._random.random() < PEERS_PER_ROUND / len(names):
            self._sends.append(Send(self._random.choice(new), self._sums_message()))

    def receive(self, message: bytes, now: float) -> None:
        """A message of a peer."""
        try:
            kind, rest = message[0], message[1:]
            match kind:
                case _Type.SNAPSHOT:
                    self._take_part(rest, now)
                case _Type.DELTA:
                    self._take_delta(rest, now)
                case _Type.ASK:
                    self._take_ask(rest)
                case _Type.SUMS:
                    self._take_sums(rest)
                case _Type.NUMBERS:
                    self._take_numbers(rest, now)
                case _:
                    raise _Bad("type")
        except (_Bad, struct.error, UnicodeDecodeError, IndexError):
            self.counts["bad_messages"] += 1

    def wake(self, now: float) -> None:
        """Time has passed."""
        if now >= self._next_round_s:
            self._next_round_s = now + ROUND_S
            self._push_round()
        if now >= self._next_digest_s:
            self._forget(now)
            self._compare(now)

    def _compare(self, now: float) -> None:
        self._tries = (self._tries + 1) % DIGEST_TRIES if self._peers else 0
        self._next_digest_s = now + (AGAIN_S if self._tries else DIGEST_INTERVAL_S)
        if self._peers:
            known = self._differing in self._peers
            self._asked = self._differing if known else self._random.choice(self._peers)
            self._differing = ""
            self._sends.append(Send(self._asked, self._sums_message()))

    def deadline(self) -> float:
        """When `wake` wants to be called."""
        return min(self._next_round_s, self._next_digest_s) if self._pushes else self._next_digest_s

    def drain(self) -> tuple[list[Send], list[EndpointChange]]:
        """What to send, and what has changed."""
        sends, changes = self._sends, self._changes
        self._sends, self._changes = [], []
        return sends, changes

    # Looking

    def get(self, owner: str) -> Snapshot | None:
        """The state of an owner that is there (or of this node); None: not there, or nothing known."""
        return None if owner in self._gone else self._owners.get(owner)

    def visible(self) -> dict[str, Snapshot]:
        """The state of all owners that are there."""
        return {name: snapshot for name, snapshot in self._owners.items() if name not in self._gone}

    def stats(self) -> dict[str, int]:
        """Numbers for operators."""
        tasks = sum(len(snapshot.tasks) for snapshot in self._owners.values())
        return {"owners": len(self._owners), "tasks": tasks, "hidden": len(self._gone), **self.counts}

    # Sending

    def _advance(self, epoch: int, version: int, tasks: dict[bytes, TaskState]) -> None:
        before = self._owners[self._own]
        after = self._owners[self._own] = Snapshot(self._own, epoch, version, tasks)
        self._changes.append(EndpointChange(self._own, before, after))
        self._pushes.pop(self._own, None)
        for message in _best(before, after):
            # Only what fits one packet is pushed; the rest is asked for after comparing.
            self._pushes = {self._own: (message, self._transmits()), **self._pushes}

    def _transmits(self) -> int:
        return TRANSMITS if len(self._peers) < LARGE_FROM else TRANSMITS_LARGE

    def _push_round(self) -> None:
        if not self._peers:
            return
        peers = self._random.sample(self._peers, min(PEERS_PER_ROUND, len(self._peers)))
        for peer in peers:
            room = MESSAGE_MAX
            for owner, (message, left) in list(self._pushes.items()):
                if len(message) > room:
                    continue
                room -= len(message)
                self._sends.append(Send(peer, message))
                if left <= 1:
                    del self._pushes[owner]
                else:
                    self._pushes[owner] = (message, left - 1)

    def _sums_message(self) -> bytes:
        return bytes((_Type.SUMS,)) + _text(self._own) + b"".join(self._sums())

    def _sums(self) -> list[bytes]:
        sums = [0] * BUCKETS
        for name_hash, name in self._names.items():
            snapshot = self._owners[name]
            number = _NUMBER.pack(name_hash, snapshot.epoch, snapshot.version)
            digest = hashlib.blake2b(number, digest_size=8).digest()
            sums[name_hash[0] % BUCKETS] ^= int.from_bytes(digest, "big")
        return [value.to_bytes(8, "big") for value in sums]

    def _reply(self, to: str, messages: Sequence[bytes]) -> None:
        if to in self._peers:
            self._sends += [Send(to, message) for message in messages[:REPLIES_MAX]]
        else:
            self.counts["strangers"] += 1

    # Receiving

    def _take_part(self, data: bytes, now: float) -> None:
        owner, data = _read_text(data)
        epoch, version, part, parts, count = _HEAD.unpack_from(data)
        tasks = _read_records(data[_HEAD.size :], count)
        if not 0 <= part < parts <= TASKS_MAX // _PER_PART + 1:
            raise _Bad("parts")
        if not self._wanted(owner, epoch, version):
            return
        if parts > 1:
            key = (owner, epoch, version)
            if key not in self._partial and len(self._partial) >= PARTIAL_MAX:
                self._partial.pop(next(iter(self._partial)))
            have = self._partial.setdefault(key, {})
            have[part] = tasks
            if len(have) < parts:
                return
            tasks = {key: state for piece in self._partial.pop(key).values() for key, state in piece.items()}
        self._accept(Snapshot(owner, epoch, version, tasks), now)

    def _take_delta(self, data: bytes, now: float) -> None:
        sender, data = _read_text(data)
        owner, data = _read_text(data)
        epoch, base, version, count, gone_count = _DELTA.unpack_from(data)
        data = data[_DELTA.size :]
        changed = _read_records(data[: count * _RECORD.size], count)
        gone = data[count * _RECORD.size :]
        if len(gone) != gone_count * KEY_BYTES:
            raise _Bad("length")
        if not self._wanted(owner, epoch, version):
            return
        before = self._owners.get(owner)
        if before is None or before.number != (epoch, base):
            self._reply(sender, [_ask(self._own, [owner])])
            return
        tasks = {**before.tasks, **changed}
        for at in range(0, len(gone), KEY_BYTES):
            tasks.pop(gone[at : at + KEY_BYTES], None)
        self._accept(Snapshot(owner, epoch, version, tasks), now)

    def _wanted(self, owner: str, epoch: int, version: int) -> bool:
        """Whether it is newer than what is known, and can be believed."""
        if epoch > NUMBER_MAX or version > NUMBER_MAX:
            raise _Bad("number")
        known = self._owners.get(owner)
        if known is not None and (epoch, version) <= known.number:
            return False
        if owner == self._own:
            # Somebody remembers more of us than we do: a clock went back, or a lie. We are the writer: go past it.
            self.counts["overtaken"] += 1
            self._advance(epoch + 1, 1, self._owners[self._own].tasks)
            return False
        if known is None and len(self._owners) >= OWNERS_MAX:
            self.counts["no_room"] += 1
            return False
        return True

    def _accept(self, after: Snapshot, now: float) -> None:
        if len(after.tasks) > TASKS_MAX:
            raise _Bad("tasks")
        before = self._owners.get(after.owner)
        name_hash = _name_hash(after.owner)
        if self._names.setdefault(name_hash, after.owner) != after.owner:
            self.counts["hash_clash"] += 1
            return
        self._owners[after.owner] = after
        if after.owner not in self._peers:
            self._gone.setdefault(after.owner, now)  # heard of by others before it was met, or after it left
        self._changes.append(EndpointChange(after.owner, before, after))
        for message in _best(before, after):
            self._pushes[after.owner] = (message, self._transmits())

    def _take_ask(self, data: bytes) -> None:
        sender, data = _read_text(data)
        wanted: list[bytes] = []
        while data:
            owner, data = _read_text(data)
            if (snapshot := self._owners.get(owner)) is not None:
                wanted += _parts(snapshot)
        self._reply(sender, wanted)

    def _take_sums(self, data: bytes) -> None:
        sender, data = _read_text(data)
        if len(data) != BUCKETS * 8:
            raise _Bad("sums")
        differ = {b for b, mine in enumerate(self._sums()) if data[b * 8 : b * 8 + 8] != mine}
        if differ:
            self.counts["digests_differ"] += 1
            self._reply(sender, self._numbers_messages(differ, last=False))
        else:
            self._reply(sender, [self._numbers(0, _LOWEST, _HIGHEST, (), True)])

    def _numbers_messages(self, buckets: set[int], *, last: bool) -> list[bytes]:
        """What is known in these buckets: each message is complete for its buckets and its range of hashes.

        `last`: the peer must not answer with numbers again, so that two nodes cannot go on for ever.
        """
        known: dict[int, list[bytes]] = {bucket: [] for bucket in buckets}
        for name_hash in self._names:
            if name_hash[0] % BUCKETS in known:
                known[name_hash[0] % BUCKETS].append(name_hash)
        order = sorted(buckets)
        self._random.shuffle(order)  # so that a cluster too large for one round is through after a few
        messages: list[bytes] = []
        named, together = 0, list[bytes]()
        for bucket in order:
            hashes = known[bucket]
            if len(hashes) > _PER_NUMBERS:
                messages += self._numbers_in_ranges(bucket, sorted(hashes), last)
                continue
            if len(together) + len(hashes) > _PER_NUMBERS:
                messages.append(self._numbers(named, _LOWEST, _HIGHEST, together, last))
                named, together = 0, []
            named |= 1 << bucket
            together += hashes
        if named:
            messages.append(self._numbers(named, _LOWEST, _HIGHEST, together, last))
        return messages

    def _numbers_in_ranges(self, bucket: int, hashes: list[bytes], last: bool) -> list[bytes]:
        pieces = [hashes[at : at + _PER_NUMBERS] for at in range(0, len(hashes), _PER_NUMBERS)]
        lows = [_LOWEST, *(piece[0] for piece in pieces[1:])]
        highs = [*(_before(piece[0]) for piece in pieces[1:]), _HIGHEST]
        return [self._numbers(1 << bucket, *bounds, last) for bounds in zip(lows, highs, pieces, strict=True)]

    def _numbers(self, named: int, low: bytes, high: bytes, hashes: Sequence[bytes], last: bool) -> bytes:
        entries = [(h, self._owners[self._names[h]]) for h in hashes]
        head = bytes((_Type.NUMBERS, last)) + _text(self._own) + named.to_bytes(8, "big") + low + high
        return head + b"".join(_NUMBER.pack(h, snapshot.epoch, snapshot.version) for h, snapshot in entries)

    def _take_numbers(self, data: bytes, now: float) -> None:
        """A peer's numbers: send what it has older or not at all, ask for what it has newer. Of no bucket: "equal"."""
        last = data[0]
        sender, data = _read_text(data[1:])
        named, low, high, data = int.from_bytes(data[:8], "big"), data[8:16], data[16:24], data[24:]
        if len(data) % _NUMBER.size or len(high) != KEY_BYTES:
            raise _Bad("numbers")
        if sender == self._asked:
            self._asked, self._differing = "", sender if named else ""
            if not named:
                self._tries, self._next_digest_s = 0, now + DIGEST_INTERVAL_S
        theirs = {h: (epoch, version) for h, epoch, version in _NUMBER.iter_unpack(data)}
        replies: list[bytes] = []
        for name_hash, name in self._names.items():
            inside = named >> (name_hash[0] % BUCKETS) & 1 and low <= name_hash <= high
            if inside and theirs.get(name_hash, (-1, -1)) < self._owners[name].number:
                replies += _parts(self._owners[name])
        self._random.shuffle(replies)
        newer = {h[0] % BUCKETS for h, number in theirs.items() if self._number_of(h) < number}
        if newer and not last:
            # A hash does not tell the name; our numbers of those buckets make the peer send what it has newer.
            replies = self._numbers_messages(newer, last=True)[: REPLIES_MAX // 2] + replies
        self._reply(sender, replies)

    def _number_of(self, name_hash: bytes) -> tuple[int, int]:
        name = self._names.get(name_hash)
        return self._owners[name].number if name is not None else (-1, -1)

    def _forget(self, now: float) -> None:
        for owner in [name for name, since in self._gone.items() if now - since > HIDDEN_FOR_S]:
            del self._gone[owner]
            before = self._owners.pop(owner, None)
            self._names.pop(_name_hash(owner), None)
            self._pushes.pop(owner, None)
            if before is not None:
                self._changes.append(EndpointChange(owner, before, None))


def _best(before: Snapshot | None, after: Snapshot) -> list[bytes]:
    """The one message that brings the change: a delta if that is shorter; none if neither fits."""
    whole = _parts(after)
    candidates = whole if len(whole) == 1 else []
    if before is not None and before.epoch == after.epoch:
        delta = _delta_message(before, after)
        if len(delta) <= MESSAGE_MAX and (not candidates or len(delta) < len(candidates[0])):
            candidates = [delta]
    return candidates


def _delta_message(before: Snapshot, after: Snapshot) -> bytes:
    changed = {key: state for key, state in after.tasks.items() if before.tasks.get(key) != state}
    gone = [key for key in before.tasks if key not in after.tasks]
    head = _DELTA.pack(after.epoch, before.version, after.version, len(changed), len(gone))
    names = _text(after.owner) + _text(after.owner)  # who to ask for the whole: the owner knows it best
    return bytes((_Type.DELTA,)) + names + head + _records(changed) + b"".join(gone)


def _parts(snapshot: Snapshot) -> list[bytes]:
    items = list(snapshot.tasks.items())
    pieces = [dict(items[at : at + _PER_PART]) for at in range(0, len(items), _PER_PART)] or [{}]
    return [
        bytes((_Type.SNAPSHOT,))
        + _text(snapshot.owner)
        + _HEAD.pack(snapshot.epoch, snapshot.version, part, len(pieces), len(piece))
        + _records(piece)
        for part, piece in enumerate(pieces)
    ]


def _ask(sender: str, owners: Sequence[str]) -> bytes:
    return bytes((_Type.ASK,)) + _text(sender) + b"".join(_text(owner) for owner in owners)


def _records(tasks: Mapping[bytes, TaskState]) -> bytes:
    return b"".join(_RECORD.pack(key, state.health, state.weight) for key, state in tasks.items())


def _read_records(data: bytes, count: int) -> dict[bytes, TaskState]:
    if len(data) != count * _RECORD.size:
        raise _Bad("length")
    try:
        return {key: TaskState(Health(health), weight) for key, health, weight in _RECORD.iter_unpack(data)}
    except ValueError as error:
        raise _Bad("health") from error


def _text(text: str) -> bytes:
    data = text.encode("utf-8", "surrogateescape")
    return bytes((len(data),)) + data


def _read_text(data: bytes) -> tuple[str, bytes]:
    size = data[0]
    if size > NAME_MAX or size == 0 or len(data) < 1 + size:
        raise _Bad("name")
    return data[1 : 1 + size].decode("utf-8", "surrogateescape"), data[1 + size :]


def _before(name_hash: bytes) -> bytes:
    return (int.from_bytes(name_hash, "big") - 1).to_bytes(KEY_BYTES, "big")


def _name_hash(name: str) -> bytes:
    return hashlib.blake2b(name.encode("utf-8", "surrogateescape"), digest_size=8).digest()
