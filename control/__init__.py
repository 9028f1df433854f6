"""The control plane: agreement, and turning specs into assigned tasks.

Knows nothing of the kernel, of DNS or of gossip. See ARCHITECTURE.md for the map.
"""

import os

# For gRPC, which reads it once and has no other way to be told: of TLS before 1.3 only what takes an RSA key,
# which no certificate of a cluster has. An etcd may (control.etcd).
os.environ.setdefault(
    "GRPC_SSL_CIPHER_SUITES",
    "ECDHE-RSA-AES256-GCM-SHA384:ECDHE-RSA-AES128-GCM-SHA256:ECDHE-RSA-CHACHA20-POLY1305",
)
