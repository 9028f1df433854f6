"""The configuration of `meshd`: what it is, where it comes from, and what is wrong with it.

Precedence, lowest first: built in < /usr/lib/meshd/meshd.toml < /etc/meshd/meshd.toml < /etc/meshd/conf.d/*.toml (in
lexical order) < MESHD_* in the environment < flags. Every key is also a flag and a variable: `log_level`,
`--log-level`, `MESHD_LOG_LEVEL`. A key that does not exist is an error wherever it is written, with a hint at the
nearest one. `merge` is pure and reports all mistakes at once; `load_config` reads files and keeps where each value
came from.
"""

from __future__ import annotations

import argparse
import difflib
import os
import platform
import re
import sys
import tomllib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from ipaddress import ip_address
from pathlib import Path
from typing import Literal, cast

import mesh

Executor = Literal["auto", "process", "docker"]
LogLevel = Literal["debug", "info", "warning", "error"]
LogFormat = Literal["auto", "text", "json"]

ENV_PREFIX = "MESHD_"
VENDOR_FILE = "usr/lib/meshd/meshd.toml"
MAIN_FILE = "etc/meshd/meshd.toml"
DROP_IN_DIR = "etc/meshd/conf.d"
# A configuration is a page of text; anything larger was not meant for us.
FILE_MAX_BYTES = 1 << 20
DROP_INS_MAX = 256
FALLBACK_NAME = "node"  # of a machine whose host name is none
MANAGERS_MAX = 16  # a few more than a cluster has
UPSTREAMS_MAX = 16  # a resolver that has asked three of them has already made its client wait too long


class ConfigError(Exception):
    """The configuration cannot be used; one mistake a line, each naming its file (or flag) and key."""

    def __init__(self, mistakes: Iterable[str]) -> None:
        self.mistakes = tuple(mistakes)
        super().__init__("\n".join(self.mistakes))


class _Bad(Exception):
    """A value is not what its key takes; the text completes "<origin>: <key> ..."."""


Read = Callable[[object], object]


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise _Bad(f"must be a string, not {value!r}")
    return value


def _path(value: object) -> object:
    text = _text(value)
    if not text.startswith("/") or "\0" in text:
        raise _Bad(f'must be an absolute path, not "{text}"')
    return text


def _path_or_none(value: object) -> object:
    return "" if value == "" else _path(value)


def _choice(*choices: str) -> Read:
    def read(value: object) -> object:
        if value not in choices:
            raise _Bad(f'must be {" or ".join((", ".join(choices[:-1]), choices[-1]))}, not "{value}"')
        return value

    return read


def _port_of(text: str) -> int | None:
    return int(text) if re.fullmatch(r"[0-9]{1,5}", text) and int(text) <= 65535 else None


def _split_host(text: str) -> tuple[str, str | None]:
    """Host and port of `host`, `host:port` or `[v6]:port`."""
    if match := re.fullmatch(r"\[([^]]*)\](?::(.*))?", text):
        return match[1], match[2]
    host, colon, port = text.partition(":")
    return (text, None) if ":" in port else (host, port if colon else None)


def _is_address(text: str) -> bool:
    try:
        ip_address(text)
    except ValueError:
        return False
    return True


def _listen(value: object) -> object:
    text = _text(value)
    host, port = _split_host(text)
    if port is None or not _port_of(port) or not _is_address(host):
        raise _Bad(f'must be ADDRESS:PORT such as 0.0.0.0:7377, not "{text}"')
    return text


def _listen_or_none(value: object) -> object:
    return "" if value == "" else _listen(value)


_HOST = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,253}[A-Za-z0-9])?")


def _advertised(value: object) -> object:
    """An address, or the name of a device; with a port or without."""
    text = _text(value)
    host, port = _split_host(text)
    if text and (not (_is_address(host) or _HOST.fullmatch(host)) or (port is not None and not _port_of(port))):
        raise _Bad(f'must be an address or a device, with or without a port, not "{text}"')
    return text


def _store(value: object) -> object:
    """Only the form: what is in a file is read when the daemon starts, and etcd's URL is judged there."""
    text = _text(value)
    if text and not text.startswith(("etcd://", "etcds://", "file:/")):
        shown = text.partition(":")[0]  # the rest may hold a password
        raise _Bad(f'must be empty, etcd://..., etcds://... or file:/PATH of a file with a URL, not "{shown}..."')
    if text.startswith("etcd") and "@" in text.partition("?")[0]:
        raise _Bad("must not hold a user name or password: everybody here sees it; use etcds:// with cert=")
    return text


