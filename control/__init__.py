"""The control plane: agreement, and turning specs into assigned tasks.

Knows nothing of the kernel, of DNS or of gossip. See ARCHITECTURE.md for the map.
"""
