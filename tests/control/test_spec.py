"""Every mistake a user can make in a spec, all of them at once, each in one sentence that names the thing."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from control import spec as specs
from control.model import (
    BalancePolicy,
    ClusterSpec,
    ContainerSpec,
    GlobalMode,
    HealthCheck,
    NamedPort,
    NamePolicy,
    NetworkAttachment,
    NetworkSpec,
    NodeDescription,
    NodeSpec,
    Placement,
    PortSpec,
    ProcessSpec,
    ReplicatedMode,
    ResourceRequirements,
    Resources,
    RestartPolicy,
    ServiceMode,
    ServiceSpec,
    TaskSpec,
    UpdatePolicy,
)
from control.spec import (
    DescriptionError,
    cluster_mistakes,
    is_label,
    network_mistakes,
    node_mistakes,
    read_description,
    service_mistakes,
)

PROCESS = ProcessSpec(command=("/bin/server", "--port", "80"))
SPREAD = "spread=node.labels.zone"
GOOD = ServiceSpec(
    name="web",
    labels={"team": "a"},
    mode=ServiceMode(replicated=ReplicatedMode(replicas=3)),
    task=TaskSpec(
        process=PROCESS,
        resources=ResourceRequirements(limits=Resources(cpus=1.5, memory_bytes=64 << 20, pids=10)),
        placement=Placement(constraints=("node.labels.zone==a", "node.role!=worker"), preferences=(SPREAD,)),
        networks=(NetworkAttachment(network_id="front", aliases=("www",)),),
    ),
    ports=(PortSpec(target=80, published=8080), PortSpec(target=53, published=8080, protocol="udp")),
)


def web(**fields: Any) -> ServiceSpec:
    return msgspec.structs.replace(GOOD, **fields)


def task(**fields: Any) -> ServiceSpec:
    return web(task=msgspec.structs.replace(GOOD.task, **fields))


def process(**fields: Any) -> ServiceSpec:
    return task(process=msgspec.structs.replace(PROCESS, **fields))


def test_good_specs_have_no_mistakes() -> None:
    assert service_mistakes(GOOD) == []
    assert service_mistakes(web(mode=ServiceMode(global_=GlobalMode()))) == []
    assert service_mistakes(task(process=None, container=ContainerSpec(image="debian:12"))) == []
    assert service_mistakes(ServiceSpec(name="lone", task=TaskSpec(process=PROCESS))) == []
    assert network_mistakes(NetworkSpec(name="web")) == []
    assert cluster_mistakes(ClusterSpec()) == []
    assert node_mistakes(NodeSpec(labels={"zone": "a", "flag": ""}), "h1") == []


@pytest.mark.parametrize("name", ["a", "web", "web-1", "1", "a" * 63])
def test_names(name: str) -> None:
    assert is_label(name)
    assert network_mistakes(NetworkSpec(name=name)) == []


@pytest.mark.parametrize("name", ["", "Web", "web_1", "-web", "web-", "a.b", "a" * 64, "wéb", "web\n", "a b", "web\0"])
def test_bad_names(name: str) -> None:
    assert not is_label(name)
    (mistake,) = network_mistakes(NetworkSpec(name=name))
    assert mistake.startswith('network "')
    assert "must be 1 to 63 lower case letters, digits and hyphens" in mistake
    assert "\n" not in mistake
    (mistake,) = service_mistakes(web(name=name))
    assert mistake.startswith('service "')


@pytest.mark.parametrize("name", ["tasks", "node", "mesh"])
def test_names_with_a_meaning_in_dns(name: str) -> None:
    (mistake,) = network_mistakes(NetworkSpec(name=name))
    assert mistake == f'network "{name}": its name has a meaning of its own in DNS: choose another'


@pytest.mark.parametrize("subnet", ["10.0.0.0/8", "10.20.0.0/20", "192.168.7.8/29", "172.16.0.0/12", "100.64.0.0/10"])
def test_subnets(subnet: str) -> None:
    assert network_mistakes(NetworkSpec(name="web", subnet=subnet)) == []


@pytest.mark.parametrize(
    ("subnet", "sentence"),
    [
        ("10.20.0.0", "subnet must be a /8 to /29, not 10.20.0.0"),
        ("10.20.0.0/7", "subnet must be a /8 to /29, not 10.20.0.0/7"),
        ("10.20.0.0/30", "subnet must be a /8 to /29, not 10.20.0.0/30"),
        ("10.20.0.1/20", "subnet 10.20.0.1/20 is not written as a prefix: 10.20.0.0/20 is meant"),
        ("10.20.0.0/255.255.240.0", "subnet 10.20.0.0/255.255.240.0 is not written as a prefix: 10.20.0.0/20 is meant"),
        ("127.0.0.0/8", "subnet 127.0.0.0/8 cannot be used: it is loopback"),
        ("224.1.0.0/16", "subnet 224.1.0.0/16 cannot be used: it is multicast"),
        ("169.254.8.0/24", "subnet 169.254.8.0/24 cannot be used: it is link-local"),
        ("255.255.255.0/24", "subnet 255.255.255.0/24 cannot be used: it is reserved"),
        ("0.0.0.0/8", "subnet 0.0.0.0/8 cannot be used: it is reserved"),
        ("fd00::/64", 'subnet must be an IPv4 prefix such as 10.20.0.0/20, not "fd00::/64"'),
        ("ten", 'subnet must be an IPv4 prefix such as 10.20.0.0/20, not "ten"'),
        ("10.0.0.0/8/8", 'subnet must be an IPv4 prefix such as 10.20.0.0/20, not "10.0.0.0/8/8"'),
    ],
)
def test_bad_subnets(subnet: str, sentence: str) -> None:
    assert network_mistakes(NetworkSpec(name="web", subnet=subnet)) == [f'network "web": {sentence}']


CASES: list[tuple[ServiceSpec, str]] = [
    (web(mode=ServiceMode(replicated=ReplicatedMode(replicas=-3))), "replicas must be 0 or more, not -3"),
    (web(mode=ServiceMode(replicated=ReplicatedMode(replicas=10**9))), "replicas must be 0 to 100000, not 1e+09"),
    (web(mode=ServiceMode()), "a mode is needed: replicated or global"),
    (
        web(mode=ServiceMode(replicated=ReplicatedMode(), global_=GlobalMode())),
        "only one mode is possible: replicated or global",
    ),
    (task(process=None), "nothing to run: it needs either a process or a container"),
    (task(container=ContainerSpec(image="x")), "it can be either a process or a container, not both"),
    (
        task(process=None, container=ContainerSpec(image="two words")),
        'image must be a reference such as debian:12, not "two words"',
    ),
    (process(command=()), "the command is empty"),
    (process(command=("",)), "the command is empty"),
    (process(command=("a\0b",)), 'argument "a\\x00b" contains a NUL character'),
    (process(command=("x",) * 1025), "at most 1024 arguments are possible, not 1025"),
    (process(env={"A=B": "1"}), '"A=B" cannot be the name of an environment variable'),
    (process(env={"": "1"}), '"" cannot be the name of an environment variable'),
    (process(env={"A": "x" * 40_000}), "environment variable A is longer than 32768 characters"),
    (process(workdir="srv"), 'working directory must be an absolute path, not "srv"'),
    (process(rootfs="../root"), 'root file system must be an absolute path, not "../root"'),
    (process(user="a b"), 'user must be a name or number, with or without ":group", not "a b"'),
    (process(hostname="-x"), 'hostname must be a host name of at most 64 characters, not "-x"'),
    (task(stop_signal="TERM"), 'stop signal must be a name such as SIGTERM, not "TERM"'),
    (task(stop_grace_s=-1), "stop grace period must be 0 or more, not -1 s"),
    (task(stop_grace_s=float("nan")), "stop grace period must be 0 to 3.16224e+07, not nan s"),
    (task(stop_grace_s=float("inf")), "stop grace period must be 0 to 3.16224e+07, not inf s"),
    (task(restart=RestartPolicy(delay_s=-0.5)), "restart delay must be 0 or more, not -0.5 s"),
    (task(restart=RestartPolicy(window_s=-1)), "restart window must be 0 or more, not -1 s"),
    (task(restart=RestartPolicy(max_attempts=-1)), "restart attempts must be 0 or more, not -1"),
    (
        task(resources=ResourceRequirements(limits=Resources(cpus=0.0001))),
        "CPU limit must be 0.001 to 4096, not 0.0001",
    ),
    (
        task(resources=ResourceRequirements(reservations=Resources(memory_bytes=1000))),
        "memory reservation must be 4 MiB or more, not 1000 bytes",
    ),
    (
        task(
            resources=ResourceRequirements(
                limits=Resources(memory_bytes=8 << 20), reservations=Resources(memory_bytes=16 << 20)
            )
        ),
        "more is reserved than its limits allow it to use",
    ),
    (task(placement=Placement(max_replicas_per_node=-1)), "replicas per node must be 0 or more, not -1"),
    (
        task(networks=(NetworkAttachment(network_id="a"), NetworkAttachment(network_id="a"))),
        'network "a" is named twice',
    ),
    (task(networks=(NetworkAttachment(network_id=""),)), "the name of a network is empty"),
    (
        web(ports=(PortSpec(target=0, published=80),)),
        "target port must be 1 to 65535, not 0",
    ),
    (
        web(ports=(PortSpec(target=80, published=65536),)),
        "published port must be 0 to 65535, not 65536",
    ),
    (
        web(ports=(PortSpec(target=80, published=80), PortSpec(target=81, published=80, mode="host"))),
        "port 80 is published twice",
    ),
    (
        web(ports=(PortSpec(target=80, published=53, protocol="udp"),) * 2),
        "port 53/udp is published twice",
    ),
    (
        web(endpoint_mode="dnsrr"),
        "endpoint mode dnsrr has no address to balance on: publish its ports in host mode",
    ),
    (
        task(networks=()),
        "published ports are reached over a network: attach it to one with --network",
    ),
    (web(update=UpdatePolicy(parallelism=-1)), "update parallelism must be 0 or more, not -1"),
    (web(update=UpdatePolicy(delay_s=-2)), "update delay must be 0 or more, not -2 s"),
    (web(rollback=UpdatePolicy(max_failure_ratio=1.5)), "rollback failure ratio must be 0 to 1, not 1.5"),
    (
        web(rollback=UpdatePolicy(failure_action="rollback")),
        "rollback failure action must be pause or continue, not rollback",
    ),
    (web(labels={"": "x"}), '"" cannot be the key of a label'),
    (web(labels={"a=b": "x"}), '"a=b" cannot be the key of a label'),
    (web(labels={"a": "x" * 2000}), "label a is longer than 1024 characters"),
]


@pytest.mark.parametrize(("spec", "sentence"), CASES, ids=[sentence[:40] for _, sentence in CASES])
def test_each_mistake_of_a_service(spec: ServiceSpec, sentence: str) -> None:
    assert service_mistakes(spec) == [f'service "web": {sentence}']


@pytest.mark.parametrize(
    "constraint", ["", "node.labels.zone", "zone==a", "node.labels.zone=a", "node.role == ", "== a"]
)
def test_bad_constraints(constraint: str) -> None:
    (mistake,) = service_mistakes(task(placement=Placement(constraints=(constraint,))))
    assert mistake.startswith('service "web": ')
    assert f'"{constraint}"' in mistake


@pytest.mark.parametrize("preference", ["", "spread", "spread=", "spread=zone", "pack=node.labels.zone"])
def test_bad_preferences(preference: str) -> None:
    (mistake,) = service_mistakes(task(placement=Placement(preferences=(preference,))))
    assert mistake.startswith('service "web": ')
    assert f'"{preference}"' in mistake


@pytest.mark.parametrize(
    ("spec", "sentence"),
    [
        (
            web(ports=(PortSpec(target=80, address="h1"),)),
            'a port is published on an address such as 192.0.2.1, not "h1"',
        ),
        (web(ports=(PortSpec(target=80, address="0.0.0.0"),)), "a port cannot be published on 0.0.0.0"),
        (
            web(ports=(PortSpec(target=80, address="2001:DB8::1"),)),
            "address 2001:DB8::1 is not written as usual: 2001:db8::1 is meant",
        ),
        (
            web(ports=(PortSpec(target=80, published=80, constraints=("zone",)),)),
            'constraint "zone": must be KEY==VALUE or KEY!=VALUE',
        ),
        (
            web(ports=(PortSpec(target=80, published=80, mode="host", constraints=("node.role==worker",)),)),
            "port 80 is published where its tasks run: constraints are for ingress mode",
        ),
        (
            web(named_ports=(NamedPort(name="HTTP", port=80),)),
            'port name "HTTP" must be 1 to 15 lower case letters, digits and hyphens',
        ),
        (web(named_ports=(NamedPort(name="http", port=0),)), 'port "http" must be 1 to 65535, not 0'),
        (web(named_ports=(NamedPort(name="a", port=1),) * 2), 'port name "a/tcp" is given twice'),
        (web(balance=BalancePolicy(affinity_s=-1)), "client affinity must be 0 or more, not -1 s"),
        (web(balance=BalancePolicy(idle_s=1)), "idle time-out must be 60 to 3.16224e+07, not 1 s"),
        (task(health=HealthCheck()), "a health check is one of a command, a TCP port and an HTTP path"),
        (
            task(health=HealthCheck(tcp=80, http=":80/")),
            "a health check is one of a command, a TCP port and an HTTP path",
        ),
        (
            task(health=HealthCheck(http="http://localhost/")),
            'health check over HTTP must be :PORT/PATH such as :8080/healthz, not "http://localhost/"',
        ),
        (task(health=HealthCheck(tcp=80, retries=0)), "health check retries must be 1 to 1000, not 0"),
        (web(names=NamePolicy(ttl_s=86400)), "TTL of its name must be 0 to 3600, not 86400 s"),
    ],
)
def test_mistakes_about_addresses_ports_and_names(spec: ServiceSpec, sentence: str) -> None:
    assert service_mistakes(spec) == [f'service "web": {sentence}']


@pytest.mark.parametrize("subnet6", ["fd00:20::/64", "2001:db8:1::/48", "fd00::/96"])
def test_ipv6_subnets(subnet6: str) -> None:
    assert network_mistakes(NetworkSpec(name="web", ipv6=True, subnet6=subnet6)) == []


@pytest.mark.parametrize(
    ("subnet6", "sentence"),
    [
        ("10.0.0.0/24", 'IPv6 subnet must be a prefix such as fd00:20::/64, not "10.0.0.0/24"'),
        ("fd00::", "IPv6 subnet must be a /48 to /96, not fd00::"),
        ("fd00::/112", "IPv6 subnet must be a /48 to /96, not fd00::/112"),
        ("fd00::1/64", "IPv6 subnet fd00::1/64 is not written as a prefix: fd00::/64 is meant"),
        (
            "fe80::/64",
            "IPv6 subnet fe80::/64 cannot be used: it must be unique local (fc00::/7) or global (2000::/3)",
        ),
    ],
)
def test_bad_ipv6_subnets(subnet6: str, sentence: str) -> None:
    assert network_mistakes(NetworkSpec(name="web", ipv6=True, subnet6=subnet6)) == [f'network "web": {sentence}']


def test_an_ipv6_subnet_needs_ipv6() -> None:
    found = network_mistakes(NetworkSpec(name="web", subnet6="fd00:20::/64"))
    assert found == ['network "web": an IPv6 subnet needs IPv6 to be on (--ipv6)']


def test_automatic_ports_may_be_many() -> None:
    assert service_mistakes(web(ports=(PortSpec(target=80), PortSpec(target=81)))) == []


def test_dnsrr_may_publish_on_the_tasks_hosts() -> None:
    assert service_mistakes(web(endpoint_mode="dnsrr", ports=(PortSpec(target=80, published=80, mode="host"),))) == []


def test_aliases_are_names() -> None:
    attachment = NetworkAttachment(network_id="front", aliases=("www", "Not A Name"))
    (mistake,) = service_mistakes(task(networks=(attachment,)))
    assert mistake.startswith('service "web": alias "Not A Name" must be 1 to 63 lower case')


def test_all_mistakes_come_at_once() -> None:
    bad = ServiceSpec(
        name="web",
        mode=ServiceMode(replicated=ReplicatedMode(replicas=-1)),
        task=TaskSpec(process=ProcessSpec(command=()), stop_grace_s=-1),
        ports=(PortSpec(target=0), PortSpec(target=70000, published=70000)),
    )
    assert len(service_mistakes(bad)) == 7


def test_every_count_is_bounded() -> None:
    many = tuple(f"n{i}" for i in range(2000))
    bad = web(
        labels=dict.fromkeys(many, ""),
        ports=tuple(PortSpec(target=80) for _ in many),
        task=msgspec.structs.replace(
            GOOD.task,
            process=ProcessSpec(command=many, env=dict.fromkeys(many, "")),
            networks=tuple(NetworkAttachment(network_id=n, aliases=many[:100] if n == "n0" else ()) for n in many),
            placement=Placement(constraints=("node.role==worker",) * 100, preferences=("spread=node.labels.a",) * 100),
        ),
    )
    found = [m for m in service_mistakes(bad) if "at most" in m]
    assert len(found) == 8


@pytest.mark.parametrize(
    ("spec", "sentence"),
    [
        (ClusterSpec(name="My Cluster"), 'name "My Cluster" must be 1 to 63'),
        (ClusterSpec(heartbeat_period_s=0), "heartbeat period must be 0.1 to 60, not 0 s"),
        (ClusterSpec(task_history_limit=-1), "task history limit must be 0 or more, not -1"),
        (ClusterSpec(address_rest_s=-1), "rest of freed addresses must be 0 or more, not -1 s"),
        (ClusterSpec(vxlan_port=80), "VXLAN port must be 1024 to 49151, not 80"),
        (ClusterSpec(address_pools=()), "at least one address pool is needed"),
        (ClusterSpec(address_pools=("10.0.0.0/24",)), "address pool 10.0.0.0/24 is smaller than one subnet (/20)"),
        (ClusterSpec(address_pools=("10.0.0.0/8", "10.1.0.0/16")), "address pools 10.0.0.0/8 and 10.1.0.0/16 overlap"),
        (ClusterSpec(address_pools=("127.0.0.0/8",)), "address pool 127.0.0.0/8 cannot be used: it is loopback"),
        (ClusterSpec(subnet_prefix_length=30), "subnet prefix length must be 8 to 29, not 30"),
    ],
)
def test_each_mistake_of_the_cluster(spec: ClusterSpec, sentence: str) -> None:
    (mistake,) = cluster_mistakes(spec)
    assert mistake.startswith(f"cluster: {sentence}")


def test_mistakes_of_a_node_name_it() -> None:
    assert node_mistakes(NodeSpec(labels={" ": "x"}), "h1") == ['node "h1": " " cannot be the key of a label']


def test_what_a_node_says_is_made_fit() -> None:
    said = NodeDescription(
        hostname="h1.example.org",
        cpus=float("nan"),
        memory_bytes=-5,
        routes=("10.1.2.3/16", "default", "0.0.0.0/0", "::/0", "junk", "10.1.0.0/16", "192.168.0.0/24"),
    )
    assert read_description(msgspec.msgpack.encode(said)) == NodeDescription(
        hostname="h1.example.org", routes=("10.1.0.0/16", "192.168.0.0/24")
    )


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xc1",
        msgspec.msgpack.encode({"hostname": 7}),
        *(msgspec.msgpack.encode(NodeDescription(hostname=h)) for h in ("", "a b", "-a", "a..b", "a\n", "x" * 65)),
        msgspec.msgpack.encode(NodeDescription(hostname="h1", routes=("10.0.0.0/24",) * 30_000)),
    ],
)
def test_what_a_node_says_cannot_always_be_used(data: bytes) -> None:
    with pytest.raises(DescriptionError):
        read_description(data)


anything = st.one_of(st.text(max_size=80), st.sampled_from(["10.0.0.0/8", "node.role==x", "web", "\ud800"[:0]]))


@settings(max_examples=100, deadline=None)
@given(anything, anything, anything, st.integers(), st.floats(), st.integers(-(2**31), 2**31))
def test_whatever_is_asked_for_is_answered_in_clean_sentences(
    name: str, text: str, other: str, number: int, seconds: float, port: int
) -> None:
    number = max(-(2**63), min(2**63, number))
    spec = ServiceSpec(
        name=name,
        labels={text: other},
        mode=ServiceMode(replicated=ReplicatedMode(replicas=number)),
        task=TaskSpec(
            process=ProcessSpec(command=(text, other), env={other: text}, workdir=text, user=other, hostname=text),
            restart=RestartPolicy(delay_s=seconds, max_attempts=number),
            placement=Placement(constraints=(text,), preferences=(other,)),
            networks=(NetworkAttachment(network_id=text, aliases=(other,)),),
            stop_signal=text,
            stop_grace_s=seconds,
        ),
        ports=(PortSpec(target=port, published=port),),
        update=UpdatePolicy(parallelism=number, max_failure_ratio=seconds),
    )
    mistakes = service_mistakes(spec) + network_mistakes(NetworkSpec(name=name, subnet=text))
    for mistake in mistakes:
        assert mistake.isprintable()
        assert len(mistake) < 600
    assert specs.service_mistakes(spec) + network_mistakes(NetworkSpec(name=name, subnet=text)) == mistakes
