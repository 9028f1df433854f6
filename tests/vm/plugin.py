"""pytest in the virtual machine: leaves out what is about the maps of the other balancer."""

from __future__ import annotations

import os

import pytest

# Tests of the content of the nftables balancer's own maps and chains. `test_ipvs.py` has their like for IPVS.
ONLY_NFTABLES = (
    "repaired[a chain's rules]",
    "repaired[one shared chain's rules]",
    "repaired[a map]",
    "repaired[one element]",
    "repaired[a foreign element]",
    "repaired[another slot]",
    "test_a_thousand_services_load_and_a_change_of_one_is_a_change_of_few_elements",
)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselect them where the balancer is IPVS."""
    if os.environ.get("MESH_BALANCER") != "ipvs":
        return
    left_out = [item for item in items if item.name.endswith(ONLY_NFTABLES)]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]
