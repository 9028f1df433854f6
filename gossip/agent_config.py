"""Settings of the stand-alone agent: Serf's own flags and configuration files. Pure: texts in, `AgentConfig` out.

Flags are Go's: `-node web1`, `-node=web1`, `--node web1`. Files are JSON with Serf's keys; later ones win over earlier
ones, flags over files, and lists (joins, tags) add up. What Serf has and this agent has not is refused by name.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from ipaddress import ip_address
from typing import Any

from gossip.delegate import META_MAX, Address
from gossip.profile import PROFILES
from gossip.serf.keys import parse_key
from gossip.serf.messages import encode_tags

DEFAULT_PORT = 7946
DEFAULT_RPC = "127.0.0.1:7373"
NAME_MAX = 128
FILE_MAX_BYTES = 1 << 20
KEY_SIZES = (16, 24, 32)
LOG_LEVELS = ("TRACE", "DEBUG", "INFO", "WARN", "ERR")


class AgentConfigError(ValueError):
    """The settings cannot be used; one sentence."""


@dataclass(frozen=True, slots=True)
class AgentConfig:
    """All settings, checked."""

    node: str = ""
    bind: Address = field(default=Address("0.0.0.0", DEFAULT_PORT))  # Serf's default
    advertise: Address | None = None
    rpc_addr: str = DEFAULT_RPC  # HOST:PORT, the path of a socket, or empty: none
    rpc_auth: str = ""
    join: tuple[str, ...] = ()
    replay: bool = False
    retry_join: tuple[str, ...] = ()
    retry_interval_s: float = 30.0
    retry_max: int = 0  # 0: for ever
    profile: str = "lan"
    encrypt: bytes = b""
    keyring_file: str = ""
    tags: Mapping[str, str] = field(default_factory=dict)
    tags_file: str = ""
    snapshot: str = ""
    rejoin: bool = False
    log_level: str = "INFO"
    leave_on_terminate: bool = False
    skip_leave_on_interrupt: bool = False
    compression: bool = True
    reconnect_timeout_s: float = 24 * 3600.0
    tombstone_timeout_s: float = 24 * 3600.0
    label: str = ""
    config_files: tuple[str, ...] = ()  # read them, then `merge`


Read = Callable[[object], object]


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise AgentConfigError("must be a text")
    try:
        value.encode()
    except UnicodeEncodeError as error:  # a flag that is no UTF-8, or half a pair in a file
        raise AgentConfigError("must be a text in UTF-8") from error
    return value


def _node(value: object) -> str:
    text = _text(value)
    if not 0 < len(text.encode()) <= NAME_MAX or not text.isprintable():
        raise AgentConfigError(f'must be a name of 1 to {NAME_MAX} bytes, not "{text}"')
    return text


def parse_place(text: str, default_port: int) -> Address:
    """ADDRESS, ADDRESS:PORT or [ADDRESS]:PORT. Raises AgentConfigError."""
    match = re.fullmatch(r"\[([^]]+)\](?::(\d{1,5}))?|([^:]+)(?::(\d{1,5}))?|([0-9a-fA-F:.]+)", text)
    host = (match[1] or match[3] or match[5]) if match else ""
    port = int((match[2] or match[4] or default_port) if match else 0)
    try:
        address = Address(str(ip_address(host)), port)
    except ValueError as error:
        raise AgentConfigError(f'must be ADDRESS or ADDRESS:PORT, not "{text}"') from error
    if port > 65535:
        raise AgentConfigError(f"cannot have port {port}")
    return address


def _place(value: object) -> Address:
    return parse_place(_text(value), DEFAULT_PORT)


def _truth(value: object) -> bool:
    if isinstance(value, bool):
        return value
    if value in ("true", "1", "t", "T", "TRUE", "True"):
        return True
    if value in ("false", "0", "f", "F", "FALSE", "False"):
        return False
    raise AgentConfigError(f'must be true or false, not "{value}"')


def _list(value: object) -> tuple[str, ...]:
    items = value if isinstance(value, list) else [value]
    return tuple(_text(item) for item in items)


_UNITS_S = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}


def _duration_s(value: object) -> float:
    text = _text(value)
    parts = re.findall(r"(\d+(?:\.\d+)?)(ms|s|m|h)", text)
    if not parts or "".join(f"{n}{u}" for n, u in parts) != text:
        raise AgentConfigError(f'must be a time such as 30s or 1h30m, not "{text}"')
    return sum(float(number) * _UNITS_S[unit] for number, unit in parts)


def _count(value: object) -> int:
    text = str(value)
    if not text.isdecimal() or len(text) > 9:
        raise AgentConfigError(f'must be a number, not "{value}"')
    return int(text)


def _profile(value: object) -> str:
    name = _text(value)
    if name not in PROFILES:
        raise AgentConfigError(f'must be lan, wan or local, not "{name}"')
    return name


def _key(value: object) -> bytes:
    try:
        key = parse_key(_text(value))
    except ValueError as error:
        raise AgentConfigError(f"must be a key in base64: {error}") from error
    if len(key) not in KEY_SIZES:
        raise AgentConfigError(f"must be a key of 16, 24 or 32 bytes, not {len(key)}")
    return key


def _tags(value: object) -> dict[str, str]:
    if isinstance(value, dict):
        return {_text(key): _text(item) for key, item in value.items()}
    name, equals, rest = _text(value).partition("=")
    if not name or not equals:
        raise AgentConfigError(f'must be NAME=VALUE, not "{value}"')
    return {name: rest}


def _level(value: object) -> str:
    level = _text(value).upper()
    if level not in LOG_LEVELS:
        raise AgentConfigError(f"must be one of {', '.join(LOG_LEVELS)}, not {value}")
    return level


def _protocol(value: object) -> int:
    number = _count(value)
    if number not in (4, 5):
        raise AgentConfigError(f"must be 4 or 5, not {number}")
    return number


def _no_compression(value: object) -> bool:
    return not _truth(value)


@dataclass(frozen=True, slots=True)
class _Setting:
    """`flag` and `key` are Serf's names; `field` is ours."""

    flag: str
    key: str
    field: str
    read: Read
    help: str
    adds: bool = False  # values add up instead of replacing each other

    @property
    def bare(self) -> bool:
        return self.read in (_truth, _no_compression)


