"""The choice of the balancer. What IPVS does is tried in tests/vm, on a kernel that has it."""

from __future__ import annotations

import pytest

from mesh.vip.ipvs import abandon
from mesh.vip.kernel import BALANCER_VARIABLE, Kernel
from mesh.vip.nft import VipError


def test_what_is_demanded_is_taken_or_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Kernel(balancer="nftables").balancer.name == "nftables"
    with pytest.raises(VipError, match='cannot balance by "haproxy": use ipvs, nftables or auto'):
        Kernel(balancer="haproxy")
    monkeypatch.setenv(BALANCER_VARIABLE, "nftables")
    assert Kernel().balancer_reason.startswith("nftables, as demanded; ")
    assert not Kernel(balancer="auto").balancer_reason.startswith("nftables, as demanded")


def test_without_a_demand_the_reason_begins_with_the_balancer() -> None:
    kernel = Kernel(balancer="auto")
    assert kernel.balancer_reason.startswith(kernel.balancer.name)


def test_where_ipvs_holds_nothing_there_is_nothing_to_abandon() -> None:
    assert not abandon()
