"""What signs certificates: a root of the cluster's own, or one that was brought along. Pure.

All keys are P-256. A leaf names its holder (`names`), lives for `life_s`, and begins an hour before it was made, since
clocks differ. A worker's or a user's may only call, a manager's may also answer.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from control.ca.names import MANAGER_HOST, Holder
from control.token import base36

DAY_S = 86400.0
ROOT_LIFE_S = 20 * 365 * DAY_S
NODE_LIFE_S = 90 * DAY_S
# Shorter, and a cluster whose managers are away for a lunch loses its nodes.
LIFE_MIN_S = 3600.0
BACKDATE_S = 3600.0
SERIAL_BYTES = 16  # 128 random bits: no two draws share a number
PEM_MAX_BYTES = 64 * 1024  # of a certificate or key that a user brings: a chain is a tenth of it
DIGEST_LENGTH = 50  # base 36 digits of a SHA-256


class CaError(Exception):
    """A certificate or key cannot be used. One sentence."""


@dataclass(frozen=True, slots=True)
class Root:
    """A root with its key. `crossed` is the same name and key as certified by the root before it, if there was one:
    sent along with each leaf, so that those who know only the old root believe it, too."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey
    crossed: x509.Certificate | None = None

    @property
    def digest(self) -> str:
        return digest(self.certificate)


def digest(certificate: x509.Certificate) -> str:
    """What a join token carries of a root: SHA-256 of its DER, in base 36."""
    return base36(hashlib.sha256(der(certificate)).digest(), DIGEST_LENGTH)


def key_digest(key: ec.EllipticCurvePublicKey) -> str:
    """What is stored of a node's key: SHA-256, hexadecimal."""
    raw = key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(raw).hexdigest()


def new_key() -> ec.EllipticCurvePrivateKey:
    """A key. The one thing here that is random by itself: the library takes no source."""
    return ec.generate_private_key(ec.SECP256R1())


def make_root(cluster_id: str, key: ec.EllipticCurvePrivateKey, now_s: float, random: bytes) -> Root:
    """A new root, signed by itself. `random` is of SERIAL_BYTES.

    Its name has a part of them: two roots of one name confuse those who look for an issuer by name.
    """
    return Root(
        _root_certificate(
            _name(f"mesh root {random.hex()[:8]} {cluster_id}"), key.public_key(), None, key, now_s, random
        ),
        key,
    )


def cross_sign(new: Root, old: Root, now_s: float, random: bytes) -> Root:
    """`new`, certified by `old` as well."""
    name, public = new.certificate.subject, new.key.public_key()
    return Root(new.certificate, new.key, _root_certificate(name, public, old.certificate, old.key, now_s, random))


def issue(
    root: Root,
    holder: Holder,
    public: ec.EllipticCurvePublicKey,
    now_s: float,
    random: bytes,
    life_s: float = NODE_LIFE_S,
) -> x509.Certificate:
    """A certificate for a holder. Never outlives the root. Raises CaError if the root is over."""
    ends = min(now_s + max(life_s, LIFE_MIN_S), root.certificate.not_valid_after_utc.timestamp())
    if ends <= now_s:
        raise CaError('the cluster\'s root certificate has expired: make another with "mesh ca rotate"')
    begins = max(now_s - BACKDATE_S, root.certificate.not_valid_before_utc.timestamp())
    serves = holder.role == "manager"
    usages = [ExtendedKeyUsageOID.CLIENT_AUTH] + [ExtendedKeyUsageOID.SERVER_AUTH] * serves
    names: list[x509.GeneralName] = [x509.UniformResourceIdentifier(holder.uri)]
    if serves:
        names.append(x509.DNSName(MANAGER_HOST))
    builder = _builder(_name(holder.id), root.certificate.subject, public, begins, ends, random)
    builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
    builder = builder.add_extension(_usage(signs_certificates=False), critical=True)
    builder = builder.add_extension(x509.ExtendedKeyUsage(usages), critical=False)
    builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    builder = builder.add_extension(_authority_of(root.certificate), critical=False)
    return builder.sign(root.key, hashes.SHA256())


def load_root(certificate_pem: bytes, key_pem: bytes, now_s: float) -> Root:
    """A root that somebody brings (`--ca-cert`, `--ca-key`). Raises CaError, saying what is wrong with it."""
    certificate, key = load_root_certificate(certificate_pem, now_s), load_key(key_pem)
    if certificate.public_key() != key.public_key():
        raise CaError("the CA's key is not that of the CA's certificate")
    return Root(certificate, key)


