"""The objects of the replicated store, as frozen values.

A *spec* is what a user asked for; the rest of an object is what the managers decided. Identity is `id`, never a name
or an address. Times are integer milliseconds since the Unix epoch (display only: no decision compares them across
machines). Durations are seconds as floats. Addresses and prefixes are strings in canonical form (`ipaddress` parses
them); they are checked where they enter (`control.spec`).

Fields are only ever added, with a default: a record written by an older version must still load.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from control.lifecycle import TaskState

Protocol = Literal["tcp", "udp", "sctp"]
NodeState = Literal["unknown", "down", "ready"]
Role = Literal["manager", "worker"]
UserRole = Literal["viewer", "operator", "admin"]
Availability = Literal["active", "pause", "drain"]
EndpointMode = Literal["vip", "dnsrr"]
PublishMode = Literal["ingress", "host"]
RestartCondition = Literal["any", "on-failure", "none"]
UpdateOrder = Literal["stop-first", "start-first"]
FailureAction = Literal["pause", "continue", "rollback"]
MountKind = Literal["bind", "volume", "tmpfs"]
PullPolicy = Literal["always", "missing", "never"]
Scheduler = Literal["rr", "wrr", "lc", "wlc", "sh", "mh"]


class Value(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """Base of all values here: immutable, compared by content, not tracked by the garbage collector."""


class Meta(Value, frozen=True, kw_only=True):
    """What the store keeps about each object."""

    version: int = 0  # store version (log index) of the last write; 0 before the first
    created_ms: int = 0
    updated_ms: int = 0


# --- cluster ------------------------------------------------------------------------------------------------------


class ClusterSpec(Value, frozen=True, kw_only=True):
    """Settings of the whole cluster that can be changed while it runs."""

    name: str = "default"
    heartbeat_period_s: float = 5.0  # dispatcher heartbeat; a node is down after three missed ones
    task_history_limit: int = 5  # ended tasks kept per slot
    address_pools: tuple[str, ...] = ("10.128.0.0/9",)  # networks without a subnet take theirs from here
    subnet_prefix_length: int = 20
    address_rest_s: float = 60.0  # a freed address is not used again before
    vxlan_port: int = 4789
    gossip_port: int = 7946  # Serf's
    wireguard_port: int = 7947  # of encrypted networks; the next one while a node's key is replaced
    autolock: bool = False  # managers that start need the unlock key
    certificate_life_s: float = 90 * 86400.0  # of nodes; another one counts from each node's next renewal on


class Cluster(Value, frozen=True, kw_only=True):
    """The one record about the cluster itself. `id` names the cluster for ever."""

    id: str
    meta: Meta = Meta()
    spec: ClusterSpec = ClusterSpec()
    worker_token: str = ""
    manager_token: str = ""
    next_node_number: int = 1
    gossip_keys: tuple[str, ...] = ()  # base64, AES-256, the first one is used to send; none: no gossip
    gossip_keys_ms: int = 0  # when they were last changed (control.keymanager)
    unlock_key: str = ""  # with autolock (control.lock); never told but by GetUnlockKey
    unlock_version: int = 0  # its number; counted on when there is none, so no two keys share one


# --- nodes --------------------------------------------------------------------------------------------------------


class NodeSpec(Value, frozen=True, kw_only=True):
    role: Role = "worker"
    availability: Availability = "active"
    labels: dict[str, str] = {}


class TunnelKey(Value, frozen=True, kw_only=True):
    """A WireGuard key that a node has told (docs/decisions/0015). The private one never leaves it."""

    slot: int  # 0 or 1: which of its two devices, ports and addresses go with the key
    key: str  # base64, public


class NodeDescription(Value, frozen=True, kw_only=True):
    """What a node says of itself."""

    hostname: str = ""
    os: str = ""
    architecture: str = ""  # as `uname -m`
    kernel: str = ""
    version: str = ""  # of meshd
    cpus: float = 0.0
    memory_bytes: int = 0
    executors: tuple[str, ...] = ()
    balancer: str = ""  # "ipvs" or "nftables"
    routes: tuple[str, ...] = ()  # prefixes the host routes itself; no network may overlap them
    mtu: int = 0  # of the underlay
    tunnel_keys: tuple[TunnelKey, ...] = ()  # oldest first; none: it can have no encrypted network


class NodeStatus(Value, frozen=True, kw_only=True):
    state: NodeState = "unknown"
    message: str = ""
    address: str = ""  # as seen by the manager
    data_address: str = ""  # the node's end of VXLAN tunnels


class Node(Value, frozen=True, kw_only=True):
    """A machine. `number` (1..32766) is unique for ever in a cluster; the data plane derives addresses from it."""

    id: str
    meta: Meta = Meta()
    spec: NodeSpec = NodeSpec()
    number: int
    description: NodeDescription = NodeDescription()
    status: NodeStatus = NodeStatus()
    secret_digest: str = ""  # SHA-256 of the secret the node was given at join
    control_address: str = ""  # managers: host:port of the API
    key_digest: str = ""  # SHA-256 of its public key: a node that was off for long shows by it that it is the same
    issuer: str = ""  # digest of the root (control.ca) that stands behind its certificate
    believes: int = 1  # how many roots it was told of with that: more than one while the root is being changed


# --- networks -----------------------------------------------------------------------------------------------------


class NetworkSpec(Value, frozen=True, kw_only=True):
    name: str
    labels: dict[str, str] = {}
    subnet: str = ""  # empty: from the cluster's pools
    ipv6: bool = False  # addresses of both families
    subnet6: str = ""  # empty: a unique local one made of the cluster and the VXLAN id
    internal: bool = False  # no way out to the world
    encrypted: bool = False  # between nodes; a node that cannot do it carries nothing of this network


class Network(Value, frozen=True, kw_only=True):
    id: str
    meta: Meta = Meta()
    spec: NetworkSpec
    vni: int = 0  # 0 and "" until allocated
    subnet: str = ""
    gateway: str = ""  # first address: the router, and the name server
    subnet6: str = ""  # with spec.ipv6; the IPv6 address of whatever has one here is made of it (control.ipv6)
    gateway6: str = ""


# --- services -----------------------------------------------------------------------------------------------------


class ProcessSpec(Value, frozen=True, kw_only=True):
    """A command run on the node in namespaces of its own (executor "process")."""

    command: tuple[str, ...]
    env: dict[str, str] = {}
    workdir: str = ""
    user: str = ""
    hostname: str = ""  # empty: <service>.<slot>
    rootfs: str = ""  # a directory on the node; empty: the node's own root file system


class Mount(Value, frozen=True, kw_only=True):
    """Something at a path of a container: a path of the node, a volume of its engine, or memory."""

    kind: MountKind
    target: str
    source: str = ""  # bind: a path on the node; volume: its name, empty for one that goes with the task
    read_only: bool = False
    size_bytes: int = 0  # of a tmpfs; 0: as the kernel has it


class Ulimit(Value, frozen=True, kw_only=True):
    """A limit of the processes of a container, as setrlimit(2) has it; -1 is none."""

    name: str  # "nofile"
    soft: int
    hard: int


class RegistryAuth(Value, frozen=True, kw_only=True):
    """Who pulls an image. Managers tell nobody but the nodes that run its tasks; others see the registry's name."""

    registry: str  # "registry.example:5000", as images name it
    username: str = ""
    password: str = ""
    identity_token: str = ""  # instead of both

    def __repr__(self) -> str:
        return f"RegistryAuth(registry={self.registry!r}, ...)"  # it must not get into a log


