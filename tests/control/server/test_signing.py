"""Certificates of an external CA, over real HTTPS: what is asked, and that only what was asked for is taken."""

from __future__ import annotations

import socket
from dataclasses import replace

import pytest

from control.ca.contexts import Credentials
from control.ca.external import External, Order, Unsigned, check_url
from control.ca.names import Holder, holder_in
from control.ca.requests import make_request
from control.ca.root import CaError, key_pem, load_certificates, new_key, pem
from control.ca.verify import verify_manager
from control.model import Cluster, Node, NodeSpec
from control.server import signing, users
from control.server.certificates import certify, rotate
from control.server.refusal import Refusal
from control.server.signing import Signatures
from control.store.tables import Snapshot
from control.trust import found_outside
from tests.cfssl import Signer, new_root
from tests.security.world import wall_ms

KEY = new_key()
CSR = make_request(KEY)
WORKER, MANAGER = Holder("c1", "worker", "n2"), Holder("c1", "manager", "n1")


@pytest.fixture
def signer():
    return Signer(*new_root())


def order_of(signer: Signer, url: str, holder: Holder = MANAGER) -> Order:
    return Order(url, pem(signer.root), holder, CSR)


async def test_what_is_asked_and_given(signer):
    with signer.serve() as url:
        for holder in (MANAGER, WORKER):
            signatures, order = Signatures(None, wall_ms), order_of(signer, url, holder)
            with pytest.raises(Unsigned):
                signatures.take(order)
            await signatures.fetch(order)
            (leaf,) = load_certificates(signatures.take(order))
            assert leaf.public_key() == KEY.public_key()
            with pytest.raises(Unsigned):  # it is for one use
                signatures.take(order)
    asked = signer.asked[0]
    assert asked["hosts"][0] == MANAGER.uri
    assert len(asked["hosts"]) == 2
    assert asked["subject"] == {"CN": "n1", "names": [{"OU": "manager", "O": "c1"}]}
    assert asked["profile"] == "manager"
    assert signer.asked[1]["hosts"] == [WORKER.uri]
    assert signer.clients == []


async def test_a_manager_shows_its_certificate_there(signer):
    with signer.serve() as url:
        first = Signatures(None, wall_ms)
        await first.fetch(order_of(signer, url))
        mine = Credentials(key_pem(KEY), first.take(order_of(signer, url)), pem(signer.root))
        await Signatures(lambda: mine, wall_ms).fetch(order_of(signer, url, WORKER))
    assert signer.clients == [MANAGER.uri]


@pytest.mark.parametrize(
    ("twist", "holder", "said"),
    [
        ("refuse", MANAGER, "refuses to sign: policy says no"),
        ("junk", MANAGER, "no answer that can be read"),
        ("long", MANAGER, "it is too long"),
        ("key", MANAGER, "has signed another key"),
        ("root", MANAGER, "no root of this cluster stands behind it"),
        ("profile", MANAGER, "cannot be used"),
        ("role", WORKER, "has signed for"),
    ],
)
async def test_what_is_not_taken(signer, twist, holder, said):
    signer.twist = twist
    signatures = Signatures(None, wall_ms)
    with signer.serve() as url, pytest.raises(CaError, match=said):
        await signatures.fetch(order_of(signer, url, holder))
    with pytest.raises(Unsigned):
        signatures.take(order_of(signer, url, holder))


async def test_somebody_else_answers_or_nobody(signer, monkeypatch):
    monkeypatch.setattr(signing, "ASK_TIMEOUT_S", 0.5)
    with (
        Signer(*new_root("Another")).serve() as url,
        pytest.raises(CaError, match=r"does not answer: .*ertificate"),
    ):
        await Signatures(None, wall_ms).fetch(order_of(signer, url))
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"https://127.0.0.1:{silent.getsockname()[1]}/"
        with pytest.raises(CaError, match="does not answer"):
            await Signatures(None, wall_ms).fetch(order_of(signer, url))
    with pytest.raises(CaError, match="does not answer: Connection refused"):
        await Signatures(None, wall_ms).fetch(order_of(signer, url))


async def test_a_decision_is_made_again_with_what_it_was_missing(signer):
    with signer.serve() as url:
        made = await found_outside("c1", "n1", External(url, pem(signer.root)), CSR, wall_ms)
        roots = load_certificates(made.roots)
        assert verify_manager(load_certificates(made.chain)[0], [], roots, wall_ms() / 1000) == MANAGER
        assert made.authority.key == ""
        node = Node(id="n2", number=2)
        view = Snapshot.of([Cluster(id="c1"), made.authority, node], 1)
        signatures, issued, tries = Signatures(None, wall_ms), [], []

        async def decide() -> None:
            tries.append(1)
            issued.append(certify(view, node, CSR, 0.0, bytes(16), signatures.take))

        await signatures.decided(decide)
        assert (len(tries), len(issued)) == (2, 1)
        assert issued[0].node.issuer == made.digest
        signer.twist = "refuse"
        with pytest.raises(Refusal, match="policy says no") as caught:
            await signatures.decided(decide)
        assert caught.value.code == "UNAVAILABLE"
        signer.twist = ""

        async def restless() -> None:
            """The role changes each time."""
            nonlocal node
            role = "manager" if node.spec.role == "worker" else "worker"
            node = Node(id=f"n{len(tries)}", number=2, spec=NodeSpec(role=role))
            await decide()

        with pytest.raises(Refusal, match="try again"):
            await signatures.decided(restless)
    with pytest.raises(Refusal, match="its root cannot be changed"):
        rotate(view, b"", b"", wall_ms() / 1000, bytes(16), bytes(16))


async def test_users_are_signed_outside_as_well(signer):
    with signer.serve() as url:
        made = await found_outside("c1", "n1", External(url, pem(signer.root)), CSR, wall_ms)
        view, now_s = Snapshot.of([Cluster(id="c1"), made.authority], 1), wall_ms() / 1000
        signatures, issued = Signatures(None, wall_ms), []

        async def decide() -> None:
            issued.append(users.add(view, "anna", "operator", CSR, 0.0, now_s, bytes(16), signatures.take))

        await signatures.decided(decide)
        (leaf,) = load_certificates(issued[0].chain)
        assert holder_in(leaf) == Holder("c1", "operator", "anna")
        ends_s = min(leaf.not_valid_after_utc.timestamp(), now_s + users.USER_LIFE_S)
        assert issued[0].user.expires_ms == int(ends_s * 1000)


async def test_what_was_fetched_and_not_used_is_bounded(signer, monkeypatch):
    monkeypatch.setattr(signing, "KEPT_MAX", 2)
    with signer.serve() as url:
        signatures = Signatures(None, wall_ms)
        orders = [replace(order_of(signer, url), holder=Holder("c1", "worker", f"n{i}")) for i in range(4)]
        for order in orders:
            await signatures.fetch(order)
    with pytest.raises(Unsigned):
        signatures.take(orders[0])
    assert signatures.take(orders[3])


@pytest.mark.parametrize(
    "url", ["", "http://ca/sign", "https://", "https://ca:x/", "https://u:p@ca/", "ca.example.com"]
)
def test_what_is_no_place_to_ask(url):
    assert "an external CA is given as https://" in check_url(url)
    assert check_url("https://ca.example.com:8888/api/v1/cfssl/sign") == ""
