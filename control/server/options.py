"""Limits of a manager's gRPC server, for all that serve or call it. No tasks, no state."""

from __future__ import annotations

# The largest request: a spec or a report of 1,000 statuses stays far below. As gRPC's own default.
REQUEST_MAX_BYTES = 4 << 20
# The largest answer: a complete set of assignments, or a list (api.LIST_MAX_BYTES). Callers must allow it, too.
REPLY_MAX_BYTES = 64 << 20
# Streams of one connection; a daemon needs a session and a few calls of its users. What a peer does not read is kept
# with its stream, so this also bounds what one connection can cost.
STREAMS_PER_CONNECTION_MAX = 64
# Calls and streams of all: a session of each of 5,000 nodes, and calls besides.
CALLS_MAX = 8192
# A peer that is gone without a word (cut cable) is noticed after at most this; sessions have their own heartbeat.
KEEPALIVE_MS, KEEPALIVE_TIMEOUT_MS = 30_000, 10_000

# Half-open connections, and such as do not get on with TLS; gRPC's own limit is two minutes.
HANDSHAKE_TIMEOUT_MS = 10_000

SERVER_OPTIONS: tuple[tuple[str, int], ...] = (
    ("grpc.max_receive_message_length", REQUEST_MAX_BYTES),
    ("grpc.max_send_message_length", REPLY_MAX_BYTES),
    ("grpc.max_concurrent_streams", STREAMS_PER_CONNECTION_MAX),
    ("grpc.keepalive_time_ms", KEEPALIVE_MS),
    ("grpc.keepalive_timeout_ms", KEEPALIVE_TIMEOUT_MS),
    ("grpc.server_handshake_timeout_ms", HANDSHAKE_TIMEOUT_MS),
    ("grpc.so_reuseport", 0),  # a second daemon on the port is an error, not a partner that takes half of the calls
)

# A manager that restarts is back in a second, and nobody shall wait much longer than that for it.
RECONNECT_FIRST_MS, RECONNECT_MAX_MS = 100, 1000
# A machine that is switched off says nothing: whoever calls it has to go on to the next.
CONNECT_MS = 3000

CHANNEL_OPTIONS: tuple[tuple[str, int], ...] = (
    ("grpc.max_receive_message_length", REPLY_MAX_BYTES),
    ("grpc.min_reconnect_backoff_ms", CONNECT_MS),
    ("grpc.initial_reconnect_backoff_ms", RECONNECT_FIRST_MS),
    ("grpc.max_reconnect_backoff_ms", RECONNECT_MAX_MS),
    ("grpc.enable_http_proxy", 0),  # between machines of one cluster, whatever the environment says
)
