"""Certificates that somebody else signs: the request and the answer, as CFSSL has them (/api/v1/cfssl/sign). Pure.

    POST {"request": PEM of the CSR, "hosts": [names], "subject": {…}, "profile": "manager" or "worker"}
         -> {"success": true, "result": {"certificate": PEM}, "errors": []}

The names are the holder's URI, and for managers the name that all managers have; CFSSL puts a host that is a URI among
the URIs. A manager's certificate must be for servers and clients, a worker's for clients: that is for the profiles.
What comes back is believed only if the cluster's root stands behind it and it says what was asked for.
"""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import urlsplit

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.x509.oid import ExtendedKeyUsageOID

from control.ca.names import MANAGER_HOST, Holder
from control.ca.requests import key_of_request
from control.ca.root import CaError, load_certificate, load_certificates, pem
from control.ca.verify import CHAIN_MAX, verify_holder, verify_manager

ANSWER_MAX_BYTES = 64 * 1024  # a certificate with its chain has five
URL_MAX = 500
_SAID_MAX = 200  # of what the other side says for people


@dataclass(frozen=True, slots=True)
class Order:
    """A certificate that is wanted: for whom, for which key (DER of the request), and from where."""

    url: str
    root: bytes  # PEM of the root that is to stand behind it, and behind whoever answers
    holder: Holder
    csr: bytes


@dataclass(frozen=True, slots=True)
class External:
    """A CA that signs for a cluster, and the root (PEM) that is behind it."""

    url: str
    root: bytes


class Unsigned(Exception):
    """A certificate has to be fetched before it can be decided."""

    def __init__(self, order: Order) -> None:
        super().__init__(f"{order.holder} needs a certificate of {order.url}")
        self.order = order


class _Result(msgspec.Struct):
    certificate: str = ""


class _Error(msgspec.Struct):
    message: str = ""


class _Answer(msgspec.Struct):
    success: bool = False
    result: _Result | None = None
    errors: list[_Error] = []


def check_url(url: str) -> str:
    """Why it is no place to ask, as a sentence; "" if it is."""
    parts = urlsplit(url)
    try:
        good = parts.scheme == "https" and bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        good = False
    if not good or len(url) > URL_MAX or parts.username or parts.fragment:
        return f'an external CA is given as https://HOST[:PORT]/PATH, not "{url[:80]}"'
    return ""


def body_of(order: Order) -> bytes:
    """What to send. Raises CaError if the request cannot be read."""
    key_of_request(order.csr)
    holder = order.holder
    request = x509.load_der_x509_csr(order.csr).public_bytes(serialization.Encoding.PEM).decode()
    return msgspec.json.encode(
        {
            "request": request,
            "hosts": [holder.uri] + [MANAGER_HOST] * (holder.role == "manager"),
            "subject": {"CN": holder.id, "names": [{"OU": holder.role, "O": holder.cluster_id}]},
            "profile": holder.role,
        }
    )


def chain_in(answer: bytes, order: Order, now_s: float) -> bytes:
    """The certificate that came, with what came along, PEM. Raises CaError."""
    try:
        said = msgspec.json.decode(answer, type=_Answer)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise CaError(f"the external CA at {order.url} gives no answer that can be read") from error
    if not said.success or said.result is None:
        why = "; ".join(error.message for error in said.errors)[:_SAID_MAX] or "it does not say why"
        raise CaError(f"the external CA at {order.url} refuses to sign: {why}")
    found = load_certificates(said.result.certificate.encode())[: CHAIN_MAX + 1]
    if not found:
        raise CaError(f"the external CA at {order.url} has sent no certificate")
    leaf, chain, root = found[0], found[1:], load_certificate(order.root)
    if leaf.public_key() != key_of_request(order.csr):
        raise CaError(f"the external CA at {order.url} has signed another key")
    verify = verify_manager if order.holder.role == "manager" else verify_holder
    try:
        holder = verify(leaf, chain, [root], now_s)
    except CaError as error:
        raise CaError(f"what the external CA at {order.url} has signed cannot be used: {error}") from error
    if holder != order.holder:
        raise CaError(f"the external CA at {order.url} has signed for {holder}, not for {order.holder}")
    if order.holder.role == "manager" and not _calls(leaf):
        raise CaError(f"the external CA at {order.url} must sign managers' certificates for clients, too")
    return pem(leaf, *(certificate for certificate in chain if certificate != root))


def _calls(leaf: x509.Certificate) -> bool:
    try:
        usage = leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    except (x509.ExtensionNotFound, ValueError):
        return False
    return ExtendedKeyUsageOID.CLIENT_AUTH in usage
