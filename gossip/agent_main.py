"""The stand-alone agent's process: settings from flags and files, keys and tags on disk, signals, exit.

Signals are Serf's: SIGINT leaves and ends, SIGTERM ends at once (or leaves, with leave_on_terminate), SIGHUP reads
nothing anew. A second signal ends at once. Files are small and read and written between events, not on timers.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import gc
import json
import os
import platform
import random
import secrets
import signal
import socket
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path

from gossip.agent import Agent, AgentSettings, MakeNetwork
from gossip.agent_config import (
    FILE_MAX_BYTES,
    LOG_LEVELS,
    AgentConfig,
    AgentConfigError,
    check,
    help_text,
    parse_file,
    parse_flags,
)
from gossip.delegate import Address
from gossip.profile import PROFILES
from gossip.serf.ports import Refused

EXIT_OK, EXIT_FAILED, EXIT_USAGE = 0, 1, 2


class AgentFailed(Exception):
    """The agent cannot run; one sentence."""


def main(flags: Sequence[str], make_network: MakeNetwork) -> int:
    """Run the agent as a process; the exit code. `make_network`: SWIM on sockets."""
    if any(flag in ("-h", "-help", "--help") for flag in flags):
        print(f"Usage: mesh gossip agent [FLAGS]\n\nFlags, which are those of serf agent:\n{help_text()}")  # noqa: T201
        return EXIT_OK
    try:
        return run_agent(flags, make_network)
    except AgentConfigError as error:
        sys.stderr.write(f"error: mesh gossip agent: {error}\n")
        return EXIT_USAGE
    except AgentFailed as error:
        sys.stderr.write(f"error: {error}\n")
        return EXIT_FAILED


def load(flags: Sequence[str]) -> AgentConfig:
    """Settings of flags over files. Raises AgentConfigError."""
    config = AgentConfig()
    for path in parse_flags(flags).config_files:
        try:
            with Path(path).open(encoding="utf-8") as file:
                text = file.read(FILE_MAX_BYTES)
        except (OSError, UnicodeDecodeError) as error:
            raise AgentConfigError(f"cannot read {path}: {error}") from error
        config = parse_file(text, path, config)
    config = parse_flags(flags, config)
    return check(config if config.node else replace(config, node=platform.node()))


def run_agent(flags: Sequence[str], make_network: MakeNetwork) -> int:
    """Run until told to end; the exit code. Raises AgentConfigError, AgentFailed."""
    config = load(flags)
    # Everything that was imported stays: the collector need not look at it ever again.
    gc.collect()
    gc.freeze()
    return asyncio.run(_run(config, make_network))


async def _run(config: AgentConfig, make_network: MakeNetwork) -> int:
    log = _logger(config.log_level)
    agent = Agent(
        _settings(config),
        make_network,
        source=random.Random(secrets.randbits(64)),
        nonce=secrets.token_bytes,
        log=log,
    )
    if config.keyring_file:
        agent.keys_changed = lambda keys: _write(config.keyring_file, _keys_json(keys), log)
    if config.tags_file:
        agent.tags_changed = lambda tags: _write(config.tags_file, json.dumps(dict(tags), indent=2), log)
    signals: asyncio.Queue[signal.Signals] = asyncio.Queue(2)
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, _note, signals, number)
    try:
        await _start(agent, config)
        return await _until_told(agent, config, signals)
    finally:
        await agent.close()


async def _start(agent: Agent, config: AgentConfig) -> None:
    try:
        await agent.start()
    except OSError as error:
        raise AgentFailed(f"cannot listen on {config.bind}: {error.strerror or error}") from error
    if config.rpc_addr:
        try:
            await agent.serve_rpc(config.rpc_addr, config.rpc_auth)
        except (OSError, ValueError) as error:
            raise AgentFailed(f"cannot serve the RPC on {config.rpc_addr}: {error}") from error
    if config.join:
        reached, error_text = await agent.join(config.join, config.replay)
        if error_text:
            raise AgentFailed(error_text)
        agent.log("INFO", f"agent: joined by {reached} addresses")


async def _until_told(agent: Agent, config: AgentConfig, signals: asyncio.Queue[signal.Signals]) -> int:
    ended = False
    async with asyncio.TaskGroup() as tasks:
        stopped = tasks.create_task(agent.stopped.wait())
        told = tasks.create_task(signals.get())
        retrying = tasks.create_task(_retry_join(agent, config))
        waiting: set[asyncio.Task[object]] = {stopped, told}
        if config.retry_max:
            waiting.add(retrying)
        done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        ended = retrying in done and not retrying.result()
        if told in done and _leaves(told.result(), config):
            again = tasks.create_task(signals.get())
            leaving = tasks.create_task(agent.leave())
            await asyncio.wait({again, leaving}, return_when=asyncio.FIRST_COMPLETED)
            again.cancel()
            leaving.cancel()
        for task in (stopped, told, retrying):
            task.cancel()
    return EXIT_FAILED if ended else EXIT_OK


def _leaves(number: signal.Signals, config: AgentConfig) -> bool:
    return not config.skip_leave_on_interrupt if number is signal.SIGINT else config.leave_on_terminate


async def _retry_join(agent: Agent, config: AgentConfig) -> bool:
    """Join until it works; False when the tries are used up. The membership itself keeps trying the addresses too."""
    tries = 0
    while config.retry_join:
        try:
            reached, error = await agent.join(config.retry_join, config.replay)
        except Refused:  # it leaves
            break
        if reached:
            break
        tries += 1
        agent.log("WARN", f"agent: join failed: {error}")
        if config.retry_max and tries >= config.retry_max:
            agent.log("ERR", "agent: maximum retry join attempts made, exiting")
            return False
        await asyncio.sleep(config.retry_interval_s)
    await asyncio.Event().wait()
    return True


def _settings(config: AgentConfig) -> AgentSettings:
    tags = dict(config.tags)
    if config.tags_file and (text := _read(config.tags_file)):
        tags = parse_file(json.dumps({"tags": _json(text, config.tags_file)}), config.tags_file, AgentConfig()).tags  # type: ignore[assignment]
    keys: list[bytes] = [config.encrypt] if config.encrypt else []
    if config.keyring_file and (text := _read(config.keyring_file)):
        keys = _read_keys(text, config.keyring_file)
    return AgentSettings(
        name=config.node,
        address=config.bind,
        advertise=config.advertise or _own_address(config.bind),
        tags=tags,
        keys=keys,
        label=config.label,
        profile=PROFILES[config.profile],
        compression=config.compression,
        snapshot=Path(config.snapshot) if config.snapshot else None,
        rejoin_after_leave=config.rejoin,
        reconnect_timeout_s=config.reconnect_timeout_s,
        tombstone_timeout_s=config.tombstone_timeout_s,
    )


def _own_address(bind: Address) -> Address | None:
    """What to tell others when listening everywhere: the address that packets to elsewhere leave from."""
    if not ip_address(bind.host).is_unspecified:
        return None
    six = ":" in bind.host
    with socket.socket(socket.AF_INET6 if six else socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("2001:db8::1", 1) if six else ("192.0.2.1", 1))  # sends nothing: it asks for the route
        except OSError:
            return Address("::1" if six else "127.0.0.1", bind.port)
        return Address(str(probe.getsockname()[0]), bind.port)


def _json(text: str, path: str) -> object:
    try:
        return json.loads(text)
    except ValueError as error:
        raise AgentConfigError(f"{path} is no JSON: {error}") from error


def _read(path: str) -> str:
    """A file's text; a missing one is empty."""
    try:
        with Path(path).open(encoding="utf-8") as file:
            return file.read(FILE_MAX_BYTES)
    except FileNotFoundError:
        return ""
    except (OSError, UnicodeDecodeError) as error:
        raise AgentConfigError(f"cannot read {path}: {error}") from error


