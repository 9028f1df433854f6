"""docs/dataplane-tests.md tells the truth: every test it names is there, and runs where it says."""

from __future__ import annotations

import re
from pathlib import Path

from tests.vm.plugin import is_left_out
from tests.vm.run import BALANCERS, lanes

ROOT = Path(__file__).parents[2]
ROW = re.compile(r"\| [^|]*\| (?P<where>[A-Za-z]+) \| `(?P<file>[\w./]+)::(?P<name>\w+)` \|")


def test_every_test_of_the_table_is_there_and_runs_where_it_says() -> None:
    under_ipvs = {file for lane in lanes((), BALANCERS) for name, files in lane if "ipvs" in name for file in files}
    rows = ROW.findall((ROOT / "docs/dataplane-tests.md").read_text())
    assert len(rows) > 40
    for where, named, name in rows:
        file = named if named.startswith("tests/") else f"tests/netns/{named}"
        assert f"def {name}(" in (ROOT / file).read_text(), f"{file}::{name}"
        if where in {"both", "IPVS"}:
            assert file in under_ipvs, f"{file} does not run under IPVS"
            assert not is_left_out(name), f"{name} is left out under IPVS"
