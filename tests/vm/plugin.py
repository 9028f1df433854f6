"""pytest in the virtual machine: leaves out what is about the maps of the other balancer."""

from __future__ import annotations

import os

import pytest

# Tests of the content of the nftables balancer's own maps and chains. `suite/test_ipvs.py` has their like for IPVS.
ONLY_NFTABLES = (
    "test_a_thousand_services_load_and_a_change_of_one_is_a_change_of_few_elements",
    "test_no_change_replaces_the_table_whatever_the_scheduler",
    "test_a_client_is_forgotten_when_its_affinity_ends",
    "test_of_one_backend_the_kernel_is_asked_for_its_connections_only",  # IPVS has connections of its own
)
# Of the damages to what both balancers share, those that IPVS could notice. All of them are repaired by the same code,
# which is tried on the machine's own kernel, where a repair takes a tenth of the time.
REPAIRS = "test_what_others_break_is_repaired["
REPAIRED_WITH_IPVS = ("[the whole rule set of the router]", "[a map of another type]", "[the VIPs' routes]")


def is_left_out(name: str) -> bool:
    """Whether a test is not for IPVS."""
    return name in ONLY_NFTABLES or (name.startswith(REPAIRS) and not name.endswith(REPAIRED_WITH_IPVS))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselect them where the balancer is IPVS."""
    if os.environ.get("MESH_BALANCER") != "ipvs":
        return
    left_out = [item for item in items if is_left_out(item.name)]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]
