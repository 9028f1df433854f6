"""The name server as the daemon holds it: opens sockets, feeds the serving process, starts it anew when it dies.

Listening sockets are opened here, in the namespaces of the networks, and lent to the serving process: they outlive it,
so that questions asked while it is started anew wait in them and are answered, and it needs no privileges. A namespace
that was made anew gets new sockets; one that cannot be entered is reported, and tried again.

Tasks (asyncio), all in the TaskGroup of `run`: one keeps the sockets as the plan wants them, one keeps the process
alive; that one has, for each process, a feeder, a reader and a watcher. `run` ends by cancellation only.

A process dies with its daemon (it sees the socket pair closed), unless it is told to outlive it: then it answers what
it was told last until the process of the next daemon serves, which shares the port with it meanwhile, and is ended
then. So containers find each other while the daemon is restarted, or stopped.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path

from dns import feed, kernel
from dns.legacy import Legacy
from dns.plan import DEFAULT_TTL_S, Address, DnsPlan, Listener
from dns.records import parse_records, records_zone
from dns.resolver import Explanation, Line, Resolver, dump
from dns.server import Server
from dns.upstreams import BEHIND_STUB, FILE_MAX, STUBS, Upstream, parse_resolv_conf, parse_upstream

log = logging.getLogger(__name__)

# How long `apply` waits for the new answers to be served. The plan is taken all the same; it is only not yet known.
APPLY_WAIT_S = 1.0
# Namespaces are looked at this often for having been made anew, sockets that could not be opened are tried again, and
# resolv.conf is looked at: programs replace it by renaming, which a watch on the file does not see.
SOCKETS_S = 1.0
# A process that says nothing for this long (it sends its counters every STATS_S) is stuck, and started anew.
SILENCE_MAX_S = 15.0
# Starting anew: at once the first time, then more and more slowly while it keeps dying.
BACKOFF_MIN_S, BACKOFF_MAX_S = 0.05, 5.0
# A process that lived this long died of something new.
HEALTHY_S = 10.0
STOP_WAIT_S = 1.0
STOP_POLL_S = 0.01
# More would not be served faster by any machine this is made for, and each holds a zone and a cache of its own.
PROCESSES_MAX = 16

_BOOT = "import sys; sys.path[:0] = [sys.argv.pop(1)]; from dns.server import main; main(sys.argv[1:])"


@dataclass(frozen=True, slots=True)
class Status:
    """For `mesh dns status` and metrics."""

    pid: int | None  # of the first process
    current: bool  # the newest plan is served
    restarts: int
    listeners: int
    problems: tuple[str, ...]  # sentences about sockets that could not be opened
    upstreams: tuple[str, ...]
    counters: dict[str, int]  # since the processes began, added up, and how often they began anew
    levels: dict[str, int]  # as of now, added up


@dataclass(slots=True)
class _Upstreams:
    """Where the addresses of other servers come from: fixed ones, or resolv.conf, read again when it changes.

    Where resolv.conf names only the stub of systemd-resolved, those behind it are asked: the stub may be set to ask us.
    """

    _file: _File
    _behind_stub: _File
    fixed: tuple[Upstream, ...] = ()

    def read(self) -> tuple[Upstream, ...]:
        """The servers as of now."""
        if self.fixed:
            return self.fixed
        found = self._file.read()
        if found and all(server.address in STUBS for server in found):
            return self._behind_stub.read() or found
        return found


@dataclass(slots=True)
class _File:
    """One resolv.conf, read again when it changes."""

    path: str
    _seen: tuple[int, int, int] | None = None
    _found: tuple[Upstream, ...] = ()

    def read(self) -> tuple[Upstream, ...]:
        """What it says; while it is being replaced, or gone, what it said last."""
        with contextlib.suppress(OSError):
            stat = os.stat(self.path)
            seen = stat.st_ino, stat.st_mtime_ns, stat.st_size
            if seen != self._seen:
                with open(self.path, "rb") as file:
                    self._found = parse_resolv_conf(file.read(FILE_MAX).decode("utf-8", "replace"))
                self._seen = seen
        return self._found


@dataclass(slots=True)
class _Open:
    """Sockets of one listener: a pair for each process."""

    number: int
    listener: Listener
    namespace: tuple[int, int]
    pairs: list[_Pair]

    def close(self) -> None:
        for pair in self.pairs:
            for sock in pair:
                sock.close()


@dataclass(slots=True)
class _Worker:
    """One of the processes that share the port, whichever process it is at the time."""

    index: int
    wanted: asyncio.Event = field(default_factory=asyncio.Event)  # there is something to tell it
    pid: int | None = None
    starts: int = 0
    applied: int = -1  # the newest plan it serves
    counters: dict[str, int] = field(default_factory=dict)
    levels: dict[str, int] = field(default_factory=dict)
    asked: tuple[str, ...] = ()  # its upstreams


@dataclass(slots=True)
class _Process:
    """What one serving process was told so far."""

    worker: _Worker
    sock: socket.socket
    told: DnsPlan = field(default_factory=DnsPlan)
    upstreams: tuple[Upstream, ...] = ()
    lent: set[int] = field(default_factory=set)
    heard_s: float = 0.0


class NameServer:
    """The name server of a node. `apply` may be called before and while `run` runs."""

    def __init__(
        self,
        *,
        resolv_conf: str = "/etc/resolv.conf",
        upstreams: tuple[str, ...] = (),
        processes: int = 1,
        outlive: Path | None = None,
    ) -> None:
        """`upstreams` (ADDRESS or ADDRESS:PORT) replace those of `resolv_conf`. Raises ValueError.

        More than one of `processes` share the port; the kernel gives each client's socket to one of them. With
        `outlive`, a directory in which to note them, they serve on when this daemon ends.
        """
        if not 1 <= processes <= PROCESSES_MAX:
            raise ValueError(f"1 to {PROCESSES_MAX} processes can serve names, not {processes}")
        self._upstreams = _Upstreams(
            _File(resolv_conf), _File(BEHIND_STUB), fixed=tuple(map(parse_upstream, upstreams))
        )
        self._servers = self._upstreams.read()
        self._plan = DnsPlan()
        self._generation = 0
        self._running = False
        self._open: dict[Listener, _Open] = {}
        self._numbers = 0
        self._problems: dict[Listener, str] = {}
        self._sockets_wanted = asyncio.Event()  # the listeners of the plan changed
        self._heard = asyncio.Condition()
        self._workers = [_Worker(i) for i in range(processes)]
        self._legacy = Legacy(outlive) if outlive is not None else None

    async def apply(self, plan: DnsPlan) -> None:
        """Serve this plan. Returns when it is served, or after APPLY_WAIT_S."""
        if plan is self._plan:
            return
        self._plan = plan
        self._generation += 1
        generation = self._generation
        self._sockets_wanted.set()
        self._tell()
        if not self._running:
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(APPLY_WAIT_S), self._heard:
                await self._heard.wait_for(lambda: self._served >= generation)

    @property
    def _served(self) -> int:
        """The newest plan that all processes serve."""
        return min(worker.applied for worker in self._workers)

    def _tell(self) -> None:
        for worker in self._workers:
            worker.wanted.set()

    async def run(self) -> None:
        """Serve until cancelled."""
        self._running = True
        if self._legacy is not None:
            self._legacy.find()
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._keep_sockets())
                for worker in self._workers:
                    group.create_task(self._keep_process(worker))
        finally:
            self._running = False
            for opened in self._open.values():
                opened.close()
            self._open.clear()

    def status(self) -> Status:
        """What it does and what it cannot do."""
        counters: Counter[str] = Counter()
        levels: Counter[str] = Counter()
        for worker in self._workers:
            counters.update(worker.counters)
            levels.update(worker.levels)
        restarts = sum(max(0, worker.starts - 1) for worker in self._workers)
        return Status(
            pid=self._workers[0].pid,
            current=self._served >= self._generation,
            restarts=restarts,
            listeners=len(self._open),
            problems=tuple(self._problems.values()),
            upstreams=self._workers[0].asked,
            counters={**counters, "restarts": restarts},
            levels=dict(levels),
        )

    def explain(self, name: str, qtype: int, network_id: str | None, client: Address | None = None) -> Explanation:
        """How a client on a network (None: the host) is answered, and why. Raises dns.wire.WireError."""
        resolver = Resolver(random.Random(0))
        resolver.load(self._plan)
        return resolver.explain(name, qtype, network_id, client)

    def dump(self) -> list[Line]:
        """All names that are served, for people."""
        resolver = Resolver(random.Random(0))
        resolver.load(self._plan)
        return list(dump(resolver.zone))

    # --- sockets ----------------------------------------------------------------------------------------------------

    async def _keep_sockets(self) -> None:
        while True:
            self._sockets_wanted.clear()
            before, self._servers = self._servers, self._upstreams.read()
            if await self._sync_sockets() or before != self._servers:
                self._tell()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(SOCKETS_S):
                    await self._sockets_wanted.wait()

    async def _sync_sockets(self) -> bool:
        """Open and close sockets as the plan wants. Whether anything changed."""
        before = set(self._open), dict(self._problems)
        wanted = dict.fromkeys(self._plan.listeners)
        gone = [o for o in self._open.values() if o.listener not in wanted or o.namespace != _namespace(o.listener)]
        for opened in gone:  # first: their addresses may be wanted again, and they would keep a namespace alive
            del self._open[opened.listener]
            opened.close()
        for listener in [known for known in self._problems if known not in wanted]:
            del self._problems[listener]
        missing = [listener for listener in wanted if listener not in self._open]
        if missing:
            # A new thread each time: one that could not find back into its namespace is not used again.
            with ThreadPoolExecutor(max_workers=1, thread_name_prefix="dns-sockets") as thread:
                made = await asyncio.get_running_loop().run_in_executor(thread, _open_all, missing, len(self._workers))
            for listener, result in made:
                self._opened(listener, result)
        return bool(gone) or before != (set(self._open), self._problems)

    def _opened(self, listener: Listener, result: _Sockets | str) -> None:
        if isinstance(result, str):
            if self._problems.get(listener) != result:
                log.warning("cannot serve names", extra={"problem": result})
            self._problems[listener] = result
            return
        self._problems.pop(listener, None)
        self._numbers += 1
        self._open[listener] = _Open(self._numbers, listener, *result)

    # --- the process ------------------------------------------------------------------------------------------------

    async def _keep_process(self, worker: _Worker) -> None:
        backoff_s = 0.0
        while True:
            began_s = time.monotonic()
            why = await self._one_process(worker)
            if time.monotonic() - began_s > HEALTHY_S:
                backoff_s = 0.0
            log.warning("the name server ended, and is started anew", extra={"why": why, "after_s": backoff_s})
            await asyncio.sleep(backoff_s)
            backoff_s = min(BACKOFF_MAX_S, max(BACKOFF_MIN_S, backoff_s * 2))

    async def _one_process(self, worker: _Worker) -> str:
        """Start a process and feed it until it ends. Returns why it did."""
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        try:
            with theirs:
                child = self._spawn(theirs)
        except OSError as error:
            ours.close()
            return f"cannot start it: {error.strerror}"
        worker.pid = child.pid
        if self._legacy is not None:
            self._legacy.note(worker.index, child.pid)
        worker.starts += 1
        process = _Process(worker, ours, heard_s=time.monotonic())
        left = True  # cancelled: by the end of the daemon
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._feed(process))
                group.create_task(self._read(process))
                group.create_task(_watch_silence(process))
        except* (OSError, feed.FeedError, _Silent) as errors:
            why = "; ".join(str(error) for error in errors.exceptions) or "it closed its connection"
            left = False
        finally:
            worker.pid, worker.applied = None, -1
            ours.close()
            if not left or self._legacy is None:
                await asyncio.shield(_end(child))
        return f"{why} (exit code {child.returncode})"

    def _spawn(self, sock: socket.socket) -> subprocess.Popen[bytes]:
        """Not by asyncio, which kills its children when its loop is closed."""
        root = str(Path(__file__).resolve().parent.parent)
        outlive = str(int(self._legacy is not None))
        return subprocess.Popen(
            [sys.executable, "-I", "-c", _BOOT, root, str(sock.fileno()), str(os.getpid()), outlive],
            stdin=subprocess.DEVNULL, pass_fds=(sock.fileno(),), cwd="/",
        )  # fmt: skip

    async def _feed(self, process: _Process) -> None:
        """Tell the process what changed, again and again."""
        loop, worker = asyncio.get_running_loop(), process.worker
        while True:
            worker.wanted.clear()
            plan, generation, opened = self._plan, self._generation, {o.number: o for o in self._open.values()}
            pending = bytearray()
            if process.upstreams != self._servers:
                process.upstreams = self._servers
                servers = tuple((u.address, u.port, u.scope) for u in self._servers)
                pending += feed.encode(feed.SetUpstreams(servers))
            for number in process.lent - opened.keys():
                pending += feed.encode(feed.DropListener(number))
                process.lent.discard(number)
            for message in feed.changes(process.told, plan):
                pending += feed.encode(message)
                if len(pending) > feed.MESSAGE_MAX:
                    await loop.sock_sendall(process.sock, pending)
                    pending = bytearray()
            process.told = plan
            await loop.sock_sendall(process.sock, pending)
            for number in sorted(opened.keys() - process.lent):
                await _lend(process.sock, opened[number], worker.index)
                process.lent.add(number)
            if generation == 0 or all(x in self._open or x in self._problems for x in plan.listeners):
                await loop.sock_sendall(process.sock, feed.encode(feed.Commit(generation)))
            await worker.wanted.wait()

    async def _read(self, process: _Process) -> None:
        loop, frames = asyncio.get_running_loop(), feed.Frames()
        while data := await loop.sock_recv(process.sock, 65536):
            process.heard_s = time.monotonic()
            frames.feed(data)
            while (frame := frames.next()) is not None:
                match feed.decode_from_server(frame):
                    case feed.Applied(number):
                        async with self._heard:
                            process.worker.applied = number
                            self._heard.notify_all()
                        if self._legacy is not None and self._served > 0:
                            self._legacy.end()
                    case feed.Stats(counters, levels, upstreams):
                        process.worker.counters, process.worker.levels = counters, levels
                        process.worker.asked = upstreams
        raise ConnectionResetError("it closed its connection")


class _Silent(Exception):
    """The process says nothing any more."""


async def _watch_silence(process: _Process) -> None:
    while True:
        left_s = process.heard_s + SILENCE_MAX_S - time.monotonic()
        if left_s <= 0:
            break
        await asyncio.sleep(left_s)
    raise _Silent(f"it was silent for {SILENCE_MAX_S:.0f} s")


async def _end(child: subprocess.Popen[bytes]) -> None:
    """The process ends by itself when its connection is closed; if not, it is killed."""
    deadline_s = time.monotonic() + STOP_WAIT_S
    child.terminate()  # one that would outlive us; the others ignore it
    while child.poll() is None and time.monotonic() < deadline_s:  # noqa: ASYNC110 - bounded, and nobody tells us
        await asyncio.sleep(STOP_POLL_S)
    if child.poll() is None:
        child.kill()
        await asyncio.to_thread(child.wait)


async def _lend(sock: socket.socket, opened: _Open, index: int) -> None:
    """Send a pair of sockets with the message that says what they are for."""
    listener, pair = opened.listener, opened.pairs[index]
    data = feed.encode(
        feed.AddListener(
            opened.number, listener.network_id, str(listener.address), listener.port, listener.netns is None
        )
    )
    while True:
        if pair[0].fileno() < 0:  # closed while we waited: told with the next round
            return
        try:
            sent = socket.send_fds(sock, [data], [made.fileno() for made in pair])
            break
        except BlockingIOError:
            await _writable(sock)
    await asyncio.get_running_loop().sock_sendall(sock, data[sent:])


async def _writable(sock: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    ready: asyncio.Future[None] = loop.create_future()
    loop.add_writer(sock, lambda: None if ready.done() else ready.set_result(None))
    try:
        await ready
    finally:
        loop.remove_writer(sock)


_Pair = tuple[socket.socket, socket.socket]  # UDP, TCP
_Sockets = tuple[tuple[int, int], list[_Pair]]


def _namespace(listener: Listener) -> tuple[int, int] | None:
    return kernel.namespace_id(listener.netns)


def _open_all(listeners: list[Listener], pairs: int) -> list[tuple[Listener, _Sockets | str]]:
    """Sockets, or a sentence, for each. Runs in a thread."""
    return [(listener, _open_one(listener, pairs)) for listener in listeners]


def _open_one(listener: Listener, pairs: int) -> _Sockets | str:
    namespace = _namespace(listener)
    try:
        if namespace is None:
            raise FileNotFoundError(2, "its network namespace is not there")
        made = kernel.inside(listener.netns, lambda: kernel.sharing(str(listener.address), listener.port, pairs))
    except OSError as error:
        where = f" in {listener.netns}" if listener.netns else ""
        return f"cannot listen on {listener.address} port {listener.port}{where}: {error.strerror}"
    return namespace, made


# --- alone --------------------------------------------------------------------------------------------------------


def serve_records(
    path: str, host: str, port: int, *, upstreams: tuple[str, ...] = (), ttl_s: int = DEFAULT_TTL_S
) -> None:
    """`mesh dns serve`: answer with the records of a file until SIGTERM or SIGINT, without a daemon.

    Names that are not in it are forwarded to `upstreams`, where there are some. Raises OSError (no file, no such
    address), dns.records.RecordsError, ValueError (upstreams).
    """
    records = parse_records(Path(path).read_text(encoding="utf-8"))
    server = Server(time.monotonic, random.SystemRandom().getrandbits)
    server.set_upstreams(tuple(map(parse_upstream, upstreams)))
    zone = records_zone(records, ttl_s)
    server.resolver.add_zone(zone)
    udp, tcp = kernel.listening(host, port)
    server.add_listener(1, udp, tcp, zone.id)
    server.add_own(1, ip_address(host), port)
    stopped: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda received, _frame: stopped.append(received))
    while not stopped:
        server.turn()
    server.drop_listener(1)