def _data_address(value: object) -> object:
    text = _text(value)
    if text and not (_is_address(text) or _HOST.fullmatch(text)):
        raise _Bad(f'must be an address or a device, not "{text}"')
    return text


def _upstreams(value: object) -> object:
    items = value.replace(",", " ").split() if isinstance(value, str) else value
    if not isinstance(items, list | tuple) or not all(isinstance(item, str) for item in items):
        raise _Bad(f"must be a list of addresses, not {value!r}")
    if len(items) > UPSTREAMS_MAX:
        raise _Bad(f"takes at most {UPSTREAMS_MAX} servers, not {len(items)}")
    for item in items:
        host, port = _split_host(item)
        if not _is_address(host) or (port is not None and not _port_of(port)):
            raise _Bad(f'must list ADDRESS or ADDRESS:PORT, not "{item}"')
    return tuple(items)


def _managers(value: object) -> object:
    items = value.replace(",", " ").split() if isinstance(value, str) else value
    if not isinstance(items, list | tuple) or not all(isinstance(item, str) for item in items):
        raise _Bad(f"must be a list of HOST:PORT, not {value!r}")
    if len(items) > MANAGERS_MAX:
        raise _Bad(f"takes at most {MANAGERS_MAX} managers, not {len(items)}")
    for item in items:
        host, port = _split_host(item)
        if not (_is_address(host) or _HOST.fullmatch(host)) or port is None or not _port_of(port):
            raise _Bad(f'must list HOST:PORT, not "{item}"')
    return tuple(items)


def _node_name(value: object) -> object:
    text = _text(value)
    if not re.fullmatch(r"[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?", text):
        raise _Bad(f'must be a host name of one label (letters, digits, hyphens; at most 63), not "{text}"')
    return text


def _key(read: Read, text: str) -> dict[str, object]:
    return {"read": read, "help": text}


@dataclass(frozen=True, slots=True)
class Config:
    """All settings of a daemon, checked. The fields are the keys."""

    state_dir: str = field(default="/var/lib/meshd", metadata=_key(_path, "what must survive a restart"))
    socket: str = field(default="/run/meshd/meshd.sock", metadata=_key(_path, "where `mesh` speaks to the daemon"))
    netns_dir: str = field(default="/run/netns", metadata=_key(_path, "where network namespaces get their names"))
    listen: str = field(default="0.0.0.0:7377", metadata=_key(_listen, "ADDRESS:PORT of a manager's API"))
    quorum_listen: str = field(
        default="0.0.0.0:7378", metadata=_key(_listen, "ADDRESS:PORT where managers agree among themselves")
    )
    advertise_address: str = field(
        default="", metadata=_key(_advertised, "address or device to be reached at; empty: the only one")
    )
    data_address: str = field(
        default="", metadata=_key(_data_address, "address or device of VXLAN tunnels; empty: as advertised")
    )
    store: str = field(
        default="", metadata=_key(_store, "where managers keep their state; empty: in state_dir; etcd://HOST/PREFIX")
    )
    managers: tuple[str, ...] = field(
        default=(), metadata=_key(_managers, "HOST:PORT where managers may be, besides what this node has been told")
    )
    executor: Executor = field(
        default="auto", metadata=_key(_choice("auto", "process", "docker"), "what starts tasks: auto, process, docker")
    )
    docker_plugin: str = field(
        default="/run/docker/plugins/mesh.sock",
        metadata=_key(_path_or_none, "where Docker finds networks of the cluster; empty: nowhere"),
    )
    log_level: LogLevel = field(
        default="info",
        metadata=_key(_choice("debug", "info", "warning", "error"), "debug, info, warning or error"),
    )
    log_format: LogFormat = field(
        default="auto", metadata=_key(_choice("auto", "text", "json"), "text, json, or auto (text)")
    )
    metrics_listen: str = field(
        default="", metadata=_key(_listen_or_none, "ADDRESS:PORT of /metrics, /healthz, /readyz; empty: none")
    )
    dns_upstreams: tuple[str, ...] = field(
        default=(), metadata=_key(_upstreams, "servers for other names; empty: those of resolv_conf")
    )
    resolv_conf: str = field(default="/etc/resolv.conf", metadata=_key(_path, "the machine's resolver configuration"))
    serf_rpc_listen: str = field(
        default="", metadata=_key(_listen_or_none, "ADDRESS:PORT of Serf's RPC besides its socket; empty: none")
    )
    serf_rpc_key: str = field(default="", metadata=_key(_text, "the key that clients of Serf's RPC must know"))
    dns_listen: str = field(
        default="127.0.0.153:53",
        metadata=_key(_listen_or_none, "ADDRESS:PORT where this machine asks for *.mesh; empty: nowhere"),
    )
    node_name: str = field(default=FALLBACK_NAME, metadata=_key(_node_name, "what this node is called; its host name"))

    def dns_address(self) -> tuple[str, int] | None:
        """`dns_listen` as (address, port); None for nowhere."""
        host, port = _split_host(self.dns_listen)
        return (host, int(port)) if port else None


