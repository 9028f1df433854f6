"""What engines and users say: labels, payloads of calls, lists of containers and networks."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from control.assignment import NetworkWish
from control.model import HealthCheck, NamedPort, Network, NetworkSpec
from mesh.plugin import wire
from mesh.plugin.labels import LabelError, Labels, name_of, read_labels
from mesh.plugin.wanted import NETWORK_LABEL, boxes, nets


def test_labels_say_what_a_container_is() -> None:
    said = read_labels(
        {
            "mesh.service": "API", "mesh.port": "80,dns=53/udp", "mesh.check": "http:/healthz", "mesh.weight": "3",
            "mesh.network": "web", "mesh.aliases": "a, b", "com.example": "x",
        }
    )  # fmt: skip
    assert said.service == "api"
    assert said.ports == (NamedPort(name="port-80", port=80), NamedPort(name="dns", port=53, protocol="udp"))
    assert said.check == HealthCheck(http=":80/healthz")
    assert (said.weight, said.aliases, said.network) == (3, ("a", "b"), "web")
    assert Labels(service="x", weight=0).over(said) == msgspec.structs.replace(said, service="x", weight=0)


@pytest.mark.parametrize(
    ("label", "value", "sentence"),
    [
        ("mesh.service", "a b", "is no name"),
        ("mesh.port", "0", "is no port"),
        ("mesh.port", "http=99999", "is no port"),
        ("mesh.weight", "-1", "0 to 100"),
        ("mesh.weight", "101", "0 to 100"),
        ("mesh.check", "tcp", "is no check"),
        ("mesh.check", "ftp:1", "is no check"),
        ("mesh.check", "http:nowhere", "is no check"),
        ("mesh.prot", "80", "there is no label"),
    ],
)
def test_labels_that_make_no_sense_are_named(label: str, value: str, sentence: str) -> None:
    with pytest.raises(LabelError, match=sentence):
        read_labels({label: value})


@pytest.mark.parametrize(
    ("text", "name"), [("proj_web-1", "proj-web-1"), ("My.Box", "my-box"), ("__", "container"), ("x" * 99, "x" * 63)]
)
def test_names_for_dns_are_made_of_any_name(text: str, name: str) -> None:
    assert name_of(text) == name


def test_calls_are_read_as_engines_make_them() -> None:
    made = {"NetworkID": "n", "EndpointID": "e", "Interface": {"Address": "10.1.0.2/24", "AddressIPv6": ""},
            "Options": {"mesh.service": "api", wire.PORT_MAP: [{"Proto": 6, "IP": "", "Port": 80, "HostIP": "0.0.0.0",
                        "HostPort": 8080, "HostPortEnd": 8080}]}, "New": 1}  # fmt: skip
    call = wire.read(msgspec.json.encode(made), wire.OfEndpoint)
    assert call.interface is not None
    assert (call.interface.address, call.labels()) == ("10.1.0.2/24", {"mesh.service": "api"})
    assert wire.port_mappings(call.options) == (wire.PortMapping("tcp", 80, 8080, ""),)
    assert wire.port_mappings({wire.PORT_MAP: None}) == wire.port_mappings(None) == ()
    pool = wire.read(b'{"AddressSpace":"mesh-local","Pool":"","Options":null,"V6":false}', wire.RequestPool)
    assert (pool.pool, pool.v6) == ("", False)
    network = wire.read(
        msgspec.json.encode({"NetworkID": "n", "Options": {wire.GENERIC: {"mesh.name": "web"}}}), wire.CreateNetwork
    )
    assert (network.label("mesh.name"), network.label("mesh.network")) == ("web", "")
    with pytest.raises(wire.WireError):
        wire.read(b"[]", wire.OfEndpoint)
    with pytest.raises(wire.WireError):
        wire.port_mappings({wire.PORT_MAP: [{"Port": "x"}]})
    assert wire.failure("/IpamDriver.RequestAddress", "no") == b'{"Error":"no"}'
    assert wire.failure("/NetworkDriver.Join", "no") == b'{"Err":"no"}'


def test_containers_are_read_without_the_tasks() -> None:
    listed: list[dict[str, Any]] = [
        {"Id": "c1", "Names": ["/one"], "Labels": {"mesh.port": "80", "x": "y"}, "Status": "Up 1 second (unhealthy)",
         "NetworkSettings": {"Networks": {"web": {"EndpointID": "e1"}, "b": {"EndpointID": ""}}}},
        {"Id": "c2", "Names": None, "Labels": None, "Status": "Up", "NetworkSettings": None},
        {"Id": "c3", "Names": ["/t"], "Labels": {"com.meshd.task": "t"}},
    ]  # fmt: skip
    one, two = boxes(listed)
    assert (one.id, one.name, one.labels, one.endpoints, one.ready) == (
        "c1", "one", {"mesh.port": "80"}, frozenset({"e1"}), False,
    )  # fmt: skip
    assert (two.id, two.name, two.ready) == ("c2", "", True)


def network(name: str, subnet: str) -> Network:
    return Network(id=f"id-{name}", spec=NetworkSpec(name=name), vni=4097, subnet=subnet, gateway="")


def listed(name: str, subnet: str, driver: str = "mesh", labels: dict[str, str] | None = None) -> dict[str, Any]:
    return {"Id": f"d-{name}", "Name": name, "Driver": driver, "Labels": labels,
            "IPAM": {"Config": [{"Subnet": subnet}] if subnet else None}}  # fmt: skip


def test_networks_become_the_same_on_both_sides() -> None:
    web, db, bridge = network("web", "10.1.0.0/24"), network("db", "10.2.0.0/24"), network("bridge", "10.3.0.0/24")
    ours = {NETWORK_LABEL: "id-old"}
    engine = [
        listed("web", "10.1.0.0/24"), listed("bridge", "", "bridge"), listed("old", "10.9.0.0/24", labels=ours),
        listed("proj_new", "10.5.0.0/24"), listed("foreign", "10.6.0.0/24"),
    ]  # fmt: skip
    own = {
        "d-web": NetworkWish(id="d-web", name="web", subnet="10.1.0.0/24"),
        "d-proj_new": NetworkWish(id="d-new", name="", subnet="10.5.0.0/24"),
    }
    plan = nets([web, db, bridge], engine, own, complete=True)
    assert plan.create == (db,)
    assert plan.remove == ("d-old",)
    assert (plan.wishes["d-web"].made, plan.wishes["d-proj_new"].name) == (True, "proj-new")
    assert len(plan.clashes) == 1
    assert 'driver "bridge"' in plan.clashes[0]
    assert nets([], engine, own, complete=False).remove == (), "an old copy of the catalogue removes nothing"
    # One that was the cluster's and is not any more is removed from the engine.
    assert nets([db], [engine[0]], plan.wishes, complete=True).remove == ("d-web",)
