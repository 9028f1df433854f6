"""`mesh trace`."""

from __future__ import annotations

import pytest

from control.rpc import control_pb2 as pb
from mesh.cli.text import TextError
from mesh.cli.trace import split_target
from tests.mesh.cli.fake import Mesh


def test_the_steps_are_shown_and_a_loss_is_told_by_the_exit_code(mesh: Mesh) -> None:
    mesh.daemon.trace_steps = [pb.TraceStep(what="name", found="api is 10.128.0.2")]
    assert mesh.ok("trace", "web.1", "api:80") == "     name      api is 10.128.0.2\n"
    assert mesh.daemon.trace_asked == pb.TraceRequest(source="web.1", target="api", port=80, protocol="tcp")
    mesh.daemon.trace_steps.append(pb.TraceStep(what="tunnel", found="nowhere", lost=True))
    result = mesh("trace", "web.1", "api")
    assert result.code == 7
    assert "lost tunnel" in result.out


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("api", ("api", 0)),
        ("api:80", ("api", 80)),
        ("10.0.0.1:53", ("10.0.0.1", 53)),
        ("fd00::1", ("fd00::1", 0)),
        ("[fd00::1]:80", ("fd00::1", 80)),
        ("[fd00::1]", ("fd00::1", 0)),
    ],
)
def test_targets(text: str, parts: tuple[str, int]) -> None:
    assert split_target(text) == parts


@pytest.mark.parametrize("text", ["api:http", "api:0", "api:70000", "api:", "[fd00::1]:x"])
def test_bad_targets(text: str) -> None:
    with pytest.raises(TextError):
        split_target(text)
