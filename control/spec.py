"""What a user may ask for. Pure: a spec in, all its mistakes out.

Each mistake is one sentence that names the user's thing: `service "web": replicas must be 0 or more, not -3`. An empty
list means that everything further down may rely on the spec: names are DNS labels, prefixes parse and are canonical,
numbers are in range. What depends on other objects (names taken, ports in use) is `control.server`'s to check.
"""

from __future__ import annotations

import re
import signal
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Network, IPv6Network, ip_address

import msgspec

from control import ipv6
from control.constraint import ConstraintError, parse_constraint, parse_preference
from control.container import container_mistakes
from control.model import (
    BalancePolicy,
    ClusterSpec,
    ContainerSpec,
    HealthCheck,
    NamePolicy,
    NetworkSpec,
    NodeDescription,
    NodeSpec,
    Placement,
    PortSpec,
    ProcessSpec,
    ResourceRequirements,
    Resources,
    RestartPolicy,
    ServiceMode,
    ServiceSpec,
    TaskSpec,
    UpdatePolicy,
)

# Limits. A spec is copied into each of its tasks and sent to nodes, so it must stay small.
LABELS_MAX = 128
LABEL_KEY_MAX = 128
LABEL_VALUE_MAX = 1024
ENV_MAX = 1024
TEXT_MAX = 32 * 1024  # one argument or variable; Linux refuses one above 128 KiB
ARGUMENTS_MAX = 1024
NETWORKS_MAX = 16  # each is an interface in the task and a router on its node
ALIASES_MAX = 32
PORTS_MAX = 256
PLACEMENT_MAX = 32
POOLS_MAX = 16
REPLICAS_MAX = 100_000  # tasks of a whole cluster of the size this is made for
DURATION_MAX_S = 366 * 86400.0
CPUS_MIN = 0.001  # what the kernel's quota can still express
CPUS_MAX = 4096.0
MEMORY_MIN_BYTES = 4 << 20  # below this not even a shell starts
MEMORY_MAX_BYTES = 1 << 50
PIDS_MAX = 1 << 22  # kernel's PID_MAX_LIMIT
HOSTNAME_MAX = 64  # the kernel's limit
DESCRIPTION_MAX_BYTES = 256 << 10  # 10,000 routes
HEARTBEAT_MIN_S, HEARTBEAT_MAX_S = 0.1, 60.0  # below: only load; above: a dead node is not noticed for minutes
# Shorter, and managers that are away for a lunch lose their nodes (control.ca.root); longer, and a root ends before.
CERTIFICATE_MIN_S, CERTIFICATE_MAX_S = 3600.0, 10 * 365 * 86400.0
HISTORY_MAX = 100
# Subnets: /29 has room for a gateway, a VIP and a few tasks; above /8 nothing would be left for anybody else.
SUBNET_SHORTEST, SUBNET_LONGEST = 8, 29
VXLAN_PORT_MIN, VXLAN_PORT_MAX = 1024, 49151  # as Docker: above are ephemeral ports

SUBNET6_SHORTEST = 48
TTL_MAX_S = 3600  # a name answered for longer would outlive the tasks it names
IDLE_MIN_S = 60.0  # below, connections that only pause are cut
NAMED_PORTS_MAX = 64
HEALTH_MIN_S = 0.01  # below, checks would be all that a task does
HEALTH_RETRIES_MAX = 1000
SERVICE_NAME_MAX = 15

NOT_FOR_SUBNETS = (
    (IPv4Network("0.0.0.0/8"), "it is reserved"),
    (IPv4Network("127.0.0.0/8"), "it is loopback"),
    (IPv4Network("169.254.0.0/16"), "it is link-local"),
    (IPv4Network("224.0.0.0/4"), "it is multicast"),
    (IPv4Network("240.0.0.0/4"), "it is reserved"),
)
# Of IPv6, what a network may have: unique local addresses, and global ones for whoever has them.
FOR_SUBNETS6 = (IPv6Network("fc00::/7"), IPv6Network("2000::/3"))
# Names with a meaning of their own in DNS (design/dns.md): tasks.<service>, <node>.node.mesh.
RESERVED_NAMES = frozenset({"tasks", "node", "mesh"})

