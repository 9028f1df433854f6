"""docs/docker-tests.md tells the truth: every test it names is there."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
ROW = re.compile(r"\| [^|]*\| (?P<where>engine|cluster|) ?\| `(?P<file>tests/[\w./]+\.py)::(?P<name>\w+)` \|")


def test_every_test_of_the_table_is_there_and_runs_where_it_says() -> None:
    lines = (ROOT / "docs/docker-tests.md").read_text().splitlines()
    rows = [line for line in lines if line.startswith("|")][2:]
    assert len(rows) > 35
    for row in rows:
        found = ROW.fullmatch(row)
        assert found is not None, row
        text = (ROOT / found["file"]).read_text()
        assert f"def {found['name']}(" in text, row
        assert ("real_engine" in text) == (found["where"] == "engine") or found["where"] == "", row
        assert found["file"].startswith("tests/e2e/") == (found["where"] == "cluster"), row
