"""A small lab whose daemons only sleep, in a directory of the test's own."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from mesh.lab.lab import Daemon, Lab


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """Two hosts for all tests of a module. A test leaves them up."""
    if os.geteuid() != 0:
        pytest.skip("needs root")
    lab = Lab(f"test-{os.getpid()}", tmp_path_factory.mktemp("labs"))
    lab.up(2, Daemon(("sleep", "infinity")))
    yield lab
    lab.down()


@pytest.fixture
def lab(shared: Lab) -> Lab:
    """The lab of the module, all hosts and daemons running."""
    for row in shared.status():
        if row.state == "off":
            shared.start(row.name)
        elif row.daemon == "stopped":
            shared.start_daemon(row.name)
    return shared
