"""Networks as rows."""

from __future__ import annotations

from collections.abc import Sequence

from control.model import Network
from mesh.cli.text.table import short_id
from mesh.cli.text.template import Record

COLUMNS = {
    "ID": "NETWORK ID",
    "Name": "NAME",
    "Driver": "DRIVER",
    "Scope": "SCOPE",
    "Subnet": "SUBNET",
    "VNI": "VNI",
    "Internal": "INTERNAL",
}
MORE = {
    "Subnet6": "IPV6 SUBNET",
    "Encrypted": "ENCRYPTED",
    "Gateway": "GATEWAY",
    "Labels": "LABELS",
    "CreatedAt": "CREATED AT",
}


def network_rows(networks: Sequence[Network], *, no_trunc: bool) -> list[Record]:
    """Rows in the order of names."""
    return [
        Record(
            ID=network.id if no_trunc else short_id(network.id),
            Name=network.spec.name,
            Driver="overlay",
            Scope="swarm",
            Subnet=network.subnet or network.spec.subnet,
            VNI=network.vni or "",
            Internal="true" if network.spec.internal else "false",
            Subnet6=network.subnet6 or network.spec.subnet6,
            Encrypted="true" if network.spec.encrypted else "false",
            Gateway=network.gateway,
            Labels=network.spec.labels,
            CreatedAt=network.meta.created_ms,
        )
        for network in sorted_networks(networks)
    ]


def sorted_networks(networks: Sequence[Network]) -> list[Network]:
    """By name, as rows are."""
    return sorted(networks, key=lambda network: (network.spec.name, network.id))
