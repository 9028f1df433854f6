"""Certificates of nodes: given at the join, renewed, and taken back by a removal. Pure: a snapshot in, values out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import msgspec
from cryptography.hazmat.primitives.asymmetric import ec

from control.access import Caller
from control.ca import rotation
from control.ca.external import Order, Unsigned
from control.ca.names import Holder
from control.ca.requests import key_of_request
from control.ca.root import (
    CaError,
    Root,
    digest,
    issue,
    key_digest,
    load_certificates,
    load_root,
    make_root,
    new_key,
    pem,
)
from control.ca.verify import check_root
from control.model import Authority, Node, User
from control.server.refusal import Refusal
from control.store.tables import Snapshot
from control.store.txn import Change, Put
from control.token import with_digest

# Gives a certificate that an external CA has signed (control.server.signing). Raises Unsigned.
Take = Callable[[Order], bytes]


@dataclass(frozen=True, slots=True)
class Issued:
    """A certificate with its chain, and the roots to believe (PEM); `node` as it is to be stored."""

    node: Node
    chain: bytes
    roots: bytes


def authority_of(snapshot: Snapshot) -> Authority:
    """Raises Refusal."""
    found = next(iter(snapshot.all(Authority)), None)
    if found is None:
        raise Refusal("FAILED_PRECONDITION", "this cluster has no certificate authority")
    return found


def unsigned(order: Order) -> bytes:
    """Where nothing was fetched of an external CA. Raises Unsigned."""
    raise Unsigned(order)


def certify(snapshot: Snapshot, node: Node, csr: bytes, now_s: float, random: bytes, take: Take = unsigned) -> Issued:
    """A certificate for a node as it is to be now. Its key stays the one it has come with first.

    Raises Refusal, and what `take` raises, which gives the certificate if the cluster does not sign itself.
    """
    authority = authority_of(snapshot)
    try:
        key = key_of_request(csr)
        found = key_digest(key)
        if node.key_digest not in ("", found):
            raise Refusal(
                "UNAUTHENTICATED",
                f'the key is not that of node "{node.description.hostname or node.id}": if the machine has lost its '
                'own, use "mesh leave" on it, then join with a token',
            )
        holder = Holder(snapshot.cluster().id, node.spec.role, node.id)
        if authority.url:
            chain = take(Order(authority.url, authority.certificate.encode(), holder, csr))
            certified = msgspec.structs.replace(
                node, key_digest=found, issuer=issuer_of(authority.certificate.encode()), believes=1
            )
            return Issued(certified, chain, rotation.bundle(authority))
        signer = rotation.signer(authority)
        leaf = issue(signer, holder, key, now_s, random, snapshot.cluster().spec.certificate_life_s)
    except CaError as error:
        raise Refusal("INVALID_ARGUMENT", str(error)) from error
    certified = msgspec.structs.replace(
        node, key_digest=found, issuer=signer.digest, believes=len(rotation.believed(authority))
    )
    return Issued(certified, chain_of(leaf_pem=pem(leaf), signer=signer), rotation.bundle(authority))


def chain_of(leaf_pem: bytes, signer: Root) -> bytes:
    """A certificate with what links it to the root before."""
    return leaf_pem + (pem(signer.crossed) if signer.crossed is not None else b"")


def rotate(
    snapshot: Snapshot, certificate: bytes, key: bytes, now_s: float, serial: bytes, crossing: bytes
) -> list[Change]:
    """Begin a change of the root, to one that is brought along or a new one. Raises Refusal."""
    authority = authority_of(snapshot)
    if bool(certificate) != bool(key):
        raise Refusal("INVALID_ARGUMENT", "a CA's certificate and its key come together")
    try:
        new = load_root(certificate, key, now_s) if certificate else make_root(authority.id, new_key(), now_s, serial)
        check_root(new, now_s)
        return [Put(rotation.begin(authority, new, now_s, crossing))]
    except CaError as error:
        raise Refusal("INVALID_ARGUMENT", str(error)) from error


def finish_change(snapshot: Snapshot) -> list[Change]:
    """End a change of the root, once every node that is there has followed; join tokens then name the new one."""
    authority = next(iter(snapshot.all(Authority)), None)
    if authority is None or not rotation.is_done(rotation.progress(authority, snapshot.all(Node))):
        return []
    cluster, settled = snapshot.cluster(), rotation.finish(authority)
    name = rotation.signer(settled).digest
    tokens = (with_digest(token, name) for token in (cluster.worker_token, cluster.manager_token))
    worker, manager = tokens
    return [Put(settled), Put(msgspec.structs.replace(cluster, worker_token=worker, manager_token=manager))]


def standing(snapshot: Snapshot, who: Caller, certificate: bytes, now_s: float = 0.0) -> Caller | str:
    """As whom a holder counts now: a demoted manager as a worker; or why it counts no more."""
    holder = who.holder
    if holder is None:
        return who
    clusters = snapshot.all(Authority)
    if not any(authority.id == holder.cluster_id for authority in clusters):
        return f"{who} is of another cluster"
    if not holder.is_node:
        user = snapshot.get(User, holder.id)
        stands = user is not None and user.role == holder.role and _is_key(user.key_digest, certificate)
        if not stands:
            return f"{who} is no user of this cluster (any more)"
        if user is not None and 0 < user.expires_ms <= now_s * 1000:  # also on a connection that was made before
            return f"the certificate of {who} has expired"
        return who
    node = snapshot.get(Node, holder.id)
    if node is None or not _is_key(node.key_digest, certificate):
        return f"{who} is not a member of the cluster (any more)"
    if holder.role == "manager" and node.spec.role != "manager":
        return Caller(Holder(holder.cluster_id, "worker", holder.id), who.uid)
    return who


def issuer_of(roots: bytes) -> str:
    """The digest of the first root of a bundle, which is the one that signs. Raises CaError."""
    return digest(load_certificates(roots)[0])


KEYS_MAX = 8192  # digests that are remembered: of all nodes, and some users


@lru_cache(KEYS_MAX)
def _key_of(certificate: bytes) -> str:
    """The digest of the key that a certificate is for, "" if it is none."""
    try:
        key = load_certificates(certificate)[0].public_key()
    except (CaError, IndexError):
        return ""
    return key_digest(key) if isinstance(key, ec.EllipticCurvePublicKey) else ""


def _is_key(wanted: str, certificate: bytes) -> bool:
    """Whether a certificate, as TLS has verified it, is for the key with this digest."""
    return wanted != "" and _key_of(certificate) == wanted
