"""Requests for certificates: PKCS 10, of which only the key and the proof that it is there are used. Pure.

What a request says of names is ignored: who somebody is, the managers know.
"""

from __future__ import annotations

import hashlib

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from control.ca.root import CaError, is_p256

REQUEST_MAX_BYTES = 8 * 1024  # one with a P-256 key has 300 bytes; SwarmKit allows 256 KiB
NONCE_BYTES = 32
_PROOF = b"mesh-enrol-1\0"  # so that no other signature of the key can be taken for this one


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


def prove(key: ec.EllipticCurvePrivateKey, nonce: bytes, server: bytes, node_id: str) -> bytes:
    """That the holder of a key is there now: it signs what this very server (DER of its certificate) has drawn."""
    return key.sign(_said(nonce, server, node_id), ec.ECDSA(hashes.SHA256()))


def is_proof(key: ec.EllipticCurvePublicKey, proof: bytes, nonce: bytes, server: bytes, node_id: str) -> bool:
    """Whether `prove` made it."""
    try:
        key.verify(proof, _said(nonce, server, node_id), ec.ECDSA(hashes.SHA256()))
    except InvalidSignature:
        return False
    return True


def _said(nonce: bytes, server: bytes, node_id: str) -> bytes:
    assert len(nonce) == NONCE_BYTES
    return _PROOF + nonce + hashlib.sha256(server).digest() + node_id.encode()