_LABEL = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
# With underscores, which no standard allows and many machines have.
_HOSTNAME = re.compile(r"[A-Za-z0-9]([\w-]{0,61}[A-Za-z0-9])?(\.[A-Za-z0-9]([\w-]{0,61}[A-Za-z0-9])?)*", re.ASCII)
_USER = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,31}(:[A-Za-z0-9_][A-Za-z0-9_.-]{0,31})?")
_IMAGE = re.compile(r"[^\s]{1,512}")
_LABEL_RULE = (
    "must be 1 to 63 lower case letters, digits and hyphens, and begin and end with a letter or digit (a DNS label)"
)


class DescriptionError(Exception):
    """What a node says of itself cannot be used. One sentence."""


@dataclass(slots=True)
class _Mistakes:
    """Collects sentences about one thing of the user's."""

    subject: str
    found: list[str] = field(default_factory=list)

    def add(self, sentence: str) -> None:
        self.found.append(f"{self.subject}: {sentence}")

    def require(self, ok: bool, sentence: str) -> None:
        if not ok:
            self.add(sentence)

    def number(self, what: str, value: float, low: float, high: float, unit: str = "") -> None:
        """`value` must lie in low..high; NaN does not."""
        if value < low and low == 0:
            self.add(f"{what} must be 0 or more, not {value:g}{unit}")
        elif not low <= value <= high:
            self.add(f"{what} must be {low:g} to {high:g}, not {value:g}{unit}")

    def duration(self, what: str, value_s: float) -> None:
        self.number(what, value_s, 0, DURATION_MAX_S, " s")

    def count(self, what: str, values: Iterable[object], most: int) -> None:
        number = sum(1 for _ in values)
        self.require(number <= most, f"at most {most} {what} are possible, not {number}")

    def text(self, what: str, value: str, most: int = TEXT_MAX) -> None:
        self.require(len(value) <= most, f"{what} is longer than {most} characters")
        self.require("\0" not in value, f"{what} contains a NUL character")


def is_label(name: str) -> bool:
    """Whether `name` is a DNS label as we take them: 1-63 of a-z, 0-9 and hyphens inside."""
    return _LABEL.fullmatch(name) is not None


# --- networks -----------------------------------------------------------------------------------------------------


def network_mistakes(spec: NetworkSpec) -> list[str]:
    """All mistakes of a network's spec."""
    mistakes = _Mistakes(f'network "{_short(spec.name)}"')
    _name(mistakes, spec.name)
    _labels(mistakes, spec.labels)
    if spec.subnet:
        _subnet(mistakes, "subnet", spec.subnet)
    if spec.subnet6:
        _subnet6(mistakes, spec.subnet6)
        mistakes.require(spec.ipv6, "an IPv6 subnet needs IPv6 to be on (--ipv6)")
    return mistakes.found


def _subnet6(mistakes: _Mistakes, text: str) -> None:
    try:
        subnet = IPv6Network(text, strict=False)
    except ValueError:
        mistakes.add(f'IPv6 subnet must be a prefix such as fd00:20::/64, not "{_short(text)}"')
        return
    if "/" not in text or not SUBNET6_SHORTEST <= subnet.prefixlen <= ipv6.LONGEST:
        mistakes.add(f"IPv6 subnet must be a /{SUBNET6_SHORTEST} to /{ipv6.LONGEST}, not {_short(text)}")
    elif text != str(subnet):
        mistakes.add(f"IPv6 subnet {_short(text)} is not written as a prefix: {subnet} is meant")
    elif not any(subnet.subnet_of(allowed) for allowed in FOR_SUBNETS6):
        mistakes.add(f"IPv6 subnet {subnet} cannot be used: it must be unique local (fc00::/7) or global (2000::/3)")


def _subnet(mistakes: _Mistakes, what: str, text: str) -> IPv4Network | None:
    """The prefix if it is one that tasks may have; else one mistake."""
    try:
        subnet = IPv4Network(text, strict=False)
    except ValueError:
        mistakes.add(f'{what} must be an IPv4 prefix such as 10.20.0.0/20, not "{_short(text)}"')
        return None
    if "/" not in text or not SUBNET_SHORTEST <= subnet.prefixlen <= SUBNET_LONGEST:
        mistakes.add(f"{what} must be a /{SUBNET_SHORTEST} to /{SUBNET_LONGEST}, not {_short(text)}")
        return None
    if text != str(subnet):
        mistakes.add(f"{what} {_short(text)} is not written as a prefix: {subnet} is meant")
        return None
    for taken, reason in NOT_FOR_SUBNETS:
        if subnet.overlaps(taken):
            mistakes.add(f"{what} {subnet} cannot be used: {reason}")
            return None
    return subnet


