"""Which node runs a task. Pure; `decide` in scheduler.py is the entry."""
