"""Which tasks should exist, and what is wanted of them. Pure; `decide` in orchestrator.py is the entry."""
