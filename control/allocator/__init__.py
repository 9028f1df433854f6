"""Hands out what exists once: VXLAN ids, subnets, addresses and ports. Pure; `decide` is the entry."""

from control.allocator.allocator import decide

__all__ = ["decide"]
