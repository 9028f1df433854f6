"""People and programs that call over TCP: certificates for them. Pure: a snapshot in, values out.

A user's certificate ends when the record says (`User.expires_ms`). A renewal is for the same key and has the same end:
it is there for a change of the root, and asked for at the door (`control.server.enrolment`), since the certificate that
the user has may be of a root that is believed no more. The request is signed by the key: that is the proof, and what is
given in return is of no use to anybody else. Whoever shall stay longer is removed and added anew.
"""

from __future__ import annotations

from dataclasses import dataclass

from control.ca import rotation
from control.ca.external import Order
from control.ca.names import USER_ROLES, Holder, is_name
from control.ca.requests import key_of_request
from control.ca.root import DAY_S, LIFE_MIN_S, CaError, issue, key_digest, load_certificates, pem
from control.model import User
from control.server.certificates import Take, authority_of, chain_of, unsigned
from control.server.refusal import Refusal
from control.store.tables import Snapshot

USER_LIFE_S = 365 * DAY_S
USER_LIFE_MAX_S = 10 * USER_LIFE_S  # roots live for twenty years
# Each is looked up by whoever calls; people and pipelines, not machines.
USERS_MAX = 1000


@dataclass(frozen=True, slots=True)
class IssuedUser:
    """A user as to be stored, the certificate with its chain, and the roots to believe (PEM)."""

    user: User
    chain: bytes
    roots: bytes


def add(
    snapshot: Snapshot,
    name: str,
    role: str,
    csr: bytes,
    life_s: float,
    now_s: float,
    random: bytes,
    take: Take = unsigned,
) -> IssuedUser:
    """A new user. `life_s` 0: a year. Raises Refusal, and what `take` raises (`certificates.certify`)."""
    if not is_name(name):
        raise Refusal(
            "INVALID_ARGUMENT",
            f'"{name[:80]}" is no name for a user: up to 64 small letters, digits, ".", "_" and "-" between them',
        )
    if role not in USER_ROLES:
        raise Refusal("INVALID_ARGUMENT", f'there is no role "{role[:40]}": there are {", ".join(USER_ROLES)}')
    life_s = life_s or USER_LIFE_S
    if not LIFE_MIN_S <= life_s <= USER_LIFE_MAX_S:
        raise Refusal("INVALID_ARGUMENT", "a user's certificate lasts between an hour and ten years")
    if snapshot.get(User, name) is not None:
        raise Refusal("ALREADY_EXISTS", f'user "{name}" already exists: remove it first for another certificate')
    if len(snapshot.all(User)) >= USERS_MAX:
        raise Refusal("FAILED_PRECONDITION", f"there are {USERS_MAX} users already: remove some first")
    user = User(id=name, role=role, expires_ms=int((now_s + life_s) * 1000))
    return _certify(snapshot, user, csr, now_s, random, take)


def renew(snapshot: Snapshot, name: str, csr: bytes, now_s: float, random: bytes, take: Take = unsigned) -> IssuedUser:
    """Another certificate for a user that is there, for the key that it has. Raises as `add`."""
    user = snapshot.get(User, name)
    if user is None or 0 < user.expires_ms <= now_s * 1000:  # to a stranger both are the same
        raise Refusal("UNAUTHENTICATED", f'there is no user "{name[:80]}" with this key (any more)')
    return _certify(snapshot, user, csr, now_s, random, take)


def _certify(snapshot: Snapshot, user: User, csr: bytes, now_s: float, random: bytes, take: Take) -> IssuedUser:
    authority = authority_of(snapshot)
    try:
        key = key_of_request(csr)
        found = key_digest(key)
        if user.key_digest not in ("", found):
            raise Refusal("UNAUTHENTICATED", f'there is no user "{user.id}" with this key (any more)')
        holder = Holder(snapshot.cluster().id, user.role, user.id)
        if authority.url:  # for how long is that one's to say; we do not believe it for longer than was asked
            chain = take(Order(authority.url, authority.certificate.encode(), holder, csr))
            leaf = load_certificates(chain)[0]
        else:
            signer = rotation.signer(authority)
            leaf = issue(signer, holder, key, now_s, random, user.expires_ms / 1000 - now_s)
            chain = chain_of(leaf_pem=pem(leaf), signer=signer)
    except CaError as error:
        raise Refusal("INVALID_ARGUMENT", str(error)) from error
    ends_ms = int(leaf.not_valid_after_utc.timestamp() * 1000)  # not after the root
    stored = User(
        id=user.id, meta=user.meta, role=user.role, key_digest=found, expires_ms=min(user.expires_ms, ends_ms)
    )
    return IssuedUser(stored, chain, rotation.bundle(authority))