class ContainerSpec(Value, frozen=True, kw_only=True):
    """A container (executor "docker")."""

    image: str
    command: tuple[str, ...] = ()  # instead of the image's entry point
    args: tuple[str, ...] = ()  # instead of the image's command
    env: dict[str, str] = {}
    workdir: str = ""
    user: str = ""
    hostname: str = ""
    groups: tuple[str, ...] = ()  # besides those that the user has in the image
    mounts: tuple[Mount, ...] = ()
    ulimits: tuple[Ulimit, ...] = ()
    sysctls: dict[str, str] = {}
    cap_add: tuple[str, ...] = ()
    cap_drop: tuple[str, ...] = ()
    read_only: bool = False  # its root file system
    init: bool = False  # a first process that reaps, and passes signals on
    tty: bool = False
    hosts: tuple[str, ...] = ()  # lines of its /etc/hosts: "10.0.0.9 store db"
    log_driver: str = ""  # empty: the engine's own
    log_options: dict[str, str] = {}
    pull: PullPolicy = "always"  # without an answer of the registry, an image that is there already will do
    registry_auth: RegistryAuth | None = None


class HealthCheck(Value, frozen=True, kw_only=True):
    """How it is found out that a task can serve. One of `command` (in the task; 0 is well), `tcp` and `http`.

    A task is running, and gets connections, from its first success on; without one within `start_period_s` and then
    `retries` intervals, and after so many failures in a row later, it has failed.
    """

    command: tuple[str, ...] = ()
    tcp: int = 0  # a port on the task's address that takes connections
    http: str = ""  # ":8080/healthz": answers 200 to 399
    interval_s: float = 10.0
    timeout_s: float = 3.0
    retries: int = 3
    start_period_s: float = 0.0


