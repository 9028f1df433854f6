"""The product: the daemon, the agent that lives one node's day, the executors, the balancer and the `mesh` command."""

__version__ = "0.1.0"
