"""Which node runs a task. Pure; `decide` is the entry."""

from control.scheduler.scheduler import decide

__all__ = ["decide"]
