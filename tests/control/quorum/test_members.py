import asyncio

import pytest

from control.quorum.seat import enrol
from control.store.backend import Failed
from control.store.errors import ChangeRefused, NotLeader, OutcomeUnknown, Removed
from tests.control.conformance.seen import names, outcome, put
from tests.control.transport.certificates import authority


async def test_a_newcomer_learns_and_is_promoted_by_itself(lab):
    a = await lab.first()
    for i in range(1, 21):
        await a.commit(put(f"{i}"))
    b = await lab.join("a", "b")
    await b.at(20)
    assert b.rows == a.rows
    both = [("a", True, True), ("b", True, False)]
    await lab.until(lambda: [(m.node_id, m.voter, m.leader) for m in lab.backends["b"].members()] == both)


async def test_one_that_stands_by_is_promoted_when_asked_and_demoted(lab):
    await lab.first()
    await lab.join("a", "b", standby=True)
    assert not lab.member("a", "b").voter
    await lab.backends["a"].promote("b")
    assert lab.member("a", "b").voter
    await lab.backends["a"].demote("b")
    assert not lab.member("a", "b").voter
    await asyncio.sleep(0.2)
    assert not lab.member("a", "b").voter, "a demoted manager was promoted again"
    assert await outcome(lab.seen["a"].commit(put("x"))) == "done"


async def test_a_removed_manager_fails_and_the_others_go_on(lab):
    a, b, c = await lab.three()
    await lab.backends["a"].remove("c")
    await c.until(lambda: c.failed is not None)
    assert isinstance(c.failed, Removed)
    assert "c is no manager" in str(c.failed)
    assert isinstance(c.log[-1], Failed)
    assert lab.backends["c"].status().role == "failed"
    assert await outcome(a.commit(put("x"))) == "done"
    await b.at(1)
    await lab.until(lambda: [m.node_id for m in lab.backends["b"].members()] == ["a", "b"])


async def test_a_node_that_lost_its_disk_joins_as_another_member(lab):
    a, *_ = await lab.three()
    await lab.stop("c")
    await a.commit(put("x"))
    with pytest.raises(ChangeRefused, match="voter already"):
        await lab.backends["a"].add_learner("c")
    await lab.backends["a"].remove("c")
    lab.path("c").rename(lab.path("old"))
    c = await lab.join("a", "c")
    await c.at(1)
    assert lab.backends["c"].quorum().member_id == "c.4"


@pytest.mark.parametrize(
    ("operation", "node", "text"),
    [
        ("remove", "a", "have it hand the leadership over first"),
        ("demote", "a", "have it hand the leadership over first"),
        ("promote", "b", "is a voter already"),
        ("remove", "x", "node x is no manager"),
        ("transfer", "x", "node x is no manager"),
        ("transfer", "a", "leads already"),
    ],
)
async def test_what_makes_no_sense_is_refused_in_a_sentence(lab, operation, node, text):
    await lab.three()
    with pytest.raises(ChangeRefused, match=text):
        await getattr(lab.backends["a"], operation)(node)


async def test_a_removal_that_would_lose_the_quorum_is_refused(lab):
    await lab.three()
    await lab.stop("b")
    await lab.until(lambda: next(m for m in lab.backends["a"].quorum().members if m.node_id == "b").silent_s > 1.0)
    with pytest.raises(ChangeRefused, match="would not be a majority"):
        await lab.backends["a"].remove("c")
    await lab.backends["a"].remove("b")


async def test_a_follower_changes_nothing_and_says_who_leads(lab):
    await lab.three()
    for operation in ("promote", "demote", "remove", "transfer", "add_learner"):
        with pytest.raises(NotLeader, match="a does"):
            await getattr(lab.backends["b"], operation)("c")


async def test_the_leadership_goes_where_it_is_sent(lab):
    a, _, c = await lab.three()
    await lab.backends["a"].transfer("c")
    assert a.term is None
    await c.leading()
    await a.until(lambda: a.leader == "c")
    assert await outcome(c.commit(put("x"))) == "done"
    await lab.backends["c"].remove("a")
    await a.until(lambda: a.failed is not None)


async def test_without_quorum_status_is_told_and_a_barrier_says_what_is_wrong(lab, monkeypatch):
    monkeypatch.setattr("control.quorum.backend.BARRIER_S", 1.0)
    a, *_ = await lab.three()
    await a.commit(put("x"))
    await lab.stop("b", "c")
    await a.until(lambda: a.term is None)
    assert await outcome(a.commit(put("y"))) == "NotLeader"
    assert len(lab.backends["a"].members()) == 3
    status = lab.backends["a"].quorum()
    assert (status.member_id, status.leader, len(status.members)) == ("a.1", "", 3)
    assert {m.node_id for m in status.members if not m.connected} == {"b", "c"}
    assert all(m.problem for m in status.members if m.node_id != "a")
    with pytest.raises((NotLeader, OutcomeUnknown), match="majority"):
        await lab.backends["a"].barrier()


async def test_all_addresses_may_change(lab):
    """Everybody comes back elsewhere, and is told of one other."""
    a, *_ = await lab.three()
    await a.commit(put("x"))
    await lab.stop("c", "b", "a")
    for node in ("a", "b", "c"):
        await lab.start(node)
    lab.backends["a"].set_peers({"b": lab.addresses["b"]})
    lab.backends["b"].set_peers({"c": lab.addresses["c"]})
    leader = await lab.leader("a", "b", "c")
    assert await outcome(lab.seen[leader].commit(put("y"), version=2)) == "done"
    for node in "abc":
        await lab.seen[node].at(2)
        assert names(lab.seen[node]) == ["x", "y"]


async def test_a_new_address_can_be_agreed_on(lab):
    await lab.three()
    await lab.backends["a"].readdress("b", "127.0.0.1:7")

    def known() -> str:
        return lab.backends["c"]._engine.core.status().configuration.of_node("b").address

    await lab.until(lambda: known() == "127.0.0.1:7")


async def test_managers_with_certificates_let_in_nobody_else(lab, tmp_path):
    """A snapshot goes the same way."""
    tls_of = authority(tmp_path)
    lab.tls_of = tls_of
    options = {"log_limit_bytes": 2_000, "keep_entries": 5}
    a = await lab.first(**options)
    for i in range(100):
        await a.commit(put(f"{i}", bytes(100)))
    b = await lab.join("a", "b", **options)
    await b.at(100)
    assert b.rows == a.rows
    lab.tls_of = lambda node: tls_of(node, "otherca")
    seat = await lab.backends["a"].add_learner("c")
    await enrol(lab.path("c"), "c1", seat)
    c = await lab.start("c", peers=lab.addresses)
    await lab.until(lambda: lab.backends["a"]._transport.counters.refused["TLS"] > 0)
    assert await outcome(a.commit(put("x"))) == "done"
    assert c.version == 0
