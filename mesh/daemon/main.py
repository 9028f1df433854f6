"""`meshd`: reads its configuration, takes its state directory, and runs a node until SIGTERM.

Ends in order on SIGTERM or SIGINT: the session is closed, then the API. Tasks, VIPs and routes stay: the next start
adopts them. A failed component ends the process with its whole exception group, and systemd starts it anew.
"""

from __future__ import annotations

import asyncio
import faulthandler
import fcntl
import logging
import os
import shutil
import signal
import sys
import time
from pathlib import Path

import msgspec

from control.home import HomeError
from control.manager import ManagerError
from control.model import NodeDescription, TunnelKey
from dns.service import NameServer
from gossip.agent_network import socket_network
from mesh import machine
from mesh.agent.agent import Doors
from mesh.agent.gossip import GossipDoor
from mesh.config import Config, ConfigError, load_config
from mesh.daemon import offline
from mesh.daemon.identity import IdentityError
from mesh.daemon.node import Node
from mesh.daemon.notify import notify, watchdog_interval_s
from mesh.daemon.scrape import serve_metrics
from mesh.daemon.secrecy import forbid_dumps
from mesh.executor.docker.both import BothExecutors
from mesh.executor.docker.engine import Engine, local_socket
from mesh.executor.docker.executor import DockerExecutor
from mesh.executor.process import ProcessExecutor
from mesh.executor.protocol import Executor
from mesh.log import setup_logging
from mesh.metrics import Metrics
from mesh.plugin.plugin import Plugin
from mesh.vip.kernel import Kernel as VipKernel
from mesh.vip.nft import VipError
from overlay import wireguard
from overlay.kernel import Kernel as OverlayKernel
from overlay.keys import KeyFile, told
from overlay.watch import Watch

log = logging.getLogger("meshd")

# A turn of the event loop longer than this is logged: a slow loop makes a node look dead.
SLOW_TURN_S = 0.1
_LAG_PERIOD_S = 0.5
# How long a thread may hold the interpreter when another wants it. With Python's 5 ms a busy loop makes the log's
# writer thread wait ten times as long as the disk takes.
SWITCH_INTERVAL_S = 0.0005


class StartError(Exception):
    """The daemon cannot run here. One sentence for the user."""


def main() -> None:
    """Entry point of the `meshd` command."""
    faulthandler.enable()  # a crash of native code (gRPC) says on standard error where it was
    forbid_dumps()
    if sys.argv[1:] and sys.argv[1] in offline.COMMANDS:
        _work_offline(sys.argv[1:])
        return
    try:
        config = load_config(sys.argv[1:])
        setup_logging(config)
        _check_machine(config)
        lock = _take(Path(config.state_dir))
    except (ConfigError, StartError) as error:
        sys.exit(f"meshd: {error}")
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    refusal = ""
    try:
        asyncio.run(_run(config))
    except* (HomeError, IdentityError, ManagerError, VipError) as errors:
        refusal = f"meshd: {_first(errors)}"
    finally:
        os.close(lock)
    sys.exit(refusal or None)


def _work_offline(argv: list[str]) -> None:
    """A command on the state of this machine, whose daemon must not run."""
    parsed, rest = offline.split(argv)
    try:
        config = load_config(rest)
        lock = _take(Path(config.state_dir))
        try:
            sys.stdout.write("\n".join(offline.run(parsed, config)) + "\n")
        finally:
            os.close(lock)
    except (ConfigError, StartError, offline.OfflineError) as error:
        sys.exit(f"meshd: {error}")


def _first(errors: BaseExceptionGroup[Exception]) -> BaseException:
    """The first exception in groups of groups."""
    found = errors.exceptions[0]
    return _first(found) if isinstance(found, BaseExceptionGroup) else found


def _check_machine(config: Config) -> None:
    if os.geteuid() != 0:
        raise StartError("must run as root: it makes network namespaces, VXLAN devices and nftables rules")
    if shutil.which("nft") is None:
        raise StartError("nftables is not installed: apt-get install nftables")