_SETTINGS = (
    _Setting("node", "node_name", "node", _node, "Name of this node; must be unique in the cluster. [host name]"),
    _Setting("bind", "bind", "bind", _place, "Address to listen on, with or without a port. [0.0.0.0:7946]"),
    _Setting("advertise", "advertise", "advertise", _place, "Address that others reach this node at."),
    _Setting("rpc-addr", "rpc_addr", "rpc_addr", _text, f"Address or socket path of the RPC. [{DEFAULT_RPC}]"),
    _Setting("rpc-auth", "rpc_auth", "rpc_auth", _text, "What clients of the RPC must know."),
    _Setting("join", "start_join", "join", _list, "A member to join; repeatable. Failing is an error.", True),
    _Setting("replay", "replay_on_join", "replay", _truth, "Tell of the events that were before the join."),
    _Setting("retry-join", "retry_join", "retry_join", _list, "Like -join, but tried again until it works.", True),
    _Setting("retry-interval", "retry_interval", "retry_interval_s", _duration_s, "Time between tries. [30s]"),
    _Setting("retry-max", "retry_max_attempts", "retry_max", _count, "Tries before giving up; 0: never. [0]"),
    _Setting("profile", "profile", "profile", _profile, "Timing: lan, wan or local. [lan]"),
    _Setting("encrypt", "encrypt_key", "encrypt", _key, "Key of the cluster in base64: 16, 24 or 32 bytes."),
    _Setting("keyring-file", "keyring_file", "keyring_file", _text, "Where keys are kept over restarts."),
    _Setting("tag", "tags", "tags", _tags, "NAME=VALUE of this node; repeatable.", True),
    _Setting("tags-file", "tags_file", "tags_file", _text, "Where tags are kept over restarts."),
    _Setting("snapshot", "snapshot_path", "snapshot", _text, "File to rejoin the cluster from after a restart."),
    _Setting("rejoin", "rejoin_after_leave", "rejoin", _truth, "Rejoin from the snapshot also after leaving."),
    _Setting("log-level", "log_level", "log_level", _level, "TRACE, DEBUG, INFO, WARN or ERR. [INFO]"),
    _Setting("disable-compression", "", "compression", _no_compression, "Never compress."),
    _Setting("", "enable_compression", "compression", _truth, ""),
    _Setting("", "leave_on_terminate", "leave_on_terminate", _truth, ""),
    _Setting("", "skip_leave_on_interrupt", "skip_leave_on_interrupt", _truth, ""),
    _Setting("", "reconnect_timeout", "reconnect_timeout_s", _duration_s, ""),
    _Setting("", "tombstone_timeout", "tombstone_timeout_s", _duration_s, ""),
    _Setting("label", "label", "label", _text, "Label of the cluster's packets (memberlist 0.3 and newer)."),
    _Setting("config-file", "", "config_files", _list, "JSON file with Serf's keys; repeatable.", True),
)
_BY_FLAG = {setting.flag: setting for setting in _SETTINGS if setting.flag}
_BY_KEY = {setting.key: setting for setting in _SETTINGS if setting.key}
# Serf's, without effect on what others see, so that scripts and files go on working.
_IGNORED: Mapping[str, Read] = {
    "protocol": _protocol,
    "broadcast-timeout": _duration_s,
    "broadcast_timeout": _duration_s,
    "reconnect_interval": _duration_s,
    "disable_coordinates": _truth,
    "validate_node_names": _truth,
}
_REFUSED = {
    "event-handler": 'read the events with "mesh gossip monitor" instead',
    "event_handlers": 'read the events with "mesh gossip monitor" instead',
    "discover": "name members with -join or -retry-join instead",
    "mdns": "name members with -join or -retry-join instead",
    "iface": "name the address with -bind instead",
    "interface": "name the address with -bind instead",
    "syslog": "let systemd take standard error",
    "enable_syslog": "let systemd take standard error",
    "config-dir": "name the files with -config-file instead",
}


