"""VXLAN networks on this host: one router namespace per network. Knows nothing of services, DNS or managers."""
