"""The fixtures of these tests: real hosts on this machine's kernel."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.netns.vip_lab import Lab, default_nets, three_hosts
from tests.netns.world import World, hosts_on_a_switch

# For the virtual machine: without IPVS, a flowtable, or sockets of SCTP, in the kernel there is nothing to collect.
collect_ignore = [] if "MESH_VM" in os.environ else ["test_vip_flowtable.py", "test_vip_ipvs.py", "test_vip_sctp.py"]

_LEFT: list[contextlib.AbstractContextManager[Lab]] = []


@pytest.fixture
def world(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[World]:
    """Three hosts; mark with `@pytest.mark.hosts(n)` for another number."""
    if os.geteuid() != 0:
        pytest.skip("needs root")
    marker = request.node.get_closest_marker("hosts")
    with hosts_on_a_switch(marker.args[0] if marker else 3, tmp_path) as made:
        yield made


@pytest.fixture(scope="session")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """The lab of all tests of `mesh.vip`: in the virtual machine it takes half a minute to make one."""
    if os.geteuid() != 0:
        pytest.skip("needs root")
    making = three_hosts(tmp_path_factory.mktemp("vip"))
    yield making.__enter__()
    if "MESH_VM" in os.environ:
        _LEFT.append(making)  # the machine is switched off soon, which takes less time
    else:
        making.__exit__(None, None, None)


@pytest.fixture
def lab(hosts: Lab) -> Lab:
    """The hosts as they were at the beginning. What a test changes beside `nets`, it puts right again."""
    hosts.nets = default_nets()
    hosts.apply()
    return hosts
