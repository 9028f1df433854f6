"""What starts tasks: plain processes in namespaces here, Docker behind the same protocol."""