def load_root_certificate(certificate_pem: bytes, now_s: float) -> x509.Certificate:
    """One whose key is elsewhere. Raises CaError, saying what is wrong with it."""
    certificate = load_certificate(certificate_pem)
    try:
        constraints = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value
    except (x509.ExtensionNotFound, ValueError):
        constraints = None
    if constraints is None or not constraints.ca:
        raise CaError("the certificate is no CA's: its basic constraints do not say CA:TRUE")
    try:
        usage = certificate.extensions.get_extension_for_class(x509.KeyUsage).value
    except (x509.ExtensionNotFound, ValueError):
        usage = None
    if usage is not None and not usage.key_cert_sign:
        raise CaError("the CA's certificate may not sign certificates: its key usage lacks keyCertSign")
    try:
        certificate.verify_directly_issued_by(certificate)
    except (ValueError, TypeError, InvalidSignature) as error:
        raise CaError("the CA's certificate is not signed by itself: bring the root, not an intermediate") from error
    if now_s < certificate.not_valid_before_utc.timestamp():
        raise CaError(f"the CA's certificate is not valid before {certificate.not_valid_before_utc:%Y-%m-%d %H:%M} UTC")
    if now_s + LIFE_MIN_S > certificate.not_valid_after_utc.timestamp():
        raise CaError(f"the CA's certificate ends at {certificate.not_valid_after_utc:%Y-%m-%d %H:%M} UTC")
    return certificate


# --- bytes --------------------------------------------------------------------------------------------------------


def pem(*certificates: x509.Certificate) -> bytes:
    """One PEM after the other."""
    return b"".join(certificate.public_bytes(serialization.Encoding.PEM) for certificate in certificates)


def der(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.DER)


def key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    """A private key, not encrypted."""
    form, plain = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    return key.private_bytes(serialization.Encoding.PEM, form, plain)


def load_certificate(data: bytes) -> x509.Certificate:
    """Exactly one certificate. Raises CaError."""
    found = load_certificates(data)
    if len(found) != 1:
        raise CaError(f"there must be one certificate in PEM, not {len(found)}")
    return found[0]


def load_certificates(data: bytes) -> list[x509.Certificate]:
    """All certificates of a PEM, with P-256 keys. Raises CaError."""
    if len(data) > PEM_MAX_BYTES:
        raise CaError("that is no certificate: it is too large")
    try:
        found = x509.load_pem_x509_certificates(data)
        keys = [certificate.public_key() for certificate in found]
    except ValueError as error:
        raise CaError("that is no certificate in PEM") from error
    if not all(is_p256(key) for key in keys):
        raise CaError("the certificate's key must be an elliptic curve key on P-256")
    return found


def load_key(data: bytes) -> ec.EllipticCurvePrivateKey:
    """A private key that is not encrypted. Raises CaError."""
    if len(data) > PEM_MAX_BYTES:
        raise CaError("that is no private key: it is too large")
    try:
        key = serialization.load_pem_private_key(data, password=None)
    except TypeError as error:
        raise CaError("the private key is encrypted: take the passphrase off first") from error
    except ValueError as error:
        raise CaError("that is no private key in PEM") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not is_p256(key.public_key()):
        raise CaError("the private key must be an elliptic curve key on P-256")
    return key


def is_p256(key: object) -> bool:
    return isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, ec.SECP256R1)


# --- building -----------------------------------------------------------------------------------------------------


def _root_certificate(
    name: x509.Name,
    public: ec.EllipticCurvePublicKey,
    by: x509.Certificate | None,
    key: ec.EllipticCurvePrivateKey,
    now_s: float,
    random: bytes,
) -> x509.Certificate:
    ends = now_s + ROOT_LIFE_S
    if by is not None:
        ends = min(ends, by.not_valid_after_utc.timestamp())
    builder = _builder(name, by.subject if by is not None else name, public, now_s - BACKDATE_S, ends, random)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
    builder = builder.add_extension(_usage(signs_certificates=True), critical=True)
    builder = builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
    if by is not None:
        builder = builder.add_extension(_authority_of(by), critical=False)
    return builder.sign(key, hashes.SHA256())


def _builder(
    name: x509.Name,
    issuer: x509.Name,
    public: ec.EllipticCurvePublicKey,
    begins_s: float,
    ends_s: float,
    random: bytes,
) -> x509.CertificateBuilder:
    assert len(random) == SERIAL_BYTES
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(issuer)
        .public_key(public)
        .serial_number(int.from_bytes(random, "big") >> 1 | 1)  # positive, not 0
        .not_valid_before(time_of(begins_s))
        .not_valid_after(time_of(ends_s))
    )


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _authority_of(certificate: x509.Certificate) -> x509.AuthorityKeyIdentifier:
    key = certificate.public_key()
    assert isinstance(key, ec.EllipticCurvePublicKey)
    try:
        named = certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    except x509.ExtensionNotFound:
        return x509.AuthorityKeyIdentifier.from_issuer_public_key(key)
    return x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(named)


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text[:64])])


def time_of(seconds: float) -> datetime:
    """Seconds since 1970 as the library wants them."""
    return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=int(seconds))