class Resources(Value, frozen=True, kw_only=True):
    cpus: float = 0.0
    memory_bytes: int = 0
    pids: int = 0


class ResourceRequirements(Value, frozen=True, kw_only=True):
    limits: Resources = Resources()
    reservations: Resources = Resources()


class RestartPolicy(Value, frozen=True, kw_only=True):
    condition: RestartCondition = "any"
    delay_s: float = 5.0
    max_attempts: int = 0  # 0: no limit
    window_s: float = 0.0  # 0: since the beginning of this spec


class Placement(Value, frozen=True, kw_only=True):
    constraints: tuple[str, ...] = ()  # "node.labels.zone==a"
    preferences: tuple[str, ...] = ()  # "spread=node.labels.zone"
    max_replicas_per_node: int = 0


class NetworkAttachment(Value, frozen=True, kw_only=True):
    network_id: str
    aliases: tuple[str, ...] = ()


# Requests under way when a task is withdrawn are finished by then, as a rule; a service of long ones asks for more.
DRAIN_S = 1.0


class TaskSpec(Value, frozen=True, kw_only=True):
    """What to run, and where it may run. Exactly one of `process` and `container`."""

    process: ProcessSpec | None = None
    container: ContainerSpec | None = None
    resources: ResourceRequirements = ResourceRequirements()
    restart: RestartPolicy = RestartPolicy()
    placement: Placement = Placement()
    networks: tuple[NetworkAttachment, ...] = ()
    stop_signal: str = "SIGTERM"
    stop_grace_s: float = 10.0
    health: HealthCheck | None = None
    drain_s: float = DRAIN_S  # between its withdrawal from all balancers and its stop signal
    force_update: int = 0  # raised by `service update --force`


class ReplicatedMode(Value, frozen=True, kw_only=True):
    replicas: int = 1


class GlobalMode(Value, frozen=True, kw_only=True):
    """One task on every node that fits."""


class ServiceMode(Value, frozen=True, kw_only=True):
    """Exactly one is set."""

    replicated: ReplicatedMode | None = None
    global_: GlobalMode | None = None


class PortSpec(Value, frozen=True, kw_only=True):
    """A published port. `published` 0 asks for an automatic one."""

    target: int
    published: int = 0
    protocol: Protocol = "tcp"
    mode: PublishMode = "ingress"
    address: str = ""  # only on this address of the nodes that have it; empty: on all
    constraints: tuple[str, ...] = ()  # ingress: only on nodes that fulfil them, as placement constraints


