"""Requests for certificates: PKCS 10, of which only the key and the proof that it is there are used. Pure.

What a request says of names is ignored: who somebody is, the managers know. An old request that somebody has kept is of
no use to them: the certificate is for a key that they do not have.
"""

from __future__ import annotations

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from control.ca.root import CaError, is_p256

REQUEST_MAX_BYTES = 8 * 1024  # one with a P-256 key has 300 bytes; SwarmKit allows 256 KiB


def make_request(key: ec.EllipticCurvePrivateKey) -> bytes:
    """For a node's key, in DER."""
    request = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).sign(key, hashes.SHA256())
    return request.public_bytes(serialization.Encoding.DER)


def key_of_request(data: bytes) -> ec.EllipticCurvePublicKey:
    """The key that a request is for; whoever made it has it. Raises CaError."""
    if len(data) > REQUEST_MAX_BYTES:
        raise CaError("the request for a certificate is too large")
    try:
        request = x509.load_der_x509_csr(data)
        key = request.public_key()
        signed = request.is_signature_valid
    except (ValueError, TypeError, InvalidSignature) as error:
        raise CaError("the request for a certificate cannot be read") from error
    if not isinstance(key, ec.EllipticCurvePublicKey) or not is_p256(key):
        raise CaError("the request for a certificate must be for an elliptic curve key on P-256")
    if not signed:
        raise CaError("the request for a certificate is not signed by its own key")
    return key
