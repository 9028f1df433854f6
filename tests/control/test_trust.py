"""The authority of a new cluster: one that was brought along, how long what it signs lasts, and what is refused."""

from __future__ import annotations

import msgspec
import pytest

from control.ca.requests import make_request
from control.ca.root import NODE_LIFE_S, load_certificates, load_root, make_root, new_key, pem
from control.ca.root import key_pem as pem_of
from control.model import Cluster, ClusterSpec, Node
from control.server.certificates import certify
from control.spec import cluster_mistakes
from control.store.tables import Snapshot
from control.trust import found

NOW = 1_800_000_000.0
CSR = make_request(new_key())


def life_s(chain: bytes) -> float:
    return load_certificates(chain)[0].not_valid_after_utc.timestamp() - NOW


def test_a_root_that_is_brought_signs_the_first_node() -> None:
    own = make_root("corporate", new_key(), NOW, bytes(16))
    brought = load_root(pem(own.certificate), pem_of(own.key), NOW)
    made = found("c1", "n1", brought, CSR, NOW)
    assert made.digest == own.digest
    assert made.roots == pem(own.certificate)
    load_certificates(made.chain)[0].verify_directly_issued_by(own.certificate)
    assert life_s(made.chain) == NODE_LIFE_S


def test_nodes_are_certified_for_as_long_as_the_cluster_says() -> None:
    made = found("c1", "n1", None, CSR, NOW, 7200.0)
    assert life_s(made.chain) == 7200
    node = Node(id="n2", number=2)
    for wanted in (3600.0, 10 * 86400.0):
        cluster = Cluster(id="c1", spec=ClusterSpec(certificate_life_s=wanted))
        issued = certify(Snapshot.of([cluster, made.authority, node], 1), node, CSR, NOW, bytes(16))
        assert life_s(issued.chain) == wanted


@pytest.mark.parametrize(("life_s", "good"), [(3599.0, False), (3600.0, True), (3.2e8, False), (float("nan"), False)])
def test_bounds_of_the_life(life_s: float, good: bool) -> None:
    spec = msgspec.structs.replace(ClusterSpec(), certificate_life_s=life_s)
    assert (cluster_mistakes(spec) == []) is good


def test_nothing_outlives_its_root() -> None:
    root = make_root("c1", new_key(), NOW - 19.99 * 365 * 86400.0, bytes(16))
    made = found("c1", "n1", root, CSR, NOW)
    assert 0 < life_s(made.chain) < NODE_LIFE_S