class NamedPort(Value, frozen=True, kw_only=True):
    """A port the tasks listen on, found by name: SRV `_<name>._<protocol>.<service>` (RFC 2782)."""

    name: str
    port: int
    protocol: Protocol = "tcp"


class BalancePolicy(Value, frozen=True, kw_only=True):
    """How connections to the service's addresses are spread over its tasks. Names are those of IPVS."""

    scheduler: Scheduler = "rr"
    affinity_s: float = 0.0  # a client comes back to the same task within this time; 0: no affinity
    # An idle TCP connection is forgotten after this. The default outlives the kernel's keepalive (7,200 s), so that
    # database connections which idle for hours stay whole; Swarm cuts them at 900 s.
    idle_s: float = 8100.0


class NamePolicy(Value, frozen=True, kw_only=True):
    """How the service's name is answered."""

    ttl_s: int = 5
    local_first: bool = False  # tasks of the asking node before the others


class UpdatePolicy(Value, frozen=True, kw_only=True):
    parallelism: int = 1  # 0: all at once
    delay_s: float = 0.0
    failure_action: FailureAction = "pause"
    monitor_s: float = 5.0
    max_failure_ratio: float = 0.0
    order: UpdateOrder = "stop-first"
    deadline_s: float = 0.0  # a new task that does not run by then has failed; 0: no limit


class ServiceSpec(Value, frozen=True, kw_only=True):
    name: str
    labels: dict[str, str] = {}
    mode: ServiceMode = ServiceMode(replicated=ReplicatedMode())
    task: TaskSpec
    endpoint_mode: EndpointMode = "vip"
    ports: tuple[PortSpec, ...] = ()
    named_ports: tuple[NamedPort, ...] = ()
    balance: BalancePolicy = BalancePolicy()
    names: NamePolicy = NamePolicy()
    update: UpdatePolicy = UpdatePolicy()
    rollback: UpdatePolicy = UpdatePolicy()


class VirtualAddress(Value, frozen=True, kw_only=True):
    """A service's address on one network."""

    network_id: str
    address: str


class UpdateStatus(Value, frozen=True, kw_only=True):
    state: str = ""  # updating, paused, completed, rollback_started, rollback_paused, rollback_completed
    message: str = ""
    started_ms: int = 0
    completed_ms: int = 0


class Service(Value, frozen=True, kw_only=True):
    """`spec_version` counts changes of what the tasks run; a task with another one is out of date."""

    id: str
    meta: Meta = Meta()
    spec: ServiceSpec
    spec_version: int = 1
    previous_spec: ServiceSpec | None = None
    previous_spec_version: int = 0
    vips: tuple[VirtualAddress, ...] = ()  # one per network, endpoint mode "vip"
    ports: tuple[PortSpec, ...] = ()  # as spec.ports, automatic ones filled in
    update_status: UpdateStatus = UpdateStatus()


# --- tasks --------------------------------------------------------------------------------------------------------


class TaskAddress(Value, frozen=True, kw_only=True):
    """A task's place on one network."""

    network_id: str
    address: str
    aliases: tuple[str, ...] = ()


class TaskStatus(Value, frozen=True, kw_only=True):
    state: TaskState = TaskState.NEW
    at_ms: int = 0
    message: str = ""  # what is going on
    error: str = ""  # what went wrong, or why it is still pending
    exit_code: int | None = None
    pid: int = 0


class Task(Value, frozen=True, kw_only=True):
    """One placed instance of a service. Never moved, only replaced. `spec` is its own copy."""

    id: str
    meta: Meta = Meta()
    service_id: str
    service_name: str
    slot: int  # 0 for global services
    node_id: str = ""
    spec: TaskSpec
    spec_version: int = 1
    desired_state: TaskState = TaskState.RUNNING
    status: TaskStatus = TaskStatus()
    addresses: tuple[TaskAddress, ...] = ()  # taken back by the allocator after its end
    ports: tuple[PortSpec, ...] = ()  # host-mode ports it occupies on its node
    rollout_ms: int = 0  # `started_ms` of the update that made it; 0: made otherwise
    settled: bool = False  # has run for that update's monitor period: its end is no failure of the update


