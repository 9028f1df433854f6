"""Who may call what: one table, call by role. Everything that is not in it is refused. Pure.

Callers are named by their certificate; `local` is whoever may use the socket of a daemon on its own machine (root and
the group `mesh`), where no certificate is asked for. A manager may do what it hands on for others: it has checked them.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Final, Literal

from control.ca.names import CertificateRole, Holder

CallerRole = Literal["worker", "manager", "viewer", "operator", "admin", "local"]
PACKAGE: Final = "/mesh.control.v1."


class Right(Enum):
    """What a role may do with a call."""

    YES = "yes"
    OWN = "own"  # what concerns the caller itself, by the id in its certificate


@dataclass(frozen=True, slots=True)
class Caller:
    """Who calls. `holder` is None on the local socket.

    `uid` is the user of the machine whose socket it came by first, None if that is not known. It gives no rights.
    """

    holder: Holder | None = None
    uid: int | None = None

    @property
    def role(self) -> CallerRole:
        return self.holder.role if self.holder is not None else "local"

    def __str__(self) -> str:
        return str(self.holder) if self.holder is not None else "the local socket"

    @property
    def full(self) -> str:
        """With the user, for the audit log."""
        if self.uid is None:
            return str(self)
        return f"uid {self.uid} on {self}" if self.holder is None else f"uid {self.uid} by {self}"


_YES, _OWN = Right.YES, Right.OWN
_Rights = dict[CallerRole, Right]


def _all(*roles: CallerRole) -> _Rights:
    return dict.fromkeys(roles, _YES)


_READ = _all("local", "manager", "viewer", "operator", "admin")
_RUN = _all("local", "manager", "operator", "admin")  # what runs on the cluster
_GOVERN = _all("local", "manager", "admin")  # who is in it, and its secrets
_SELF: _Rights = {"worker": _OWN, "manager": _YES}  # a manager for itself, and for those who asked it
_LOCAL = _all("local")

TABLE: Final[dict[str, _Rights]] = {
    "Control/List": _READ,
    "Control/Get": _READ,
    "Control/Watch": _READ,
    "Control/CreateNetwork": _RUN,
    "Control/CreateService": _RUN,
    "Control/UpdateService": _RUN,
    "Control/RollbackService": _RUN,
    "Control/UpdateNode": _GOVERN,
    "Control/UpdateCluster": _GOVERN,
    "Control/Remove": {**_RUN, "worker": _OWN},  # a node signs off; of others only `REMOVABLE`
    "Control/RotateToken": _GOVERN,
    "Control/Backup": _GOVERN,
    "Control/GetAuthority": _READ,
    "Control/RotateAuthority": _GOVERN,
    "Control/GetUnlockKey": _GOVERN,  # not among the reads: the audit log says who has asked for it
    "Control/RotateUnlockKey": _GOVERN,
    "Control/AddUser": _GOVERN,
    "Membership/Join": _all("manager"),  # newcomers come by the door for them (control.server.enrolment)
    "Membership/Enlist": _SELF,
    "Membership/Renew": _SELF,
    "Dispatcher/Session": {"worker": _OWN, "manager": _OWN},
    "Logs/Read": _READ,
    "Logs/Push": _all("worker", "manager"),  # a demand that only the node was told is its proof
    "Quorum/Look": _all("local", "worker", "manager", "viewer", "operator", "admin"),
    "Local/Info": _LOCAL,
    "Local/Init": _LOCAL,
    "Local/Join": _LOCAL,
    "Local/Leave": _LOCAL,
    "Local/TaskProcess": _LOCAL,
    "Local/DnsQuery": _LOCAL,
    "Local/DnsDump": _LOCAL,
    "Local/Trace": _LOCAL,
    "Local/QuorumStatus": _LOCAL,
    "Local/Attach": _LOCAL,
    "Local/Unlock": _LOCAL,
}

# What who may remove; kinds that are not named need what governs the cluster.
REMOVABLE: Final[dict[CallerRole, frozenset[str]]] = {
    "operator": frozenset({"network", "service"}),
    "worker": frozenset({"node"}),
}
# Who is shown the secrets in what is read: join tokens, keys of gossip.
SHOWN_SECRETS: Final[frozenset[CallerRole]] = frozenset({"local", "manager", "admin"})
# Calls that change nothing: they are not written into the audit log unless they are refused.
READS: Final = frozenset(
    {
        "Control/List",
        "Control/Get",
        "Control/Watch",
        "Control/GetAuthority",
        "Quorum/Look",
        "Dispatcher/Session",
        "Logs/Read",
        "Logs/Push",
    }
    | {name for name in TABLE if name.startswith("Local/")}
) - {"Local/Init", "Local/Join", "Local/Leave", "Local/Unlock"}


def name_of_call(method: str) -> str:
    """ "Control/List", from gRPC's "/mesh.control.v1.Control/List"; anything else as it is."""
    return method.removeprefix(PACKAGE)


def right(call: str, role: CallerRole) -> Right | None:
    """What a role may do with a call; None: nothing."""
    return TABLE.get(call, {}).get(role)


def refusal(call: str, caller: Caller, subject: str | None, kind: str = "") -> str:
    """Why a call is refused, "" if it is not. `subject` is the id of the node that it is about, None if it is about
    none in particular; `kind` is that of an object to be removed."""
    role = caller.role
    found = right(call, role)
    if found is None:
        return f"{caller} may not call {call}" + _HINT.get(role, "")
    if call == "Control/Remove" and role in REMOVABLE and kind not in REMOVABLE[role]:
        return f"{caller} may not remove a {kind[:20]}"
    if found is Right.OWN and (caller.holder is None or subject != caller.holder.id):
        return f"{caller} may call {call} only for itself"
    return ""


_HINT: dict[CallerRole | CertificateRole, str] = {
    "worker": ': ask on a manager, or with the certificate of an operator ("mesh context")',
    "viewer": ": it may only look",
    "operator": ': that needs the role "admin"',
}
