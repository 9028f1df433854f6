"""Which reports of nodes are written."""

from __future__ import annotations

import msgspec
import pytest

from control.dispatcher.writes import is_news
from control.lifecycle import TaskState
from control.model import TaskStatus

RUNNING = TaskStatus(state=TaskState.RUNNING, at_ms=1_000, message="started", pid=7)


@pytest.mark.parametrize(
    ("before", "after", "news"),
    [
        (RUNNING, msgspec.structs.replace(RUNNING, at_ms=9_000), False),  # its daemon was started anew
        (RUNNING, msgspec.structs.replace(RUNNING, at_ms=9_000, error="no answer"), True),
        (RUNNING, TaskStatus(state=TaskState.FAILED, at_ms=9_000, exit_code=1), True),
        (TaskStatus(state=TaskState.STARTING, at_ms=900), RUNNING, True),
        (RUNNING, TaskStatus(state=TaskState.STARTING, at_ms=9_000), False),
        (TaskStatus(state=TaskState.PENDING), RUNNING, False),
        (TaskStatus(state=TaskState.COMPLETE, at_ms=900), RUNNING, False),
    ],
)
def test_what_says_something_new_of_a_living_task_is_news(before: TaskStatus, after: TaskStatus, news: bool) -> None:
    assert is_news(before, after) is news
