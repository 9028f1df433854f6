"""Whether to believe a certificate: does one of the roots stand behind it, now, for this use. Pure.

TLS asks the same of its own accord. This is for what happens outside of it: a newcomer that knows no root but only its
digest, and what a manager or an operator brings along.
"""

from __future__ import annotations

from collections.abc import Sequence

from cryptography import x509
from cryptography.x509.verification import (
    Criticality,
    ExtensionPolicy,
    Policy,
    PolicyBuilder,
    Store,
    VerificationError,
)

from control.ca.names import MANAGER_HOST, Holder, holder_in
from control.ca.root import SERIAL_BYTES, CaError, Root, digest, issue, new_key, time_of
from control.token import same

# Roots that a node believes at a time: the one in use, and in the time of a change the one before and the one after.
ROOTS_MAX = 4
# Certificates that come along with a leaf: the cross-signed roots of two changes in a row.
CHAIN_MAX = 4


def root_of_digest(roots: Sequence[x509.Certificate], wanted: str) -> x509.Certificate:
    """The one that a join token names. Raises CaError."""
    for root in roots[:ROOTS_MAX]:
        if same(digest(root), wanted):
            return root
    raise CaError(
        "this is not the cluster that the join token is of: the certificate of its authority has another digest. "
        "Either the address or the token is wrong, or somebody stands in between"
    )


def verify_manager(
    leaf: x509.Certificate, chain: Sequence[x509.Certificate], roots: Sequence[x509.Certificate], now_s: float
) -> Holder:
    """Whose certificate it is, if it is a manager's and one of the roots stands behind it. Raises CaError."""
    return _verify(leaf, chain, roots, now_s, serves=True)


def verify_holder(
    leaf: x509.Certificate, chain: Sequence[x509.Certificate], roots: Sequence[x509.Certificate], now_s: float
) -> Holder:
    """Whose certificate it is, if one of the roots stands behind it. Raises CaError."""
    return _verify(leaf, chain, roots, now_s, serves=False)


def _verify(
    leaf: x509.Certificate,
    chain: Sequence[x509.Certificate],
    roots: Sequence[x509.Certificate],
    now_s: float,
    *,
    serves: bool,
) -> Holder:
    holder = holder_in(leaf)
    if holder is None:
        raise CaError("the certificate names no member of a cluster")
    if not roots:
        raise CaError("there is no root to believe")
    builder = _policy().store(Store(list(roots[:ROOTS_MAX]))).time(time_of(now_s))
    try:
        if serves:
            builder.build_server_verifier(x509.DNSName(MANAGER_HOST)).verify(leaf, list(chain[:CHAIN_MAX]))
        else:
            builder.build_client_verifier().verify(leaf, list(chain[:CHAIN_MAX]))
    except (VerificationError, ValueError) as error:
        raise CaError(f"the certificate of {holder} is not to be believed: {_why(leaf, now_s)}") from error
    return holder


def check_root(root: Root, now_s: float) -> None:
    """That nodes believe what a root signs: one that was brought along may be of any kind. Raises CaError."""
    holder = Holder("trial", "manager", "trial")
    leaf = issue(root, holder, new_key().public_key(), now_s, bytes(SERIAL_BYTES))
    try:
        verify_manager(leaf, [], [root.certificate], now_s)
    except CaError as error:
        raise CaError(
            "the CA's certificate cannot be used: it must be of X.509 version 3, with basic constraints that say "
            "CA:TRUE, and allow leaves below it"
        ) from error


def _policy() -> PolicyBuilder:
    """As on the web, but for roots as people make them: `openssl req -x509` gives them no key usage."""
    authorities = ExtensionPolicy.webpki_defaults_ca()
    authorities = authorities.may_be_present(x509.KeyUsage, Criticality.AGNOSTIC, _signs)
    authorities = authorities.require_present(x509.BasicConstraints, Criticality.AGNOSTIC, _is_ca)
    return PolicyBuilder().extension_policies(ee_policy=ExtensionPolicy.webpki_defaults_ee(), ca_policy=authorities)


def _signs(_: Policy, __: x509.Certificate, usage: x509.KeyUsage | None) -> None:
    if usage is not None and not usage.key_cert_sign:
        raise ValueError("its key usage lacks keyCertSign")


def _is_ca(_: Policy, __: x509.Certificate, constraints: x509.BasicConstraints) -> None:
    if not constraints.ca:
        raise ValueError("it is no CA's")


def _why(leaf: x509.Certificate, now_s: float) -> str:
    if now_s > leaf.not_valid_after_utc.timestamp():
        return f"it has expired at {leaf.not_valid_after_utc:%Y-%m-%d %H:%M} UTC"
    if now_s < leaf.not_valid_before_utc.timestamp():
        return f"it is not valid before {leaf.not_valid_before_utc:%Y-%m-%d %H:%M} UTC: compare the clocks"
    return "no root of this cluster stands behind it, or it is for another use"
