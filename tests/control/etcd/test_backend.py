"""Against real servers: killed and started again, out of space, replaced behind our back, and what users get wrong.

What every backend promises is in tests/control/conformance.
"""

import asyncio
import os
import subprocess
import time

import pytest

from control.etcd import backend as backend_module
from control.etcd.backend import EtcdBackend, cluster_of, from_url
from control.etcd.url import BadStoreUrl, EtcdOptions, Tls
from control.store.aesgcm import KEY_BYTES, AesGcmSealer
from control.store.aesgcm import Keys as AesKeys
from control.store.backend import Committed, Failed, Following, Leading, Replaced
from control.store.errors import BackendFailed, WrongCluster
from tests.control.conformance.seen import Seen, names, opened, outcome, put
from tests.control.etcd.server import Etcd
from tests.ports import free_ports


@pytest.fixture
def server(tmp_path):
    made: list[Etcd] = []

    def make(members: int = 1, *extra: str, **options) -> Etcd:
        made.append(Etcd(tmp_path / f"etcd{len(made)}", members, extra, **options))
        return made[-1].start()

    yield make
    for etcd in made:
        etcd.stop()


def options(etcd: Etcd, **changes) -> EtcdOptions:
    return EtcdOptions(**{"endpoints": etcd.endpoints, "prefix": "/t", "ttl_s": 2, **changes})


async def led(etcd: Etcd, node_id: str = "n1", **changes) -> Seen:
    seen = await opened(EtcdBackend(options(etcd, **changes), "c1", node_id))
    await seen.leading()
    return seen


async def writes(seen: Seen, outcomes: dict[str, str], prefix: str, until: asyncio.Event) -> None:
    """Until told to stop, one after the other, whenever it leads."""
    number = 0
    while not until.is_set():
        if seen.term is None:
            await asyncio.sleep(0.01)
            continue
        number += 1
        outcomes[f"{prefix}{number}"] = await outcome(seen.commit(put(f"{prefix}{number}")))
        await asyncio.sleep(0.001)


def check(seen: Seen, outcomes: dict[str, str]) -> None:
    """Acknowledged: there. Certainly not: not there."""
    there = set(names(seen))
    assert {i for i, end in outcomes.items() if end == "done"} <= there
    assert not {i for i, end in outcomes.items() if end in ("Refused", "NotLeader")} & there


# --- etcd dies --------------------------------------------------------------------------------------------------------


async def test_etcd_is_killed_and_comes_back_while_we_write(server):
    """A lease lives longer than the pause: nobody is deposed, commits under way just take longer."""
    etcd = server()
    seen = await led(etcd, ttl_s=20)
    outcomes: dict[str, str] = {}
    ended = asyncio.Event()
    async with asyncio.TaskGroup() as group:
        group.create_task(writes(seen, outcomes, "w", ended))
        for _ in range(2):
            await asyncio.sleep(0.2)
            before = seen.version
            await asyncio.to_thread(etcd.kill)
            await asyncio.sleep(0.3)
            await asyncio.to_thread(etcd.start)
            await seen.at(before + 20)
        ended.set()
    assert set(outcomes.values()) == {"done"}
    assert [d for d in seen.log if isinstance(d, Leading | Following | Replaced)][-1:] == [Leading(seen.term)]
    check(seen, outcomes)
    await seen.backend.close()
    again = await led(etcd)
    assert again.rows == seen.rows
    await again.backend.close()


async def test_etcd_is_away_for_longer_than_a_lease(server):
    etcd = server()
    seen = await led(etcd)
    await seen.commit(put("a"))
    term = seen.term
    etcd.kill()
    under_way = seen.commit(put("b"))
    began = time.monotonic()
    await seen.until(lambda: seen.term is None)
    assert time.monotonic() - began < 2, "it led for longer than its lease"
    assert await outcome(under_way) == "OutcomeUnknown"
    assert "etcd at 127.0.0.1" in seen.backend.status().message
    assert seen.backend.status().role == "follower"
    await asyncio.to_thread(etcd.start)
    assert await seen.leading() > term
    assert seen.backend.status().message == ""
    assert names(seen) in (["a"], ["a", "b"])
    assert await outcome(seen.commit(put("c"))) == "done"
    await seen.backend.close()


