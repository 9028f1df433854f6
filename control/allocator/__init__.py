"""Hands out what exists once: VXLAN ids, subnets, addresses and ports. Pure; `decide` in allocator.py is the entry."""
