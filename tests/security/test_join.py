"""A whole manager: who is let in at the door and as what, who gets another certificate, and who is nobody then."""

from __future__ import annotations

from pathlib import Path

import grpc
import msgspec
import pytest

from control.ca.names import holder_in
from control.ca.requests import make_request
from control.ca.root import CaError, load_certificates, new_key
from control.model import NodeDescription
from control.rpc import control_pb2 as pb
from control.rpc.control_pb2_grpc import ControlStub, MembershipStub
from control.server.edge import Edge
from control.server.refusal import Refusal
from control.token import make_token, parse_token
from tests.security.world import a_world, certified


async def test_a_token_gives_its_role_and_nothing_else(tmp_path: Path) -> None:
    async with a_world(tmp_path) as world:
        for name, token, role in (
            ("h2", world.made.worker_token, "worker"),
            ("h3", world.made.manager_token, "manager"),
        ):
            reply = await world.join(name, token)
            holder = holder_in(load_certificates(reply.certificate)[0])
            assert holder is not None
            assert (holder.role, holder.id, holder.cluster_id) == (role, reply.node_id, world.made.cluster_id)
            line = f'"call":"Membership/Join","who":"node {reply.node_id} ({role})","from":"127.0.0.1"'
            assert line in world.audit.read_text()


async def test_bad_tokens_and_bad_requests_are_refused(tmp_path: Path) -> None:
    async with a_world(tmp_path) as world:
        good = parse_token(world.made.worker_token)
        guess = make_token(good.digest, b"x" * 16)
        with pytest.raises(Refusal, match="not valid, or not any more"):
            await world.join("h2", guess)
        with pytest.raises(CaError, match="another digest"):
            await world.join("h2", make_token("0" * 50, b"x" * 16))
        for csr in (b"", b"junk"):
            with pytest.raises(Refusal):
                await world.join("h2", world.made.worker_token, csr=csr)
        with pytest.raises(Refusal, match="cannot be read"):
            await world.ask(b"\xff" * 100, "")
        assert [
            node.description.hostname for node in world.manager.store.view().objects() if hasattr(node, "number")
        ] == ["h1"]


async def test_names_that_are_no_text_end_nothing(tmp_path: Path) -> None:
    """MessagePack with bytes that are no UTF-8 where text belongs, by somebody with a good token, and by a member."""
    async with a_world(tmp_path) as world:
        description = bytearray(msgspec.msgpack.encode(NodeDescription(hostname="h2")))
        description[description.index(b"h2")] = 0xF2
        asked = pb.JoinRequest(
            token=world.made.worker_token, description=bytes(description), csr=make_request(new_key())
        )
        with pytest.raises(Refusal, match="unreadable description"):
            await world.ask(asked.SerializeToString(), world.made.worker_token)
        assert (await world.join("h3", world.made.worker_token)).role == "worker"
        async with Edge(lambda: world.credentials).channel(world.address) as channel:
            with pytest.raises(grpc.aio.AioRpcError, match="unreadable NetworkSpec"):
                await ControlStub(channel).CreateNetwork(pb.CreateRequest(spec=b"\x81\xa4name\xa1\xf2"), timeout=10)


async def test_an_old_token_is_worth_nothing_after_a_rotation(tmp_path: Path) -> None:
    async with a_world(tmp_path) as world, Edge(lambda: world.credentials).channel(world.address) as channel:
        reply = await ControlStub(channel).RotateToken(pb.RotateTokenRequest(role="worker"), timeout=10)
        with pytest.raises(Refusal, match="not any more"):
            await world.join("h2", world.made.worker_token)
        assert (await world.join("h2", reply.token)).role == "worker"
        text = world.audit.read_text()
        assert '"call":"Control/RotateToken"' in text
        assert reply.token not in text


async def test_a_member_comes_again_by_its_key_and_its_secret_only(tmp_path: Path) -> None:
    async with a_world(tmp_path) as world:
        key = new_key()
        first = await world.join("h2", world.made.worker_token, key=key)
        again = {"node_id": first.node_id, "secret": first.secret}
        reply = await world.join("h2", "", key=key, **again)
        assert reply.node_id == first.node_id
        with pytest.raises(Refusal, match="the key is not that of node"):
            await world.join("h2", "", **again)
        with pytest.raises(Refusal, match="not that of a member"):
            await world.join("h2", "", key=key, node_id=first.node_id, secret="guess")


async def test_a_worker_renews_for_itself_until_it_is_removed(tmp_path: Path) -> None:
    async with a_world(tmp_path) as world:
        key, other = new_key(), new_key()
        mine = certified(await world.join("h2", world.made.worker_token, key=key), key)
        theirs = await world.join("h3", world.made.worker_token, key=other)
        holder = holder_in(mine.certificate)
        assert holder is not None
        async with Edge(lambda: mine).channel(world.address) as channel:
            renew = MembershipStub(channel).Renew
            reply = await renew(pb.RenewRequest(node_id=holder.id, csr=make_request(key)), timeout=10)
            assert holder_in(load_certificates(reply.certificate)[0]) == holder
            for node_id, csr, code in (
                (theirs.node_id, make_request(other), "PERMISSION_DENIED"),
                (world.made.node_id, make_request(key), "PERMISSION_DENIED"),
                (holder.id, make_request(other), "UNAUTHENTICATED"),
            ):
                with pytest.raises(grpc.aio.AioRpcError) as raised:
                    await renew(pb.RenewRequest(node_id=node_id, csr=csr), timeout=10)
                assert raised.value.code().name == code
            async with Edge(lambda: world.credentials).channel(world.address) as own:
                await ControlStub(own).Remove(
                    pb.RemoveRequest(kind="node", reference=holder.id, force=True), timeout=10
                )
            with pytest.raises(grpc.aio.AioRpcError, match="not a member"):
                await renew(pb.RenewRequest(node_id=holder.id, csr=make_request(key)), timeout=10)


async def test_no_answer_and_no_object_of_the_api_holds_the_authoritys_key(tmp_path: Path) -> None:
    async with a_world(tmp_path) as world, Edge(lambda: world.credentials).channel(world.address) as channel:
        stub = ControlStub(channel)
        for kind in ("authority", "resting_address"):
            with pytest.raises(grpc.aio.AioRpcError, match="there is no kind"):
                await stub.List(pb.ListRequest(kind=kind), timeout=10)
        said = (await stub.GetAuthority(pb.GetAuthorityRequest(), timeout=10)).SerializeToString()
        assert b"BEGIN CERTIFICATE" in said
        assert b"PRIVATE" not in said
