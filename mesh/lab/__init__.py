"""Several machines on this one, for trying things out: hosts as bundles of namespaces, a switch, an outside client."""