# --- services -----------------------------------------------------------------------------------------------------


def service_mistakes(spec: ServiceSpec) -> list[str]:
    """All mistakes of a service's spec. `network_id` of its networks may be any reference here."""
    mistakes = _Mistakes(f'service "{_short(spec.name)}"')
    _name(mistakes, spec.name)
    _labels(mistakes, spec.labels)
    _mode(mistakes, spec.mode)
    _task(mistakes, spec.task)
    _ports(mistakes, spec)
    _named_ports(mistakes, spec)
    _balance(mistakes, spec.balance)
    _answers(mistakes, spec.names)
    _update(mistakes, "update", spec.update)
    _update(mistakes, "rollback", spec.rollback)
    mistakes.require(
        spec.rollback.failure_action != "rollback", "rollback failure action must be pause or continue, not rollback"
    )
    return mistakes.found


def _mode(mistakes: _Mistakes, mode: ServiceMode) -> None:
    match mode:
        case ServiceMode(replicated=None, global_=None):
            mistakes.add("a mode is needed: replicated or global")
        case ServiceMode(replicated=replicated, global_=None) if replicated is not None:
            mistakes.number("replicas", replicated.replicas, 0, REPLICAS_MAX)
        case ServiceMode(replicated=None):
            pass
        case _:
            mistakes.add("only one mode is possible: replicated or global")


def _task(mistakes: _Mistakes, task: TaskSpec) -> None:
    match (task.process, task.container):
        case (None, None):
            mistakes.add("nothing to run: it needs either a process or a container")
        case (process, None) if process is not None:
            _process(mistakes, process)
        case (None, container) if container is not None:
            _container(mistakes, container)
        case _:
            mistakes.add("it can be either a process or a container, not both")
    if task.health is not None:
        _health(mistakes, task.health)
    _resources(mistakes, task.resources)
    _restart(mistakes, task.restart)
    _placement(mistakes, task.placement)
    _networks(mistakes, task)
    mistakes.duration("stop grace period", task.stop_grace_s)
    mistakes.duration("drain period", task.drain_s)
    mistakes.number("force update counter", task.force_update, 0, 1 << 62)
    if task.stop_signal not in signal.Signals.__members__:
        mistakes.add(f'stop signal must be a name such as SIGTERM, not "{_short(task.stop_signal)}"')


def _process(mistakes: _Mistakes, process: ProcessSpec) -> None:
    mistakes.require(bool(process.command and process.command[0]), "the command is empty")
    _arguments(mistakes, process.command)
    _environment(mistakes, process.env)
    if process.rootfs:
        _path(mistakes, "root file system", process.rootfs)
    _surroundings(mistakes, process.workdir, process.user, process.hostname)


def _container(mistakes: _Mistakes, container: ContainerSpec) -> None:
    if not _IMAGE.fullmatch(container.image):
        mistakes.add(f'image must be a reference such as debian:12, not "{_short(container.image)}"')
    _arguments(mistakes, (*container.command, *container.args))
    _environment(mistakes, container.env)
    _surroundings(mistakes, container.workdir, container.user, container.hostname)
    for sentence in container_mistakes(container):
        mistakes.add(sentence)


def _health(mistakes: _Mistakes, check: HealthCheck) -> None:
    kinds = sum(map(bool, (check.command, check.tcp, check.http)))
    mistakes.require(kinds == 1, "a health check is one of a command, a TCP port and an HTTP path")
    _arguments(mistakes, check.command)
    mistakes.number("port of the health check", check.tcp, 0, 65535)
    if check.http and http_check(check.http) is None:
        mistakes.add(f'health check over HTTP must be :PORT/PATH such as :8080/healthz, not "{_short(check.http)}"')
    mistakes.number("health check interval", check.interval_s, HEALTH_MIN_S, DURATION_MAX_S, " s")
    mistakes.number("health check time-out", check.timeout_s, HEALTH_MIN_S, DURATION_MAX_S, " s")
    mistakes.number("health check retries", check.retries, 1, HEALTH_RETRIES_MAX)
    mistakes.duration("health check start period", check.start_period_s)


def http_check(text: str) -> tuple[int, str] | None:
    """(port, path) of ":8080/healthz"; None if it is something else."""
    match = re.fullmatch(r":([0-9]{1,5})(/[!-~]{0,1023})", text)
    if match is None or not 1 <= int(match[1]) <= 65535:
        return None
    return int(match[1]), match[2]


