"""Real processes for half a minute each; `run` does it for longer."""

import pytest

from tests.control.processes.run import torment


@pytest.mark.root
@pytest.mark.timeout(240)
@pytest.mark.parametrize(("managers", "seed"), [(3, 3), (5, 5)])
async def test_whatever_happens_to_managers_what_they_said_is_true(tmp_path, managers, seed):
    report = await torment(tmp_path, managers, 30.0, seed)
    print(report.line())
    assert not report.problems, report.line()
    assert report.acknowledged > 500
    assert report.faults
