import pytest

from control.store import journal
from tests.control.quorum.lab import Lab


@pytest.fixture
async def lab(tmp_path, monkeypatch):
    monkeypatch.setattr(journal, "SPACE_POLL_S", 0.1)  # tests do not wait for a full disk to be looked at again
    made = Lab(tmp_path)
    yield made
    await made.stop()