def _surroundings(mistakes: _Mistakes, workdir: str, user: str, hostname: str) -> None:
    if workdir:
        _path(mistakes, "working directory", workdir)
    if user and not _USER.fullmatch(user):
        mistakes.add(f'user must be a name or number, with or without ":group", not "{_short(user)}"')
    if hostname and not is_hostname(hostname):
        mistakes.add(f'hostname must be a host name of at most 64 characters, not "{_short(hostname)}"')


def _arguments(mistakes: _Mistakes, arguments: tuple[str, ...]) -> None:
    mistakes.count("arguments", arguments, ARGUMENTS_MAX)
    for argument in arguments:
        mistakes.text(f'argument "{_short(argument)}"', argument)


def _environment(mistakes: _Mistakes, env: Mapping[str, str]) -> None:
    mistakes.count("environment variables", env, ENV_MAX)
    for name, value in env.items():
        if not name or "=" in name or "\0" in name or len(name) > TEXT_MAX:
            mistakes.add(f'"{_short(name)}" cannot be the name of an environment variable')
        else:
            mistakes.text(f"environment variable {_short(name)}", value)


def _path(mistakes: _Mistakes, what: str, path: str) -> None:
    mistakes.require(path.startswith("/"), f'{what} must be an absolute path, not "{_short(path)}"')
    mistakes.text(what, path, 4095)  # PATH_MAX without its NUL


def _resources(mistakes: _Mistakes, resources: ResourceRequirements) -> None:
    for what, amount in (("limit", resources.limits), ("reservation", resources.reservations)):
        if amount.cpus:
            mistakes.number(f"CPU {what}", amount.cpus, CPUS_MIN, CPUS_MAX)
        if amount.memory_bytes and not MEMORY_MIN_BYTES <= amount.memory_bytes <= MEMORY_MAX_BYTES:
            mistakes.add(f"memory {what} must be 4 MiB or more, not {amount.memory_bytes} bytes")
        mistakes.number(f"process {what}", amount.pids, 0, PIDS_MAX)
    limits, reserved = resources.limits, resources.reservations
    mistakes.require(not _exceeds(reserved, limits), "more is reserved than its limits allow it to use")


def _exceeds(reserved: Resources, limits: Resources) -> bool:
    return (0 < limits.cpus < reserved.cpus) or (0 < limits.memory_bytes < reserved.memory_bytes)


def _restart(mistakes: _Mistakes, restart: RestartPolicy) -> None:
    mistakes.duration("restart delay", restart.delay_s)
    mistakes.duration("restart window", restart.window_s)
    mistakes.number("restart attempts", restart.max_attempts, 0, 1 << 31)


def _placement(mistakes: _Mistakes, placement: Placement) -> None:
    mistakes.number("replicas per node", placement.max_replicas_per_node, 0, REPLICAS_MAX)
    mistakes.count("constraints", placement.constraints, PLACEMENT_MAX)
    mistakes.count("placement preferences", placement.preferences, PLACEMENT_MAX)
    for constraint in placement.constraints:
        _constraint(mistakes, constraint)
    for preference in placement.preferences:
        try:
            parse_preference(preference)
        except ConstraintError as error:
            mistakes.add(f'placement preference "{_short(preference)}": {error}')


def _constraint(mistakes: _Mistakes, constraint: str) -> None:
    try:
        parse_constraint(constraint)
    except ConstraintError as error:
        mistakes.add(f'constraint "{_short(constraint)}": {error}')


def _networks(mistakes: _Mistakes, task: TaskSpec) -> None:
    mistakes.count("networks", task.networks, NETWORKS_MAX)
    seen: set[str] = set()
    for attachment in task.networks:
        reference = _short(attachment.network_id)
        mistakes.require(bool(attachment.network_id), "the name of a network is empty")
        mistakes.require(attachment.network_id not in seen, f'network "{reference}" is named twice')
        seen.add(attachment.network_id)
        mistakes.count(f'aliases on network "{reference}"', attachment.aliases, ALIASES_MAX)
        for alias in attachment.aliases:
            mistakes.require(is_label(alias), f'alias "{_short(alias)}" {_LABEL_RULE}')