KEYS: tuple[str, ...] = tuple(f.name for f in fields(Config))
_READ = {f.name: cast(Read, f.metadata["read"]) for f in fields(Config)}
HELP = {f.name: cast(str, f.metadata["help"]) for f in fields(Config)}


@dataclass(frozen=True, slots=True)
class Layer:
    """The settings of one source. `where` says for a key where it was set: a file, a variable, a flag."""

    values: Mapping[str, object]
    where: Callable[[str], str]

    def subject(self, key: str) -> str:
        """How a sentence about a wrong value of `key` begins."""
        where = self.where(key)
        return where if where in (flag_of(key), variable_of(key)) else f"{where}: {key}"


@dataclass(frozen=True, slots=True)
class Loaded:
    """A configuration, and for each key where its value came from ("built-in", a path, a variable, a flag)."""

    config: Config
    origins: Mapping[str, str]


# --- pure ---------------------------------------------------------------------------------------------------------


def merge(layers: Sequence[Layer], built_in: Config) -> Loaded:
    """The layers on top of `built_in`, later ones winning. Raises ConfigError with every mistake of every layer."""
    values: dict[str, object] = {}
    origins = dict.fromkeys(KEYS, "built-in")
    mistakes: list[str] = []
    for layer in layers:
        for key, value in layer.values.items():
            if key not in _READ:
                mistakes.append(f"{layer.subject(key)} is not a setting{_hint(key)}")
                continue
            try:
                values[key] = _READ[key](value)
            except _Bad as bad:
                mistakes.append(f"{layer.subject(key)} {bad}")
            else:
                origins[key] = layer.where(key)
    if mistakes:
        raise ConfigError(mistakes)
    return Loaded(replace(built_in, **values), origins)  # type: ignore[arg-type]  # each was read by its key's reader


def _hint(key: str) -> str:
    near = difflib.get_close_matches(key.replace("-", "_").lower(), KEYS, n=1)
    return f"; did you mean {near[0]}?" if near else f"; known are {', '.join(KEYS)}"


def file_layer(path: str, text: str) -> Layer:
    """The layer of a TOML file. Raises ConfigError when it is not TOML."""
    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError([f"{path}: not valid TOML: {error}"]) from error
    return Layer(values, lambda _: path)


def environment_layer(environment: Mapping[str, str]) -> Layer:
    """The layer of the variables MESHD_*. Lists are separated by commas or spaces."""
    values = {
        name.removeprefix(ENV_PREFIX).lower(): value
        for name, value in environment.items()
        if name.startswith(ENV_PREFIX)
    }
    return Layer(values, variable_of)


def flag_layer(flags: Mapping[str, str]) -> Layer:
    """The layer of the command line, by key."""
    return Layer(flags, flag_of)


def variable_of(key: str) -> str:
    """The environment variable of a key."""
    return ENV_PREFIX + key.upper()


def flag_of(key: str) -> str:
    """The flag of a key."""
    return "--" + key.replace("_", "-")


def render(loaded: Loaded, *, origin: bool) -> str:
    """The configuration as TOML, on request with where each value came from as comments."""
    lines = [f"{key} = {_toml(getattr(loaded.config, key))}" for key in KEYS]
    if origin:
        width = max(len(line) for line in lines)
        lines = [f"{line:<{width}}  # {loaded.origins[key]}" for key, line in zip(KEYS, lines, strict=True)]
    return "\n".join(lines) + "\n"


def _toml(value: str | tuple[str, ...]) -> str:
    if isinstance(value, tuple):
        return "[" + ", ".join(_toml(item) for item in value) + "]"
    escaped = value.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'  # control characters cannot be in a checked value


