"""What managers serve over gRPC: pure operations on snapshots, and thin shells (api, membership, dispatcher)."""
