"""Every transcript is what happens. After a change that is meant: REWRITE=1 pytest …, and read the difference."""

import os
from pathlib import Path

import pytest

from tests.control.raft.lab import replay

TRANSCRIPTS = sorted((Path(__file__).parent / "transcripts").glob("*.txt"))


@pytest.mark.parametrize("path", TRANSCRIPTS, ids=lambda path: path.stem)
def test_transcript(path: Path):
    now = replay(path)
    if os.environ.get("REWRITE"):
        path.write_text(now)
    assert now == path.read_text()


def test_there_are_transcripts():
    assert len(TRANSCRIPTS) >= 20
