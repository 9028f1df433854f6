"""The name server. Knows names and addresses, and nothing of where they come from."""
