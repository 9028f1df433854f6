import pytest

from control.store import journal
from tests.control.conformance.worlds import WORLDS
from tests.control.etcd.server import Etcd


@pytest.fixture(scope="session")
def etcd(tmp_path_factory):
    """One real server for all; each test has a prefix of its own."""
    server = Etcd(tmp_path_factory.mktemp("etcd") / "one").start()
    yield server
    server.stop()


@pytest.fixture
async def world(request, tmp_path, monkeypatch):
    """By name, or all of them."""
    monkeypatch.setattr(journal, "SPACE_POLL_S", 0.1)  # tests do not wait for a full disk to be looked at again
    name = request.param
    server = request.getfixturevalue("etcd") if name.startswith("etcd") else None
    made = WORLDS[name](tmp_path, server)
    yield made
    await made.stop()


def pytest_generate_tests(metafunc):
    if "world" in metafunc.fixturenames:
        marker = metafunc.definition.get_closest_marker("needs")
        needs = set(marker.args) if marker is not None else set()
        able = [name for name, made in WORLDS.items() if made.can.issuperset(needs)]
        metafunc.parametrize("world", able, indirect=True)


def pytest_configure(config):
    config.addinivalue_line("markers", "needs(*cruelties): for worlds that can do these (worlds.py)")