async def test_three_members_one_dies_after_the_other(server):
    """The leader of etcd among them; what serves us changes, what we lead does not."""
    etcd = server(3)
    seen, other = await led(etcd, ttl_s=20), await opened(EtcdBackend(options(etcd, ttl_s=20), "c1", "n2"))
    term = seen.term
    outcomes: dict[str, str] = {}
    ended = asyncio.Event()
    async with asyncio.TaskGroup() as group:
        group.create_task(writes(seen, outcomes, "w", ended))
        for member in range(3):
            await asyncio.sleep(0.2)
            await asyncio.to_thread(etcd.kill, member)
            before = seen.version
            await seen.at(before + 20)
            await asyncio.to_thread(etcd.start, member)
            await seen.at(before + 40)
        ended.set()
    assert set(outcomes.values()) == {"done"}
    assert seen.term == term
    await other.at(seen.version)
    assert other.rows == seen.rows
    check(seen, outcomes)
    await seen.backend.close()
    await other.backend.close()


async def test_without_quorum_nothing_is_acknowledged(server):
    etcd = server(3)
    seen = await led(etcd)
    await seen.commit(put("a"))
    etcd.kill(1)
    etcd.kill(2)
    under_way = seen.commit(put("b"))
    assert await outcome(under_way) == "OutcomeUnknown"
    assert seen.term is None
    await asyncio.to_thread(etcd.start, 1)
    await seen.leading()
    assert names(seen) in (["a"], ["a", "b"])
    assert await outcome(seen.commit(put("c"))) == "done"
    await seen.backend.close()


# --- etcd refuses -----------------------------------------------------------------------------------------------------


async def test_no_space_left_in_etcd(server):
    etcd = server(1, "--quota-backend-bytes=2000000")
    seen = await led(etcd)
    version = 0
    while (ended := await outcome(seen.commit(put(f"{version}", bytes(200_000))))) == "done":
        version += 1
        assert version < 50
    assert ended == "Refused"
    assert (seen.version, len(names(seen))) == (version, version)
    with pytest.raises(
        Exception, match=r"etcd has no space left .alarm NOSPACE.: compact and defragment it, then disarm"
    ):
        await seen.commit(put("x"))
    assert seen.term is not None, "deletes and reads are still possible"
    etcd.compact()
    await asyncio.sleep(0.2)
    etcd.ctl("defrag")
    etcd.ctl("alarm", "disarm")
    assert await outcome(seen.commit(put("after"))) in ("done", "Refused")
    await seen.backend.close()


async def test_etcd_with_lower_limits_than_ours(server):
    etcd = server(1, "--max-txn-ops=20")
    seen = await led(etcd)
    assert await outcome(seen.commit(*(put(f"{i}") for i in range(10)))) == "done"
    many = seen.commit(*(put(f"x{i}") for i in range(100)))
    assert await outcome(many) == "Refused"
    assert "max-txn-ops" in str(many.exception())
    assert await outcome(seen.commit(put("a"))) == "done"
    await seen.backend.close()


async def test_history_may_be_compacted_at_any_time(server):
    etcd = server(1, "--auto-compaction-mode=revision", "--auto-compaction-retention=1")
    seen, other = await led(etcd), await opened(EtcdBackend(options(etcd), "c1", "n2"))
    for i in range(1, 41):
        await seen.commit(put(f"{i}"))
        if i % 10 == 0:
            await asyncio.to_thread(etcd.compact)
    await other.at(40)
    assert other.rows == seen.rows
    await seen.backend.close()
    await other.backend.close()


# --- others write, or bring back, what is ours ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [
        ["put", "/t/row/k/a", "mine"],
        ["del", "/t/row/k/a"],
        ["put", "/t/head", "mine"],
        ["del", "--prefix", "/t/"],
        ["put", "/t/other", "mine"],
    ],
    ids=" ".join,
)
async def test_who_writes_below_the_prefix_is_found_out(server, arguments):
    etcd = server()
    seen = await led(etcd)
    await seen.commit(put("a"))
    etcd.ctl(*arguments)
    await seen.until(lambda: seen.failed is not None)
    assert isinstance(seen.failed, BackendFailed)
    assert seen.backend.status().role == "failed"
    assert await outcome(seen.commit(put("b"))) == "BackendFailed"
    await seen.backend.close()


async def test_other_prefixes_are_none_of_our_business(server):
    etcd = server()
    seen, other = await led(etcd), await led(etcd, prefix="/tt")
    etcd.ctl("put", "/t", "x")
    etcd.ctl("put", "/u/head", "x")
    assert await outcome(seen.commit(put("a"))) == "done"
    assert await outcome(other.commit(put("b"))) == "done"
    assert (names(seen), names(other)) == (["a"], ["b"])
    await seen.backend.close()
    await other.backend.close()


