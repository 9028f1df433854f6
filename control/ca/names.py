"""What a certificate says of its holder: cluster, role and name, as one URI. Never an address. Pure.

mesh://<cluster id>/<role>/<node id or user name>
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal, cast, get_args

from cryptography import x509

# Of nodes, and of users.
NodeRole = Literal["worker", "manager"]
UserRole = Literal["viewer", "operator", "admin"]
CertificateRole = Literal["worker", "manager", "viewer", "operator", "admin"]
NODE_ROLES: tuple[NodeRole, ...] = get_args(NodeRole)
USER_ROLES: tuple[UserRole, ...] = get_args(UserRole)

# What a manager's certificate lets it answer as. gRPC insists on a DNS name; the identity is the URI beside it.
MANAGER_HOST = "manager.mesh"

_SCHEME = "mesh://"
# Ids have 25 letters and digits; names of users what may stand in a file's name everywhere.
_ID = re.compile(r"[a-z0-9]([a-z0-9._-]{0,62}[a-z0-9])?")
URI_MAX = 200  # two ids, a role, and what is between them, with room


@dataclass(frozen=True, slots=True)
class Holder:
    """Who holds a certificate. `id` is that of a node, or the name of a user."""

    cluster_id: str
    role: CertificateRole
    id: str

    @property
    def uri(self) -> str:
        return f"{_SCHEME}{self.cluster_id}/{self.role}/{self.id}"

    @property
    def is_node(self) -> bool:
        return self.role in NODE_ROLES

    def __str__(self) -> str:
        return f"{'node' if self.is_node else 'user'} {self.id} ({self.role})"


def is_name(text: str) -> bool:
    """Whether it may name a holder."""
    return _ID.fullmatch(text) is not None


def parse_uri(text: str) -> Holder | None:
    """Inverse of `Holder.uri`; None for anything else."""
    if len(text) > URI_MAX or not text.startswith(_SCHEME):
        return None
    parts = text.removeprefix(_SCHEME).split("/")
    if len(parts) != 3 or not is_name(parts[0]) or parts[1] not in get_args(CertificateRole) or not is_name(parts[2]):
        return None
    return Holder(parts[0], cast("CertificateRole", parts[1]), parts[2])


def holder_of(uris: list[str]) -> Holder | None:
    """Whom the URIs of one certificate name; None unless exactly one of them is ours."""
    found = [holder for uri in uris if (holder := parse_uri(uri)) is not None]
    return found[0] if len(found) == 1 else None


def holder_in(certificate: x509.Certificate) -> Holder | None:
    """Whom a certificate names. Says nothing of whether it is to be believed."""
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (x509.ExtensionNotFound, ValueError):
        return None
    return holder_of(names.get_values_for_type(x509.UniformResourceIdentifier))
