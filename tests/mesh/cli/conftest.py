"""The fixture `mesh`: runs command lines against a fake daemon."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from control.model import Cluster
from tests.mesh.cli.fake import FakeClock, FakeDaemon, Mesh, serving


@pytest.fixture
def mesh(tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Mesh]:
    for variable in ("MESH_SOCKET", "MESH_TOKEN", "NO_COLOR"):
        monkeypatch.delenv(variable, raising=False)
    daemon = FakeDaemon()
    daemon.add(Cluster(id="cluster", worker_token="MTKN-1-w", manager_token="MTKN-1-m"))
    with serving(daemon, tmp_path / "s"):
        yield Mesh(daemon, FakeClock(), str(tmp_path / "s"), capfd)