def parse_flags(arguments: Sequence[str], base: AgentConfig | None = None) -> AgentConfig:
    """Settings of a command line. Raises AgentConfigError."""
    config, rest = base or AgentConfig(), list(arguments)
    while rest:
        word = rest.pop(0)
        name, equals, value = word.lstrip("-").partition("=")
        if not word.startswith("-") or not name:
            raise AgentConfigError(f'"{word}" is no flag')
        if name == "role":
            name, value, equals = "tag", f"role={value if equals else rest.pop(0) if rest else ''}", "="
        setting = _BY_FLAG.get(name)
        bare = setting.bare if setting is not None else name == "syslog"
        if not equals:
            if not bare and not rest:
                raise AgentConfigError(f"-{name} needs a value")
            value = "true" if bare else rest.pop(0)
        config = _apply(config, setting, name, value, f"-{name}", _BY_FLAG)
    return config


def parse_file(text: str, origin: str, base: AgentConfig) -> AgentConfig:
    """Settings of a JSON file on top of `base`. Raises AgentConfigError."""
    try:
        values = json.loads(text)
    except ValueError as error:
        raise AgentConfigError(f"{origin} is no JSON: {error}") from error
    if not isinstance(values, dict):
        raise AgentConfigError(f"{origin} must hold one JSON object")
    for key, value in values.items():
        if key == "role":
            base = _apply(base, _BY_KEY["tags"], key, {**base.tags, key: value}, f'{origin}: "{key}"', _BY_KEY)
        else:
            base = _apply(base, _BY_KEY.get(key), key, value, f'{origin}: "{key}"', _BY_KEY)
    return base


def _apply(
    config: AgentConfig, setting: _Setting | None, name: str, value: object, where: str, known: Mapping[str, object]
) -> AgentConfig:
    try:
        if setting is None:
            if name in _IGNORED:
                _IGNORED[name](value)
                return config
            if name in _REFUSED:
                raise AgentConfigError(f"is not supported: {_REFUSED[name]}")
            near = difflib.get_close_matches(name, known, n=1)
            raise AgentConfigError("is not known" + (f'; did you mean "{near[0]}"?' if near else ""))
        new: Any = setting.read(value)
    except AgentConfigError as error:
        raise AgentConfigError(f"{where} {error}") from error
    if setting.adds:
        old = getattr(config, setting.field)
        new = {**old, **new} if isinstance(new, dict) else (*old, *new)
    return replace(config, **{setting.field: new})


def check(config: AgentConfig) -> AgentConfig:
    """What no single setting shows. Raises AgentConfigError."""
    if not config.node:
        raise AgentConfigError("-node must name this node")
    if len(encode_tags(config.tags)) > META_MAX:
        raise AgentConfigError(f"the tags take more than {META_MAX} bytes together")
    if config.encrypt and config.keyring_file:
        raise AgentConfigError("-encrypt and -keyring-file exclude each other: the keys are in the file")
    if config.tags and config.tags_file:
        raise AgentConfigError("-tag and -tags-file exclude each other: the tags are in the file")
    return config


def help_text() -> str:
    """One line for each flag."""
    flags = [setting for setting in _SETTINGS if setting.flag]
    width = max(len(setting.flag) for setting in flags)
    return "\n".join(f"  -{setting.flag:<{width}}  {setting.help}" for setting in flags)
