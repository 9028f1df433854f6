"""The network and IPAM plugin of this machine's Docker Engine, and containers that others than the managers start."""