def _ports(mistakes: _Mistakes, spec: ServiceSpec) -> None:
    mistakes.count("published ports", spec.ports, PORTS_MAX)
    taken: set[tuple[str, int]] = set()
    for port in spec.ports:
        _port(mistakes, port)
        key = (port.protocol, port.published)
        mistakes.require(not port.published or key not in taken, f"port {port_name(port)} is published twice")
        taken.add(key)
    if any(port.mode == "ingress" for port in spec.ports):
        mistakes.require(
            spec.endpoint_mode == "vip",
            "endpoint mode dnsrr has no address to balance on: publish its ports in host mode",
        )
    if spec.ports:
        mistakes.require(
            bool(spec.task.networks), "published ports are reached over a network: attach it to one with --network"
        )


def _port(mistakes: _Mistakes, port: PortSpec) -> None:
    if not 1 <= port.target <= 65535:
        mistakes.add(f"target port must be 1 to 65535, not {port.target}")
    if not 0 <= port.published <= 65535:
        mistakes.add(f"published port must be 0 to 65535, not {port.published}")

    if port.address:
        _host_address(mistakes, port.address)
    mistakes.count(f"constraints of port {port_name(port)}", port.constraints, PLACEMENT_MAX)
    if port.mode == "host" and port.constraints:
        mistakes.add(f"port {port_name(port)} is published where its tasks run: constraints are for ingress mode")
    for constraint in port.constraints:
        _constraint(mistakes, constraint)


def _host_address(mistakes: _Mistakes, text: str) -> None:
    try:
        address = ip_address(text)
    except ValueError:
        mistakes.add(f'a port is published on an address such as 192.0.2.1, not "{_short(text)}"')
        return
    if text != str(address):
        mistakes.add(f"address {_short(text)} is not written as usual: {address} is meant")
    elif address.is_multicast or address.is_unspecified:
        mistakes.add(f"a port cannot be published on {address}")


def _named_ports(mistakes: _Mistakes, spec: ServiceSpec) -> None:
    mistakes.count("named ports", spec.named_ports, NAMED_PORTS_MAX)
    seen: set[tuple[str, str]] = set()
    for port in spec.named_ports:
        # RFC 6335, section 5.1: at most 15 characters; the rest as a label.
        mistakes.require(
            is_label(port.name) and len(port.name) <= SERVICE_NAME_MAX,
            f'port name "{_short(port.name)}" must be 1 to {SERVICE_NAME_MAX} lower case letters, digits and hyphens',
        )
        mistakes.number(f'port "{_short(port.name)}"', port.port, 1, 65535)
        key = (port.name, port.protocol)
        mistakes.require(key not in seen, f'port name "{_short(port.name)}/{port.protocol}" is given twice')
        seen.add(key)


def _balance(mistakes: _Mistakes, balance: BalancePolicy) -> None:
    mistakes.duration("client affinity", balance.affinity_s)
    mistakes.number("idle time-out", balance.idle_s, IDLE_MIN_S, DURATION_MAX_S, " s")


def _answers(mistakes: _Mistakes, names: NamePolicy) -> None:
    mistakes.number("TTL of its name", names.ttl_s, 0, TTL_MAX_S, " s")


def port_name(port: PortSpec) -> str:
    """A published port as users write it: 8080, or 53/udp."""
    return str(port.published) if port.protocol == "tcp" else f"{port.published}/{port.protocol}"


def _update(mistakes: _Mistakes, what: str, policy: UpdatePolicy) -> None:
    mistakes.number(f"{what} parallelism", policy.parallelism, 0, REPLICAS_MAX)
    mistakes.duration(f"{what} delay", policy.delay_s)
    mistakes.duration(f"{what} monitor period", policy.monitor_s)
    mistakes.duration(f"{what} deadline", policy.deadline_s)
    if not 0 <= policy.max_failure_ratio <= 1:
        mistakes.add(f"{what} failure ratio must be 0 to 1, not {policy.max_failure_ratio:g}")


# --- nodes and the cluster ----------------------------------------------------------------------------------------


def node_mistakes(spec: NodeSpec, name: str) -> list[str]:
    """All mistakes of the spec of the node called `name`."""
    mistakes = _Mistakes(f'node "{_short(name)}"')
    _labels(mistakes, spec.labels)
    return mistakes.found