def _read_keys(text: str, path: str) -> list[bytes]:
    items = _json(text, path)
    if not isinstance(items, list) or not items:
        raise AgentConfigError(f"{path} must hold a JSON list of keys in base64")
    return [parse_file(json.dumps({"encrypt_key": item}), path, AgentConfig()).encrypt for item in items]


def _keys_json(keys: Sequence[bytes]) -> str:
    return json.dumps([base64.b64encode(key).decode() for key in keys], indent=2)


def _write(path: str, text: str, log: Callable[[str, str], None]) -> None:
    """Replace a file that only its owner may read."""
    fresh = f"{path}.new"
    try:
        with open(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as file:
            file.write(text)
        Path(fresh).replace(path)
    except OSError as error:
        log("ERR", f"agent: cannot write {path}: {error.strerror}")


def _logger(level: str) -> Callable[[str, str], None]:
    least = LOG_LEVELS.index(level)

    def log(written: str, line: str) -> None:
        if LOG_LEVELS.index(written) >= least:
            sys.stderr.write(f"{time.strftime('%Y/%m/%d %H:%M:%S')} [{written}] {line}\n")

    return log


def _note(signals: asyncio.Queue[signal.Signals], number: signal.Signals) -> None:
    with contextlib.suppress(asyncio.QueueFull):  # the two that are there say enough
        signals.put_nowait(number)
