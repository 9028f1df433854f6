"""The fixture of these tests: real hosts on this machine's kernel."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.netns.world import World, hosts_on_a_switch


@pytest.fixture
def world(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[World]:
    """Three hosts; mark with `@pytest.mark.hosts(n)` for another number."""
    if os.geteuid() != 0:
        pytest.skip("needs root")
    marker = request.node.get_closest_marker("hosts")
    with hosts_on_a_switch(marker.args[0] if marker else 3, tmp_path) as made:
        yield made
