"""What holds for all tests: those of whole processes get a second chance, and the summary names each that took it."""

from pathlib import Path

import pytest

TESTS = Path(__file__).parent

# Real daemons, engines and peers, with their own clocks, on however much of two cores they get. Pure tests have none:
# there a failure that goes away is a defect all the same. At most ten in a run (pyproject.toml), shown with tracebacks.
REAL = (
    "e2e", "interop", "security", "mesh/daemon", "mesh/lab", "mesh/plugin", "mesh/executor", "control/conformance",
    "control/etcd", "control/processes", "control/quorum", "control/server", "control/test_manager.py",
    "control/test_managers.py", "control/transport",
)  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        where = item.path.relative_to(TESTS)
        if any(where.is_relative_to(real) for real in REAL):
            item.add_marker(pytest.mark.flaky(reruns=1))