def cluster_mistakes(spec: ClusterSpec) -> list[str]:
    """All mistakes of the cluster's settings."""
    mistakes = _Mistakes("cluster")
    mistakes.require(is_label(spec.name), f'name "{_short(spec.name)}" {_LABEL_RULE}')
    mistakes.number("heartbeat period", spec.heartbeat_period_s, HEARTBEAT_MIN_S, HEARTBEAT_MAX_S, " s")
    mistakes.number("life of certificates", spec.certificate_life_s, CERTIFICATE_MIN_S, CERTIFICATE_MAX_S, " s")
    mistakes.number("task history limit", spec.task_history_limit, 0, HISTORY_MAX)
    mistakes.duration("rest of freed addresses", spec.address_rest_s)
    mistakes.number("VXLAN port", spec.vxlan_port, VXLAN_PORT_MIN, VXLAN_PORT_MAX)
    mistakes.number("gossip port", spec.gossip_port, VXLAN_PORT_MIN, VXLAN_PORT_MAX)
    mistakes.number("WireGuard port", spec.wireguard_port, VXLAN_PORT_MIN, VXLAN_PORT_MAX - 1)
    ports = (spec.vxlan_port, spec.gossip_port, spec.wireguard_port, spec.wireguard_port + 1)
    mistakes.require(len({*ports}) == len(ports), "VXLAN, gossip and WireGuard (two) need ports of their own")
    mistakes.require(bool(spec.address_pools), "at least one address pool is needed")
    mistakes.count("address pools", spec.address_pools, POOLS_MAX)
    length = spec.subnet_prefix_length
    mistakes.number("subnet prefix length", length, SUBNET_SHORTEST, SUBNET_LONGEST)
    pools: list[IPv4Network] = []
    for text in spec.address_pools[:POOLS_MAX]:
        pool = _subnet(mistakes, "address pool", text)
        if pool is None:
            continue
        if pool.prefixlen > length:
            mistakes.add(f"address pool {pool} is smaller than one subnet (/{length})")
        mistakes.found += [
            f"cluster: address pools {other} and {pool} overlap" for other in pools if pool.overlaps(other)
        ]
        pools.append(pool)
    return mistakes.found


# --- what nodes say of themselves ---------------------------------------------------------------------------------


def read_description(data: bytes) -> NodeDescription:
    """What a node says of itself, with only such values as the rest may rely on. Raises DescriptionError.

    Routes come as canonical IPv4 prefixes; others, and the default route, clash with nothing and are left out.
    """
    if len(data) > DESCRIPTION_MAX_BYTES:
        raise DescriptionError(f"the description of the node is longer than {DESCRIPTION_MAX_BYTES} bytes")
    try:
        said = msgspec.msgpack.decode(data, type=NodeDescription)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise DescriptionError(f"unreadable description of the node: {error}") from error
    if not is_hostname(said.hostname):
        raise DescriptionError(f'the name of the node must be a host name, not "{_short(said.hostname)}"')
    return msgspec.structs.replace(
        said,
        cpus=said.cpus if 0 <= said.cpus <= CPUS_MAX else 0.0,
        memory_bytes=said.memory_bytes if 0 <= said.memory_bytes <= MEMORY_MAX_BYTES else 0,
        routes=tuple(sorted({str(route) for text in said.routes if (route := prefix(text)) is not None})),
    )


def prefix(text: str) -> IPv4Network | None:
    """A prefix that another can overlap; None for none, for one that is not IPv4, and for the default route."""
    try:
        network = IPv4Network(text, strict=False) if text else None
    except ValueError:
        return None
    return network if network is not None and network.prefixlen else None


def is_hostname(name: str) -> bool:
    """Whether `name` can be a machine's: labels of letters, digits and hyphens, with dots between."""
    return len(name) <= HOSTNAME_MAX and _HOSTNAME.fullmatch(name) is not None


# --- in common ----------------------------------------------------------------------------------------------------


def _name(mistakes: _Mistakes, name: str) -> None:
    mistakes.require(is_label(name), f"its name {_LABEL_RULE}")
    mistakes.require(name not in RESERVED_NAMES, "its name has a meaning of its own in DNS: choose another")


def _labels(mistakes: _Mistakes, labels: Mapping[str, str]) -> None:
    mistakes.count("labels", labels, LABELS_MAX)
    for key, value in labels.items():
        if not key or len(key) > LABEL_KEY_MAX or not key.isprintable() or "=" in key or " " in key:
            mistakes.add(f'"{_short(key)}" cannot be the key of a label')
        else:
            mistakes.text(f"label {key}", value, LABEL_VALUE_MAX)


def _short(text: str) -> str:
    """`text` for a sentence: printable, on one line, of bearable length."""
    shown = text if text.isprintable() else ascii(text)[1:-1]
    return shown if len(shown) <= 80 else shown[:77] + "..."