async def test_a_restored_etcd_is_noticed(server):
    etcd = server()
    seen = await led(etcd, ttl_s=20)
    await seen.commit(put("a"))
    snapshot = etcd.directory / "snapshot"
    etcd.ctl("snapshot", "save", str(snapshot))
    await seen.commit(put("b"))
    etcd.kill()
    data = etcd.directory / "data-0"
    data.rename(etcd.directory / "old")
    peer = f"http://127.0.0.1:{etcd.peers[0]}"
    member = ["--name=m0", f"--initial-cluster=m0={peer}", f"--initial-advertise-peer-urls={peer}"]
    etcd.ctl("snapshot", "restore", str(snapshot), "--data-dir", str(data), *member)
    await asyncio.to_thread(etcd.start)
    await seen.until(lambda: seen.failed is not None)
    assert "older than what was read from it (commit 2)" in str(seen.failed)
    assert isinstance(seen.log[-1], Failed)
    await seen.backend.close()
    again = await led(etcd)
    assert (again.version, names(again)) == (1, ["a"])
    await again.backend.close()


# --- managers ---------------------------------------------------------------------------------------------------------


async def test_a_manager_that_starts_again_does_not_wait_for_its_own_lease(server):
    """It was killed: its lease lives on, for a minute here."""
    etcd = server()
    seen = await led(etcd, ttl_s=60)
    await seen.commit(put("a"))
    term = seen.term
    seen.backend._root.remove_done_callback(seen.backend._ended)
    seen.backend._client.revoke = _nothing  # as a process that was killed
    seen.backend._root.cancel()
    again = await opened(EtcdBackend(options(etcd, ttl_s=60), "c1", "n1"))
    async with asyncio.timeout(5):
        assert await again.leading() > term
    assert names(again) == ["a"]
    await again.backend.close()


async def _nothing(lease: int, timeout_s: float) -> None:
    pass


async def test_a_lease_that_is_revoked_ends_the_leadership(server):
    etcd = server()
    seen = await led(etcd)
    term = seen.term
    etcd.ctl("lease", "revoke", f"{seen.backend._lease:x}")
    await seen.until(lambda: seen.term is None)
    assert await seen.leading() > term
    assert await outcome(seen.commit(put("a"))) == "done"
    await seen.backend.close()


async def test_a_candidacy_that_is_deleted_ends_the_leadership(server):
    etcd = server()
    seen = await led(etcd)
    term = seen.term
    etcd.ctl("del", "--prefix", "/t/run/")
    await seen.until(lambda: seen.term is None)
    assert await seen.leading() > term
    assert await outcome(seen.commit(put("a"))) == "done"
    await seen.backend.close()


async def test_a_leader_whose_lease_has_ended_is_fenced_by_etcd_itself(server):
    """Even one that does not know it: what it sends is refused."""
    etcd = server()
    seen = await led(etcd)
    await seen.commit(put("a"))
    seen.backend._judge = lambda: None  # deaf: it goes on believing that it leads
    etcd.ctl("lease", "revoke", f"{seen.backend._lease:x}")
    future = seen.commit(put("b"))
    await asyncio.sleep(0.5)
    assert not future.done()
    other = EtcdBackend(options(etcd), "c1", "n2")
    assert [row.id for row in (await other.load()).rows] == ["a"]
    await other.close()
    await seen.backend.close()


# --- what users get wrong ---------------------------------------------------------------------------------------------


async def test_the_store_of_another_cluster_is_refused(server):
    etcd = server()
    assert await cluster_of(options(etcd)) is None
    seen = await led(etcd)
    await seen.backend.close()
    assert await cluster_of(options(etcd)) == "c1"
    with pytest.raises(WrongCluster) as caught:
        await EtcdBackend(options(etcd), "c2", "n1").load()
    assert str(caught.value) == 'the prefix /t in etcd belongs to cluster "c1", not to "c2": use another prefix'


async def test_nobody_there(monkeypatch):
    monkeypatch.setattr(backend_module, "CONNECT_S", 0.5)
    ports = free_ports(2)
    nowhere = EtcdOptions(tuple(f"127.0.0.1:{p}" for p in ports), "/t")
    for call in (EtcdBackend(nowhere, "c1", "n1").load(), cluster_of(nowhere)):
        with pytest.raises(
            BackendFailed, match=rf"cannot use etcd at 127.0.0.1:{ports[0]}, 127.0.0.1:{ports[1]}: ."
        ) as caught:
            await call
        assert "\n" not in str(caught.value)


