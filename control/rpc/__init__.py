"""The gRPC contract: `control.proto` and the code generated from it (`make proto`; CI compares)."""
