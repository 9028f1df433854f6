"""When a certificate is to be renewed: at a random point between half and four fifths of its life. Pure.

At random, so that nodes that came together do not come together again; early enough that a fifth of the life is left
for what may be in the way. After SwarmKit (ca/renewer.go).
"""

from __future__ import annotations

from cryptography import x509

from control.ca.root import BACKDATE_S

RENEW_FROM, RENEW_TO = 0.5, 0.8
# After an attempt that failed; at first soon, then often enough that some hundred fit into a fifth of an hour's life.
RETRY_FIRST_S, RETRY_MAX_S = 2.0, 60.0


def renew_at_s(certificate: x509.Certificate, fraction: float) -> float:
    """When, in seconds since 1970. `fraction` is drawn evenly from 0..1."""
    ends = certificate.not_valid_after_utc.timestamp()
    # Its life begins when it was made, not when it says: with the shortest life of an hour that is half of it.
    begins = min(certificate.not_valid_before_utc.timestamp() + BACKDATE_S, ends)
    return begins + (ends - begins) * (RENEW_FROM + (RENEW_TO - RENEW_FROM) * min(max(fraction, 0.0), 1.0))


def retry_delay_s(attempts: int, fraction: float) -> float:
    """How long to wait after so many failures in a row."""
    return float(min(RETRY_FIRST_S * 2 ** min(attempts, 16), RETRY_MAX_S) * (0.5 + 0.5 * min(max(fraction, 0.0), 1.0)))


def has_expired(certificate: x509.Certificate, now_s: float) -> bool:
    return now_s >= certificate.not_valid_after_utc.timestamp()
