"""One node's day: what the managers assigned, compiled into plans, made true, and reported."""
