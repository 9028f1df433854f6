"""100,000 packets of junk a second to one agent, on its real socket."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from tests.interop.serf.cluster import Cluster
from tests.interop.serf.flood import built
from tests.interop.serf.test_clusters import TWO_AND_TWO

_FAILED = re.compile(r"EventMemberFailed: (\S+)")
RATE, SECONDS = 100_000, 8
RSS_MAX_MIB = 60.0  # at rest 33


@pytest.mark.timeout(120)
def test_junk_by_the_hundred_thousand_makes_nobody_fail(tmp_path: Path) -> None:
    program = built(tmp_path)
    with Cluster(tmp_path, TWO_AND_TWO) as cluster:
        cluster.full()
        victim = next(node for node in cluster.nodes if node.kind == "mesh")
        flood = subprocess.Popen([str(program), str(victim.port), str(RATE), str(SECONDS)], stdout=subprocess.PIPE)
        sent, _ = flood.communicate(timeout=60)
        assert int(sent) > RATE * SECONDS / 4, "on one core or less of a busy machine"
        assert victim.rss_mib() < RSS_MAX_MIB
        cluster.full()
        logs = "".join(log.read_text() for log in tmp_path.glob("*.log"))
        assert not _FAILED.findall(logs), "nobody fails"
        assert "EventMemberJoin" in logs, "the log is one that would say so"
