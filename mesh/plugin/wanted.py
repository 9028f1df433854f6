"""What the engine's containers and networks mean for the book, and what the engine should have. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from msgspec.structs import replace

from control.assignment import NetworkWish
from control.model import Network
from mesh.executor.docker.plan import TASK_LABEL
from mesh.plugin.labels import name_of

NETWORK_LABEL = "com.meshd.network"
DRIVER = "mesh"


@dataclass(frozen=True, slots=True)
class Box:
    """A container that runs, as the engine lists it."""

    id: str
    name: str
    labels: Mapping[str, str]
    endpoints: frozenset[str]
    ready: bool  # by its image's HEALTHCHECK


@dataclass(frozen=True, slots=True)
class Nets:
    """What to do so that the engine has the cluster's networks, and the cluster the engine's."""

    create: tuple[Network, ...] = ()  # in the engine
    remove: tuple[str, ...] = ()  # from the engine, by its id
    wishes: Mapping[str, NetworkWish] = field(default_factory=dict)  # those made in the engine, by its id
    clashes: tuple[str, ...] = ()  # sentences


def boxes(listed: Iterable[Mapping[str, Any]]) -> list[Box]:
    """From `GET /containers/json`, without the tasks of ours."""
    found = []
    for one in listed:
        labels = one.get("Labels") or {}
        if TASK_LABEL in labels:
            continue
        networks = ((one.get("NetworkSettings") or {}).get("Networks") or {}).values()
        found.append(
            Box(
                id=str(one["Id"]),
                name=str((one.get("Names") or [""])[0]).lstrip("/"),
                labels={k: v for k, v in labels.items() if k.startswith("mesh.")},
                endpoints=frozenset(str(n.get("EndpointID") or "") for n in networks) - {""},
                ready="(unhealthy)" not in one.get("Status", "") and "(health: starting)" not in one.get("Status", ""),
            )
        )
    return found


def nets(
    catalogue: Iterable[Network],
    listed: Iterable[Mapping[str, Any]],
    own: Mapping[str, NetworkWish],
    *,
    complete: bool,
) -> Nets:
    """`own`: those made in the engine, as in the book. `complete`: the catalogue is the managers', and no old copy."""
    known = {network.id: network for network in catalogue}
    by_subnet = {network.subnet: network for network in known.values()}
    present: dict[str, str] = {}
    names: dict[str, str] = {}
    remove: list[str] = []
    wishes = dict(own)
    for net in listed:
        id_, subnet = str(net["Id"]), _subnet(net)
        names[str(net["Name"]).lower()] = str(net.get("Driver"))
        if net.get("Driver") != DRIVER:
            continue
        network = by_subnet.get(subnet)
        if network is not None:
            present[network.id] = id_
            if id_ in own:
                wishes[id_] = replace(own[id_], made=True)
        elif complete and (own[id_].made if id_ in own else NETWORK_LABEL in (net.get("Labels") or {})):
            remove.append(id_)
        elif id_ in own and not own[id_].name:
            wishes[id_] = replace(own[id_], name=name_of(str(net["Name"])))
    create, clashes = [], []
    for network in known.values():
        if network.id in present:
            continue
        driver = names.get(network.spec.name.lower())
        if driver is None:
            create.append(network)
        elif driver != DRIVER:
            clashes.append(
                f'network "{network.spec.name}" of the cluster is not in Docker here: its name is that of a network'
                f' with driver "{driver}"'
            )
    return Nets(tuple(create), tuple(remove), wishes, tuple(clashes))


def network_body(network: Network) -> dict[str, Any]:
    """What makes a network of the cluster in an engine, in the words of its SDK."""
    return {
        "driver": DRIVER,
        "options": {"mesh.network": network.id},
        "labels": {NETWORK_LABEL: network.id},
        "internal": network.spec.internal,
        "attachable": True,
        "ipam": {
            "Driver": DRIVER,
            "Config": [{"Subnet": network.subnet, "Gateway": network.gateway}],
        },
    }


def _subnet(net: Mapping[str, Any]) -> str:
    config = (net.get("IPAM") or {}).get("Config") or [{}]
    return str(config[0].get("Subnet", ""))