# --- reading --------------------------------------------------------------------------------------------------------


def load(
    flags: Mapping[str, str],
    environment: Mapping[str, str],
    *,
    only_file: str = "",
    root: Path = Path("/"),
    hostname: str,
) -> Loaded:
    """Read all sources below `root` and merge them. `only_file` is read instead of all others. Raises ConfigError."""
    paths = [Path(only_file)] if only_file else _usual_files(root)
    layers: list[Layer] = []
    mistakes: list[str] = []
    for path in paths:
        try:
            layers.append(file_layer(str(path), _read(path)))
        except ConfigError as error:
            mistakes += error.mistakes
    layers += [environment_layer(environment), flag_layer(flags)]
    built_in = replace(Config(), node_name=_name_from(hostname))
    try:
        loaded = merge(layers, built_in)
    except ConfigError as error:
        raise ConfigError([*mistakes, *error.mistakes]) from error
    if mistakes:
        raise ConfigError(mistakes)
    return loaded


def _usual_files(root: Path) -> list[Path]:
    drop_ins = sorted((root / DROP_IN_DIR).glob("*.toml"))
    if len(drop_ins) > DROP_INS_MAX:
        raise ConfigError([f"{root / DROP_IN_DIR}: more than {DROP_INS_MAX} files"])
    return [path for path in (root / VENDOR_FILE, root / MAIN_FILE, *drop_ins) if path.exists()]


def _read(path: Path) -> str:
    try:
        with path.open("rb") as file:
            data = file.read(FILE_MAX_BYTES + 1)
        if len(data) > FILE_MAX_BYTES:
            raise ConfigError([f"{path}: larger than {FILE_MAX_BYTES} bytes"])
        return data.decode()
    except OSError as error:
        raise ConfigError([f"{path}: cannot be read: {error.strerror}"]) from error
    except UnicodeDecodeError as error:
        raise ConfigError([f"{path}: not UTF-8 text"]) from error


def _name_from(hostname: str) -> str:
    """A node name made of a host name: its first label, if that is one."""
    label = hostname.partition(".")[0]
    try:
        _node_name(label)
    except _Bad:
        return FALLBACK_NAME
    return label


# --- the command line of meshd --------------------------------------------------------------------------------------


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="meshd",
        allow_abbrev=False,
        description="The daemon of a service network. Without a command it runs until SIGTERM.",
        epilog=f"Each flag is also a key of /{MAIN_FILE} and a variable: log_level, {ENV_PREFIX}LOG_LEVEL. "
        "`meshd config show [--origin]` prints what is in force, `meshd config check` what is wrong.",
    )
    parser.add_argument("--version", action="version", version=f"meshd {mesh.__version__}")
    parser.add_argument("--config", metavar="FILE", default="", help="read this file, and none of the usual ones")
    for key in KEYS:
        parser.add_argument(flag_of(key), dest=key, metavar="VALUE", default=None, help=HELP[key])
    return parser


def _load_parsed(parsed: argparse.Namespace) -> Loaded:
    flags = {key: value for key in KEYS if (value := getattr(parsed, key)) is not None}
    return load(flags, os.environ, only_file=parsed.config, hostname=platform.node())


def load_config(argv: Sequence[str]) -> Config:
    """The configuration of a daemon started with these arguments (without its name).

    Raises ConfigError. Wrong flags, --help and --version end the process, as is usual on a command line; so does the
    command `config` (`meshd config show [--origin]`, `meshd config check`), which only looks at the configuration.
    """
    if argv[:1] == ["config"]:
        sys.exit(config_command(argv[1:]))
    return _load_parsed(_parser().parse_args(argv)).config


def config_command(argv: Sequence[str]) -> int:
    """`meshd config show|check`: prints, and returns the exit code (0, or 1 when there are mistakes)."""
    parser = _parser()
    parser.prog = "meshd config"
    parser.description = "Look at the configuration without starting anything."
    parser.add_argument("verb", choices=("show", "check"), help="show it, or only say whether it is right")
    parser.add_argument("--origin", action="store_true", help="with show: where each value came from")
    parsed = parser.parse_args(argv)
    try:
        loaded = _load_parsed(parsed)
    except ConfigError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    sys.stdout.write(render(loaded, origin=parsed.origin) if parsed.verb == "show" else "the configuration is valid\n")
    return 0
