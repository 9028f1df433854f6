"""The table of rights: complete, and as it is promised in SECURITY.md."""

from __future__ import annotations

import pytest

from control import access
from control.access import CallerRole, Right
from control.ca.names import CertificateRole, Holder
from control.rpc import control_pb2

ROLES: tuple[CallerRole, ...] = ("worker", "manager", "viewer", "operator", "admin", "local")
CALLS = {
    f"{service.name}/{method.name}"
    for service in control_pb2.DESCRIPTOR.services_by_name.values()
    for method in service.methods
}


def a_caller(role: CertificateRole) -> access.Caller:
    return access.Caller(Holder("c" * 25, role, "me"))


def test_every_call_of_the_contract_is_in_the_table_and_nothing_else() -> None:
    assert set(access.TABLE) == CALLS


def test_every_call_has_somebody_who_may_make_it() -> None:
    assert all(access.TABLE.values())


@pytest.mark.parametrize("role", ROLES)
def test_what_is_not_in_the_table_is_refused_to_everybody(role: CallerRole) -> None:
    assert access.right("Control/Unknown", role) is None
    assert access.right("", role) is None


def test_a_worker_may_do_little_and_that_for_itself() -> None:
    mine = {call for call in CALLS if access.right(call, "worker")}
    assert mine == {
        *("Control/Remove", "Membership/Enlist", "Membership/Renew", "Dispatcher/Session"),
        *("Quorum/Look", "Logs/Push"),
    }
    assert all(access.right(call, "worker") is Right.OWN for call in mine - {"Quorum/Look", "Logs/Push"})


def test_roles_of_users_include_each_other() -> None:
    def calls(role: CallerRole) -> set[str]:
        return {call for call in CALLS if access.right(call, role)}

    assert calls("viewer") < calls("operator") < calls("admin")
    assert calls("viewer") <= access.READS
    assert {"Control/Backup", "Control/RotateToken", "Control/UpdateNode"} <= calls("admin") - calls("operator")


def test_nobody_on_the_network_may_call_what_is_local() -> None:
    for call in CALLS:
        if call.startswith("Local/"):
            assert set(access.TABLE[call]) == {"local"}


REMOVALS: list[tuple[CertificateRole, str, str, bool]] = [
    ("worker", "node", "me", True), ("worker", "node", "other", False), ("worker", "service", "me", False),
    ("viewer", "service", "x", False), ("operator", "service", "x", True), ("operator", "network", "x", True),
    ("operator", "node", "x", False), ("operator", "user", "x", False), ("admin", "user", "x", True),
    ("viewer", "user", "me", False), ("worker", "user", "me", False), ("admin", "node", "x", True),
    ("manager", "node", "x", True),
]  # fmt: skip


@pytest.mark.parametrize(("role", "kind", "subject", "allowed"), REMOVALS)
def test_who_may_remove_what(role: CertificateRole, kind: str, subject: str, *, allowed: bool) -> None:
    assert (access.refusal("Control/Remove", a_caller(role), subject, kind) == "") is allowed


def test_a_session_is_for_the_node_of_the_certificate() -> None:
    for role in ("worker", "manager"):
        assert access.refusal("Dispatcher/Session", a_caller(role), "me") == ""
        assert "only for itself" in access.refusal("Dispatcher/Session", a_caller(role), "you")
        assert "only for itself" in access.refusal("Dispatcher/Session", a_caller(role), None)


def test_a_refusal_says_what_helps() -> None:
    assert "manager" in access.refusal("Control/List", a_caller("worker"), None)
    assert "only look" in access.refusal("Control/CreateService", a_caller("viewer"), None)
    assert "admin" in access.refusal("Control/Backup", a_caller("operator"), None)


def test_only_those_who_govern_are_shown_secrets() -> None:
    for role in ROLES:
        assert (role in access.SHOWN_SECRETS) is (access.right("Control/RotateToken", role) is not None)