async def test_a_dead_member_among_the_endpoints_is_passed_by(server):
    etcd = server()
    [port] = free_ports(1)
    seen = await led(etcd, endpoints=(f"127.0.0.1:{port}", *etcd.endpoints))
    assert await outcome(seen.commit(put("a"))) == "done"
    await seen.backend.close()


def test_from_url():
    made = from_url("etcd://a,b/c", cluster_id="c1", node_id="n1")
    assert made.status().role == "follower"
    with pytest.raises(BadStoreUrl):
        from_url("etcd://a", cluster_id="c1", node_id="n1")


# --- TLS --------------------------------------------------------------------------------------------------------------


def certificates(directory):
    def openssl(*arguments):
        subprocess.run(["openssl", *arguments], cwd=directory, check=True, capture_output=True)

    new = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    openssl("req", "-x509", *new, "-keyout", "ca.key", "-out", "ca.crt", "-subj", "/CN=ca", "-days", "2")
    (directory / "san").write_text("subjectAltName=IP:127.0.0.1")
    for name in ("server", "client"):
        openssl("req", *new, "-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj", f"/CN={name}")
        signed = ["-CA", "ca.crt", "-CAkey", "ca.key", "-CAcreateserial", "-days", "2", "-extfile", "san"]
        openssl("x509", "-req", "-in", f"{name}.csr", *signed, "-out", f"{name}.crt")


async def test_mutual_tls(server, tmp_path, monkeypatch):
    certificates(tmp_path)
    files = {"cert-file": "server.crt", "key-file": "server.key", "trusted-ca-file": "ca.crt"}
    extra = [f"--{name}={tmp_path / file}" for name, file in files.items()]
    etcd = server(1, *extra, "--client-cert-auth", scheme="https")
    tls = Tls(*(str(tmp_path / name) for name in ("ca.crt", "client.crt", "client.key")))
    seen = await led(etcd, tls=tls)
    assert await outcome(seen.commit(put("a"))) == "done"
    await seen.backend.close()
    monkeypatch.setattr(backend_module, "CONNECT_S", 1.0)
    for bad in (Tls(tls.ca), Tls(), Tls("/nowhere", "", ""), None):
        with pytest.raises(BackendFailed, match="cannot use etcd at"):
            await EtcdBackend(options(etcd, tls=bad), "c1", "n1").load()


async def test_large_commits_are_seen_whole_by_others(server):
    """Fragments of a watch, parts of blobs."""
    etcd = server()
    seen, other = await led(etcd), await opened(EtcdBackend(options(etcd), "c1", "n2"))
    futures = [seen.commit(*(put(f"{i}-{j}", bytes(30_000)) for j in range(40)), version=i) for i in range(1, 11)]
    assert {await outcome(f) for f in futures} == {"done"}
    await other.at(10)
    assert other.rows == seen.rows
    assert not [d for d in other.log if isinstance(d, Replaced)]
    assert len([d for d in other.log if isinstance(d, Committed)]) == 10
    await seen.backend.close()
    await other.backend.close()


async def test_parts_that_were_left_behind_are_removed(server):
    etcd = server()
    seen = await led(etcd)
    await seen.commit(put("a", bytes(100_000)))
    kept = etcd.ctl("get", "--prefix", "--keys-only", "/t/part/")
    etcd.ctl("put", f"/t/part/{1:016x}/{9:016x}/0/0", "left behind")
    await asyncio.sleep(0.2)
    await seen.commit(put("b"))
    assert etcd.ctl("get", "--prefix", "--keys-only", "/t/part/") == kept
    await seen.backend.close()


async def test_with_a_key_nothing_readable_is_in_etcd(server):
    etcd = server()
    ring = AesKeys([AesGcmSealer("k1", bytes(KEY_BYTES), os.urandom)])
    seen = await opened(EtcdBackend(options(etcd), "c1", "n1", ring=ring))
    await seen.leading()
    await seen.commit(put("a", b"password" * 10), put("b", b"password" * 20_000))
    await seen.backend.close()
    assert "password" not in etcd.ctl("get", "--prefix", "/t/")
    again = await opened(EtcdBackend(options(etcd), "c1", "n1", ring=ring))
    assert again.rows == seen.rows
    await again.backend.close()
    with pytest.raises(BackendFailed, match="which this manager does not have"):
        await EtcdBackend(options(etcd), "c1", "n1").load()
