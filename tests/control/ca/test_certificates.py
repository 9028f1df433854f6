"""Certificates: what they say, who stands behind them, and which are not believed."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID
from hypothesis import given, settings
from hypothesis import strategies as st

from control.ca import requests, schedule
from control.ca.admission import ALL_BURST, ONE_BURST, Admission
from control.ca.names import CertificateRole, Holder, holder_in, parse_uri
from control.ca.root import (
    BACKDATE_S,
    DAY_S,
    LIFE_MIN_S,
    NODE_LIFE_S,
    ROOT_LIFE_S,
    CaError,
    Root,
    cross_sign,
    digest,
    issue,
    key_pem,
    load_certificate,
    load_key,
    load_root,
    make_root,
    new_key,
    pem,
    time_of,
)
from control.ca.verify import check_root, root_of_digest, verify_holder, verify_manager

NOW = 1_800_000_000.0
CLUSTER = "c" * 25
_numbers = itertools.count(1)


def serial() -> bytes:
    return next(_numbers).to_bytes(16, "big")


def a_root(now: float = NOW) -> Root:
    return make_root(CLUSTER, new_key(), now, serial())


def a_leaf(
    root: Root, role: CertificateRole = "worker", now: float = NOW, life_s: float = NODE_LIFE_S
) -> x509.Certificate:
    return issue(root, Holder(CLUSTER, role, "n1"), new_key().public_key(), now, serial(), life_s)


# --- names ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("role", ["worker", "manager", "viewer", "operator", "admin"])
def test_the_name_in_a_certificate_is_the_one_it_was_issued_for(role: CertificateRole) -> None:
    assert holder_in(a_leaf(a_root(), role)) == Holder(CLUSTER, role, "n1")


@pytest.mark.parametrize(
    "text",
    ["", "mesh://", "mesh://c/worker", "mesh://c/worker/n/x", "mesh://c/root/n", "mesh://c/worker/", "mesh://C/worker/n",
     "https://c/worker/n", "mesh://c/worker/n\n", "mesh://c/worker/../n", "mesh://c/worker/" + "n" * 300],
)  # fmt: skip
def test_other_names_are_nobody(text: str) -> None:
    assert parse_uri(text) is None


@given(st.text(max_size=60))
@settings(max_examples=100, deadline=None)
def test_no_text_breaks_the_parser(text: str) -> None:
    found = parse_uri(f"mesh://{text}")
    assert found is None or found.uri == f"mesh://{text}"


def test_two_names_in_one_certificate_are_nobody() -> None:
    root, key = a_root(), new_key()
    names = [x509.UniformResourceIdentifier(Holder(CLUSTER, role, "n1").uri) for role in ("worker", "manager")]
    certificate = _self_signed(key, "n1", names)
    assert holder_in(certificate) is None
    with pytest.raises(CaError, match="names no member"):
        verify_holder(certificate, [], [root.certificate], NOW)


# --- issuing ----------------------------------------------------------------------------------------------------------


def test_a_leaf_is_believed_by_those_who_know_the_root() -> None:
    root = a_root()
    assert verify_holder(a_leaf(root), [], [root.certificate], NOW).role == "worker"
    assert verify_manager(a_leaf(root, "manager"), [], [root.certificate], NOW).role == "manager"


def test_a_worker_cannot_answer_as_a_manager() -> None:
    root = a_root()
    for role in ("worker", "viewer", "operator", "admin"):
        with pytest.raises(CaError, match="another use"):
            verify_manager(a_leaf(root, role), [], [root.certificate], NOW)


def test_a_leaf_cannot_sign() -> None:
    root, key = a_root(), new_key()
    leaf = issue(root, Holder(CLUSTER, "manager", "n1"), key.public_key(), NOW, serial())
    forged = issue(Root(leaf, key), Holder(CLUSTER, "manager", "n2"), new_key().public_key(), NOW, serial())
    with pytest.raises(CaError, match="no root"):
        verify_manager(forged, [leaf], [root.certificate], NOW)


def test_another_root_of_the_same_cluster_is_not_believed() -> None:
    with pytest.raises(CaError, match="no root"):
        verify_holder(a_leaf(a_root()), [], [a_root().certificate], NOW)


def test_a_leaf_says_when_it_is_over_or_not_yet() -> None:
    root = a_root()
    leaf = a_leaf(root, life_s=LIFE_MIN_S)
    verify_holder(leaf, [], [root.certificate], NOW - BACKDATE_S + 1)
    with pytest.raises(CaError, match="has expired at"):
        verify_holder(leaf, [], [root.certificate], NOW + LIFE_MIN_S + 1)
    with pytest.raises(CaError, match="clocks"):
        verify_holder(leaf, [], [root.certificate], NOW - BACKDATE_S - 10)


def test_a_leaf_never_outlives_its_root_and_none_is_made_after_it() -> None:
    root = a_root()
    late = NOW + ROOT_LIFE_S - DAY_S
    assert a_leaf(root, now=late).not_valid_after_utc == root.certificate.not_valid_after_utc
    with pytest.raises(CaError, match="mesh ca rotate"):
        a_leaf(root, now=NOW + ROOT_LIFE_S + 1)


def test_a_life_is_never_shorter_than_an_hour() -> None:
    leaf = a_leaf(a_root(), life_s=1.0)
    assert leaf.not_valid_after_utc.timestamp() == NOW + LIFE_MIN_S


# --- roots that are brought along -------------------------------------------------------------------------------------


def test_a_root_that_was_written_is_read_again() -> None:
    root = a_root()
    again = load_root(pem(root.certificate), key_pem(root.key), NOW)
    assert again.digest == root.digest
    verify_holder(a_leaf(again), [], [root.certificate], NOW)


def test_a_digest_is_of_the_certificate_alone() -> None:
    root = a_root()
    assert len(root.digest) == 50
    assert digest(load_certificate(b"# a comment\n" + pem(root.certificate) + b"\n\n")) == root.digest
    assert a_root().digest != root.digest


def _rsa_pem() -> bytes:
    key = rsa.generate_private_key(65537, 2048)
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _locked_pem() -> bytes:
    locked = serialization.BestAvailableEncryption(b"x")
    return new_key().private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, locked)


BAD_ROOTS: list[tuple[str, Callable[[Root], tuple[bytes, bytes]], float]] = [
    ("not that of the CA's certificate", lambda r: (pem(r.certificate), key_pem(new_key())), NOW),
    ("one certificate in PEM, not 2", lambda r: (pem(r.certificate) * 2, key_pem(r.key)), NOW),
    ("no certificate in PEM", lambda r: (b"junk", key_pem(r.key)), NOW),
    ("too large", lambda r: (b"x" * 100_000, key_pem(r.key)), NOW),
    ("no private key in PEM", lambda r: (pem(r.certificate), b"junk"), NOW),
    ("passphrase", lambda r: (pem(r.certificate), _locked_pem()), NOW),
    ("P-256", lambda r: (pem(r.certificate), _rsa_pem()), NOW),
    ("not valid before", lambda r: (pem(r.certificate), key_pem(r.key)), NOW - DAY_S),
    ("ends at", lambda r: (pem(r.certificate), key_pem(r.key)), NOW + ROOT_LIFE_S - LIFE_MIN_S + 1),
]  # fmt: skip


@pytest.mark.parametrize(("sentence", "bring", "now"), BAD_ROOTS, ids=[row[0] for row in BAD_ROOTS])
def test_a_bad_root_is_refused_with_a_sentence(
    sentence: str, bring: Callable[[Root], tuple[bytes, bytes]], now: float
) -> None:
    with pytest.raises(CaError, match=sentence):
        load_root(*bring(a_root()), now)


def test_a_leaf_or_an_intermediate_is_no_root() -> None:
    root, key = a_root(), new_key()
    leaf = issue(root, Holder(CLUSTER, "manager", "n1"), key.public_key(), NOW, serial())
    with pytest.raises(CaError, match="CA:TRUE"):
        load_root(pem(leaf), key_pem(key), NOW)
    other = cross_sign(a_root(), root, NOW, serial())
    assert other.crossed is not None
    with pytest.raises(CaError, match="not an intermediate"):
        load_root(pem(other.crossed), key_pem(other.key), NOW)


def test_a_certificate_without_extensions_is_no_root() -> None:
    key = new_key()
    with pytest.raises(CaError, match="CA:TRUE"):
        load_root(pem(_self_signed(key, "x", [])), key_pem(key), NOW)


def _self_signed(
    key: ec.EllipticCurvePrivateKey, name: str, names: list[x509.UniformResourceIdentifier]
) -> x509.Certificate:
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    builder = (
        x509.CertificateBuilder().subject_name(subject).issuer_name(subject).public_key(key.public_key())
        .serial_number(7).not_valid_before(time_of(NOW - 10)).not_valid_after(time_of(NOW + DAY_S))
    )  # fmt: skip
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    return builder.sign(key, hashes.SHA256())


# --- from one root to the next ----------------------------------------------------------------------------------------


def test_who_knows_the_old_root_believes_the_new_one_by_its_cross_signature() -> None:
    old = a_root()
    new = cross_sign(a_root(), old, NOW, serial())
    assert new.crossed is not None
    leaf = a_leaf(new, "manager")
    verify_manager(leaf, [new.crossed], [old.certificate], NOW)
    verify_manager(leaf, [], [new.certificate], NOW)
    with pytest.raises(CaError):
        verify_manager(leaf, [], [old.certificate], NOW)
    with pytest.raises(CaError):  # not the other way round
        verify_manager(a_leaf(old, "manager"), [new.crossed], [new.certificate], NOW)


def test_a_token_names_one_root() -> None:
    roots = [a_root().certificate for _ in range(3)]
    assert root_of_digest(roots, digest(roots[2])) is roots[2]
    with pytest.raises(CaError, match="another digest"):
        root_of_digest(roots, a_root().digest)


# --- requests, schedule, admission ------------------------------------------------------------------------------------


def test_a_request_carries_its_key() -> None:
    key = new_key()
    assert requests.key_of_request(requests.make_request(key)) == key.public_key()


def test_bad_requests_are_refused() -> None:
    good = requests.make_request(new_key())
    for bad in (b"", b"junk", good[:-3], good + b"x" * 9000, good[:-6] + bytes([good[-6] ^ 1]) + good[-5:]):
        with pytest.raises(CaError):
            requests.key_of_request(bad)
    request = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    for other in (rsa.generate_private_key(65537, 2048), ec.generate_private_key(ec.SECP384R1())):
        with pytest.raises(CaError, match="P-256"):
            requests.key_of_request(request.sign(other, hashes.SHA256()).public_bytes(serialization.Encoding.DER))


@given(st.floats(-1, 2))
@settings(max_examples=50, deadline=None)
def test_renewal_is_between_half_and_four_fifths_of_the_life(fraction: float) -> None:
    begins, ends = NOW, NOW + NODE_LIFE_S  # it says that it began an hour before
    at = schedule.renew_at_s(_LEAF, fraction)
    assert 0.5 <= round((at - begins) / (ends - begins), 9) <= 0.8


_LEAF = a_leaf(a_root())


@pytest.mark.parametrize("fraction", [0.0, 1.0])
def test_the_shortest_life_is_not_over_at_its_beginning(fraction: float) -> None:
    leaf = issue(a_root(), Holder("c1", "worker", "n1"), new_key().public_key(), NOW, bytes(16), 3600.0)
    assert 1800 <= schedule.renew_at_s(leaf, fraction) - NOW <= 2880


def test_attempts_come_more_rarely_but_never_stop() -> None:
    assert schedule.retry_delay_s(0, 1.0) == 2.0
    assert schedule.retry_delay_s(1000, 1.0) == 60.0
    assert not schedule.has_expired(_LEAF, NOW)
    assert schedule.has_expired(_LEAF, NOW + NODE_LIFE_S)


def test_one_address_is_slowed_down_without_the_others() -> None:
    admission = Admission()
    assert sum(admission.admit("10.0.0.1", NOW) for _ in range(100)) == ONE_BURST
    assert admission.admit("10.0.0.2", NOW)
    assert not admission.admit("10.0.0.1", NOW + 0.5)
    assert admission.admit("10.0.0.1", NOW + 1.6)


def test_many_addresses_share_a_bucket() -> None:
    admission = Admission()
    assert sum(admission.admit(str(number), NOW) for number in range(10_000)) == ALL_BURST
    assert sum(admission.admit(str(number), NOW + 1) for number in range(10_000)) == 50


def test_keys_are_read_as_written() -> None:
    key = new_key()
    assert load_key(key_pem(key)).public_key() == key.public_key()


@pytest.mark.parametrize("critical", [True, False])
def test_a_root_as_openssl_makes_it_is_believed(critical: bool) -> None:
    """It has no key usage, and perhaps basic constraints that are not critical."""
    own = foreign_root(x509.BasicConstraints(ca=True, path_length=None), critical=critical)
    check_root(own, NOW)
    for holder, verify in ((Holder("c", "manager", "n"), verify_manager), (Holder("c", "worker", "n"), verify_holder)):
        leaf = issue(own, holder, new_key().public_key(), NOW, bytes(16))
        assert verify(leaf, [], [own.certificate], NOW) == holder


def test_a_root_that_cannot_sign_is_refused() -> None:
    for bad in (foreign_root(None), foreign_root(x509.BasicConstraints(ca=False, path_length=None))):
        with pytest.raises(CaError, match=r"CA:TRUE"):
            check_root(bad, NOW)


def foreign_root(constraints: x509.BasicConstraints | None, *, critical: bool = True) -> Root:
    key, name = new_key(), x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Example Corp")])
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    builder = builder.serial_number(7).not_valid_before(time_of(NOW - 86400)).not_valid_after(time_of(NOW + 1e8))
    if constraints is not None:
        builder = builder.add_extension(constraints, critical=critical)
    return Root(builder.sign(key, hashes.SHA384()), key)