def _take(state_dir: Path) -> int:
    """Lock the state directory for the life of this process."""
    try:
        state_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        lock = os.open(state_dir / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise StartError(f"cannot use the state directory {state_dir}: {error.strerror}") from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        raise StartError(f"another meshd uses the state directory {state_dir}") from error
    return lock


async def _run(config: Config) -> None:
    metrics = Metrics()
    plugin = _plugin(config)
    node = Node(config, _doors, lambda address: _describe(config, address), metrics, _wall_ms, plugin)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    async with asyncio.TaskGroup() as group:
        helpers = [group.create_task(_watch_loop(metrics)), group.create_task(_feed_watchdog())]
        if config.metrics_listen:
            helpers.append(group.create_task(serve_metrics(config.metrics_listen, metrics)))
        if plugin is not None:
            helpers.append(group.create_task(plugin.serve()))
        serving = group.create_task(node.run(_ready))
        stopping = group.create_task(stop.wait())
        await asyncio.wait((serving, stopping), return_when=asyncio.FIRST_COMPLETED)
        notify("STOPPING=1")
        for task in (serving, stopping, *helpers):
            task.cancel()
    log.info("stopped")


def _ready() -> None:
    notify("READY=1")
    log.info("ready")


def _doors(config: Config) -> Doors:
    state = Path(config.state_dir)
    return Doors(
        executor=_executor(config, state),
        overlay=OverlayKernel(netns_dir=config.netns_dir, keys=_key_file(config), now_s=_wall_s),
        balancer=VipKernel(),
        gossip=GossipDoor(
            socket_network, Path(config.socket).with_name("serf.sock"), config.serf_rpc_listen, config.serf_rpc_key
        ),
        watch=lambda changed: Watch(changed, config.netns_dir),
        name_server=NameServer(
            resolv_conf=config.resolv_conf, upstreams=config.dns_upstreams, outlive=Path(config.socket).parent
        ),
    )


def _executor(config: Config, state: Path) -> Executor:
    """Processes always; containers unless they are ruled out: an engine that is away may come back."""
    processes = ProcessExecutor(state, netns_dir=config.netns_dir)
    if config.executor == "process":
        return processes
    return BothExecutors(DockerExecutor(state, _engine(), netns_dir=config.netns_dir), processes)


def _plugin(config: Config) -> Plugin | None:
    """For containers that others start, unless containers are ruled out."""
    if config.executor == "process" or not config.docker_plugin:
        return None
    socket, state = Path(config.docker_plugin), Path(config.state_dir)
    return Plugin(socket, _engine(), state, _wall_ms)


def _engine() -> Engine:
    return Engine(local_socket(os.environ))


def _kinds(config: Config) -> tuple[str, ...]:
    """What this node says that it can run: with "auto", containers if an engine answers. Blocking."""
    if config.executor == "process":
        return ("process",)
    if config.executor == "docker":
        return ("docker", "process")
    why = _engine().ask()
    log.debug("looked for an engine for containers", extra={"why_not": why})
    return ("process",) if why else ("docker", "process")


def _describe(config: Config, data_address: str) -> NodeDescription:
    mtu = next((a.mtu for a in machine.addresses() if str(a.address) == data_address), 0)
    described = machine.describe(config.node_name, _kinds(config), "nftables", mtu)
    return msgspec.structs.replace(described, tunnel_keys=_tunnel_keys(config))


def _key_file(config: Config) -> KeyFile:
    return KeyFile(Path(config.state_dir), _wall_s)


def _tunnel_keys(config: Config) -> tuple[TunnelKey, ...]:
    """The keys of this node's WireGuard; none where it has none, or its keys cannot be read. Blocking."""
    try:
        wireguard.find(netns_dir=config.netns_dir)
        keys = _key_file(config).load()
    except OSError:
        return ()  # what is wrong is said by the overlay when it is needed, and by the doctor
    return tuple(TunnelKey(slot=key.slot, key=key.key) for key in told(keys))


def _wall_ms() -> int:
    return time.time_ns() // 1_000_000


def _wall_s() -> float:
    return time.time_ns() / 1e9


async def _watch_loop(metrics: Metrics) -> None:
    """Measure how late the loop runs."""
    slow = metrics.counter("meshd_slow_turns_total", "Turns of the event loop that took too long")
    loop = asyncio.get_running_loop()
    while True:
        before = loop.time()
        await asyncio.sleep(_LAG_PERIOD_S)
        late_s = loop.time() - before - _LAG_PERIOD_S
        if late_s > SLOW_TURN_S:
            slow.add()
            log.warning("the event loop was slow", extra={"late_s": round(late_s, 3)})


async def _feed_watchdog() -> None:
    interval_s = watchdog_interval_s()
    while interval_s is not None:
        notify("WATCHDOG=1")
        await asyncio.sleep(interval_s)


if __name__ == "__main__":
    main()
