"""Service addresses and published ports on this node. Knows routers only by their namespaces, and no control plane."""
