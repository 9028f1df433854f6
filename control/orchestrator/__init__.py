"""Which tasks should exist, and what is wanted of them. Pure; `decide` is the entry."""

from control.orchestrator.orchestrator import decide

__all__ = ["decide"]