# --- addresses at rest --------------------------------------------------------------------------------------------

RESTING_VNIS = "vni"  # no id of a network: those have 25 characters


class RestingAddress(Value, frozen=True, kw_only=True):
    """A freed address, not to be used again before `until_ms`. `id` is "<network id>/<address>".

    Whoever frees an address without knowing how long it rests writes `until_ms` 0: the allocator fills it in. The VXLAN
    id of a removed network rests as address "<VNI>" of the network RESTING_VNIS.
    """

    id: str
    meta: Meta = Meta()
    network_id: str
    address: str
    until_ms: int


# --- containers of others -------------------------------------------------------------------------------------------


class Lease(Value, frozen=True, kw_only=True):
    """A block of a network's addresses that a node gives out by itself (docs/decisions/0025).

    `id` is "<network id>/<node id>/<number>". Made by the dispatcher when a node asks, with an empty block; the
    allocator fills it in.
    """

    id: str
    meta: Meta = Meta()
    node_id: str
    network_id: str
    block: str = ""  # a prefix of the network's subnet: "10.128.0.16/28"


class Attachment(Value, frozen=True, kw_only=True):
    """A container that others than the managers have started, on one network. Told by its node, which owns it."""

    id: str  # of 25 characters, as tasks have
    meta: Meta = Meta()
    node_id: str
    network_id: str
    address: str  # out of one of the node's leases
    name: str  # the container's
    container: str = ""  # the engine's id of it
    service: str  # whose endpoint it is; without a label, its own name
    aliases: tuple[str, ...] = ()
    named_ports: tuple[NamedPort, ...] = ()
    ports: tuple[PortSpec, ...] = ()  # host-mode ports it occupies on its node
    weight: int = 1  # connections it gets beside others of its service; 0: none
    ready: bool = True


# --- trust --------------------------------------------------------------------------------------------------------


class Authority(Value, frozen=True, kw_only=True):
    """What signs the certificates of the cluster (control.ca.rotation). Never leaves the managers.

    `id` is the cluster's. Certificates and keys are PEM. While the root is being changed, `old_certificate` and
    `old_key` are those of the root before, which is still believed then.
    """

    id: str
    meta: Meta = Meta()
    certificate: str
    key: str
    crossed: str = ""  # the certificate's name and key, as signed by the root before
    old_certificate: str = ""
    old_key: str = ""
    extra: tuple[str, ...] = ()  # roots of changes that were themselves replaced before they were done; still believed
    url: str = ""  # of an external CA, which has the key then (control.ca.external)


class User(Value, frozen=True, kw_only=True):
    """An operator with a certificate, for calls over TCP. `id` is the name in it."""

    id: str
    meta: Meta = Meta()
    role: UserRole
    key_digest: str = ""  # of the key that the certificate is for: an earlier one of the same name is refused
    expires_ms: int = 0  # when the certificate ends, and every renewal of it


Object = Cluster | Node | Network | Service | Task | RestingAddress | Lease | Attachment | Authority | User
Kind = Literal[
    "cluster", "node", "network", "service", "task", "resting_address", "lease", "attachment", "authority", "user"
]
KINDS: dict[Kind, type[Object]] = {
    "cluster": Cluster,
    "node": Node,
    "network": Network,
    "service": Service,
    "task": Task,
    "resting_address": RestingAddress,
    "lease": Lease,
    "attachment": Attachment,
    "authority": Authority,
    "user": User,
}
KIND_OF: dict[type[Object], Kind] = {cls: kind for kind, cls in KINDS.items()}
