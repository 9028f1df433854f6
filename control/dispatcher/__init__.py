"""What nodes are told, and what they say: layers of records, feeds, and the core of their sessions. Pure."""
