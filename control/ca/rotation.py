"""From one root to the next, without a moment in which somebody believes too little. Pure.

    settled ──begin──> changing: the new root signs, both are believed, each node is asked to renew, some at a time
       ^                  │  every node that is there has a certificate of the new root, and with it both roots
       └─────finish───────┘  only the new one is believed; the join tokens name it

A node that was away meanwhile knows only the old root and has a certificate of it. It believes the managers, whose
new root is signed by the old one as well, and gets another certificate by proving that it has its key (`enrolment`).
Everything is in the store, so another leader goes on where the one before was. A change that begins while another is
going on replaces it. After SwarmKit (ca/reconciler.go), but nodes that are down are not waited for.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import msgspec
from cryptography import x509

from control.ca.root import CaError, Root, cross_sign, digest, key_pem, load_certificate, load_key, pem
from control.ca.verify import ROOTS_MAX
from control.model import Authority, Node

# Nodes that are asked to renew at a time: signing takes a tenth of a millisecond, a handshake each ten times that.
BATCH_MAX = 30


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a change is. `done` of `total` nodes are under the new root; `away` of the others are down."""

    changing: bool
    digest: str
    done: int = 0
    total: int = 0
    away: int = 0


def new_authority(cluster_id: str, root: Root) -> Authority:
    """The record of a new cluster."""
    return Authority(id=cluster_id, certificate=_text(root.certificate), key=key_pem(root.key).decode())


def signer(authority: Authority) -> Root:
    """What signs now. Raises CaError if the record is damaged, or somebody else signs."""
    if authority.url:
        raise CaError(
            f"the certificates of this cluster are signed by the external CA at {authority.url}: the cluster has no "
            "key to sign with, and its root cannot be changed"
        )
    crossed = load_certificate(authority.crossed.encode()) if authority.crossed else None
    return Root(load_certificate(authority.certificate.encode()), load_key(authority.key.encode()), crossed)


def believed(authority: Authority) -> list[x509.Certificate]:
    """The roots that everybody shall believe now, the signing one first."""
    texts = (authority.certificate, authority.old_certificate, *authority.extra)
    return [load_certificate(text.encode()) for text in texts if text]


def bundle(authority: Authority) -> bytes:
    """`believed` as PEM."""
    return "".join((authority.certificate, authority.old_certificate, *authority.extra)).encode()


def is_changing(authority: Authority) -> bool:
    return bool(authority.old_certificate)


def begin(authority: Authority, new: Root, now_s: float, random: bytes) -> Authority:
    """Change to `new`. Raises CaError."""
    if digest(new.certificate) in (digest(root) for root in believed(authority)):
        raise CaError("that is a root of this cluster already")
    if is_changing(authority):
        old = Root(load_certificate(authority.old_certificate.encode()), load_key(authority.old_key.encode()))
        extra = (*authority.extra, authority.certificate)
        if len(extra) + 2 > ROOTS_MAX:
            raise CaError('too many changes of the root are going on: wait for "mesh ca rotate" to be done')
    else:
        old, extra = signer(authority), ()
    crossed = cross_sign(new, old, now_s, random).crossed
    assert crossed is not None
    return msgspec.structs.replace(
        authority,
        certificate=_text(new.certificate),
        key=key_pem(new.key).decode(),
        crossed=_text(crossed),
        old_certificate=_text(old.certificate),
        old_key=key_pem(old.key).decode(),
        extra=extra,
    )


def finish(authority: Authority) -> Authority:
    """Believe the new root only. What the old one has signed of it is kept, for those who were away."""
    return msgspec.structs.replace(authority, old_certificate="", old_key="", extra=())


def progress(authority: Authority, nodes: Iterable[Node]) -> Progress:
    """How far the change is."""
    wanted = digest(load_certificate(authority.certificate.encode()))
    total = done = away = 0
    for node in nodes:
        total += 1
        done += node.issuer == wanted
        away += node.issuer != wanted and node.status.state == "down"
    return Progress(is_changing(authority), wanted, done, total, away)


def is_done(found: Progress) -> bool:
    """Whether every node that is not down has its new certificate."""
    return found.changing and found.done + found.away >= found.total


def to_renew(authority: Authority, nodes: Iterable[Node]) -> list[str]:
    """The ids of the nodes to ask now."""
    wanted = digest(load_certificate(authority.certificate.encode()))
    waiting = sorted(node.id for node in nodes if node.issuer != wanted and node.status.state == "ready")
    return waiting[:BATCH_MAX]


def _text(certificate: x509.Certificate) -> str:
    return pem(certificate).decode()
