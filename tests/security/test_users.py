"""People with certificates, at a whole manager: what each role may, and that whoever is removed is nobody at once."""

from __future__ import annotations

from pathlib import Path

import grpc
import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from control.access import Caller
from control.ca.contexts import Credentials
from control.ca.names import UserRole, holder_in
from control.ca.requests import make_request
from control.ca.root import DAY_S, key_pem, load_certificates, load_key, new_key
from control.model import ClusterSpec, NetworkSpec, User
from control.rpc import control_pb2 as pb
from control.rpc.control_pb2_grpc import ControlStub
from control.server.certificates import standing
from control.server.edge import Edge
from control.server.refusal import Refusal
from tests.security.world import World, a_world, wall_ms


async def add(
    world: World, name: str, role: str, *, by: Credentials | None = None, life_s: float = 0.0
) -> tuple[Credentials, pb.UserReply]:
    key, mine = new_key(), by or world.credentials
    async with Edge(lambda: mine).channel(world.address) as channel:
        request = pb.AddUserRequest(name=name, role=role, csr=make_request(key), life_s=life_s)
        reply = await ControlStub(channel).AddUser(request, timeout=10)
    return Credentials(key_pem(key), reply.certificate, reply.roots), reply


async def refused(call: object, **more: object) -> tuple[str, str]:
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await call  # type: ignore[misc]
    return raised.value.code().name, raised.value.details() or ""


MAY: dict[UserRole, set[str]] = {
    "viewer": {"List"},
    "operator": {"List", "CreateNetwork"},
    "admin": {"List", "CreateNetwork", "UpdateCluster", "RotateToken", "AddUser"},
}


@pytest.mark.parametrize("role", MAY)
async def test_what_a_user_may_do(tmp_path: Path, role: UserRole) -> None:
    async with a_world(tmp_path) as world:
        mine, reply = await add(world, "alice", role)
        holder = holder_in(load_certificates(reply.certificate)[0])
        assert holder is not None
        assert (holder.cluster_id, holder.role, holder.id) == (world.made.cluster_id, role, "alice")
        assert list(reply.managers) == [world.address]
        done, codes, csr = set(), set(), make_request(new_key())
        async with Edge(lambda: mine).channel(world.address) as channel:
            stub = ControlStub(channel)
            for name, request in (
                ("List", pb.ListRequest(kind="node")),
                ("CreateNetwork", pb.CreateRequest(spec=msgspec.msgpack.encode(NetworkSpec(name="web")))),
                ("UpdateCluster", pb.UpdateRequest(spec=msgspec.msgpack.encode(ClusterSpec()))),
                ("RotateToken", pb.RotateTokenRequest(role="worker")),
                ("AddUser", pb.AddUserRequest(name="bob", role="admin", csr=csr)),
            ):
                try:
                    await getattr(stub, name)(request, timeout=10)
                    done.add(name)
                except grpc.aio.AioRpcError as error:
                    codes.add(error.code().name)
        assert done == MAY[role]
        assert codes <= {"PERMISSION_DENIED"}
        for name in done - {"List"}:
            assert f'"call":"Control/{name}","who":"user alice ({role})"' in world.audit.read_text()


async def test_a_removed_user_is_refused_on_the_connection_that_it_has(tmp_path: Path) -> None:
    async with a_world(tmp_path) as world:
        mine, _ = await add(world, "alice", "admin")
        async with Edge(lambda: mine).channel(world.address) as channel:
            stub, everything = ControlStub(channel), pb.ListRequest(kind="user")
            assert len((await stub.List(everything, timeout=10)).objects) == 1
            async with Edge(lambda: world.credentials).channel(world.address) as own:
                await ControlStub(own).Remove(pb.RemoveRequest(kind="user", reference="alice"), timeout=10)
            code, why = await refused(stub.List(everything, timeout=10))
            assert (code, why) == ("UNAUTHENTICATED", "user alice (admin) is no user of this cluster (any more)")
            # Another of the same name does not bring the old certificate back.
            await add(world, "alice", "admin")
            assert (await refused(stub.List(everything, timeout=10)))[0] == "UNAUTHENTICATED"


async def test_a_user_renews_by_its_key_and_not_beyond_its_end(tmp_path: Path) -> None:
    async with a_world(tmp_path) as world:
        mine, first = await add(world, "alice", "viewer", life_s=DAY_S)
        before = load_certificates(first.certificate)[0]
        # As after a change of the root: the certificate that the user has is not shown.
        after = load_certificates((await renewed(world, "alice", _key(mine))).certificate)[0]
        assert holder_in(after) == holder_in(before)
        assert after.serial_number != before.serial_number
        assert after.not_valid_after_utc == before.not_valid_after_utc
        assert '"call":"Membership/Join","who":"user alice"' in world.audit.read_text()
        for name, key in (("alice", new_key()), ("bob", _key(mine))):
            with pytest.raises(Refusal, match=f'there is no user "{name}" with this key') as raised:
                await renewed(world, name, key)
            assert raised.value.code == "UNAUTHENTICATED"


async def renewed(world: World, name: str, key: ec.EllipticCurvePrivateKey) -> pb.JoinReply:
    request = pb.JoinRequest(user=name, csr=make_request(key))
    return pb.JoinReply.FromString(await world.ask(request.SerializeToString(), ""))


def _key(credentials: Credentials) -> ec.EllipticCurvePrivateKey:
    return load_key(credentials.key)


BAD: list[tuple[dict[str, object], str, str]] = [
    ({"name": "Alice"}, "INVALID_ARGUMENT", "is no name for a user"),
    ({"name": "a/../b"}, "INVALID_ARGUMENT", "is no name for a user"),
    ({"name": ""}, "INVALID_ARGUMENT", "is no name for a user"),
    ({"role": "manager"}, "INVALID_ARGUMENT", "there is no role"),
    ({"role": "worker"}, "INVALID_ARGUMENT", "there is no role"),
    ({"csr": b"junk"}, "INVALID_ARGUMENT", "cannot be read"),
    ({"life_s": 60.0}, "INVALID_ARGUMENT", "between an hour and ten years"),
    ({"life_s": float("nan")}, "INVALID_ARGUMENT", "between an hour and ten years"),
    ({"life_s": 1e12}, "INVALID_ARGUMENT", "between an hour and ten years"),
    ({"name": "taken"}, "ALREADY_EXISTS", "already exists"),
]


async def test_users_that_cannot_be(tmp_path: Path) -> None:
    async with a_world(tmp_path) as world, Edge(lambda: world.credentials).channel(world.address) as channel:
        await add(world, "taken", "viewer")
        for fields, code, why in BAD:
            asked = {"name": "alice", "role": "viewer", "csr": make_request(new_key()), **fields}
            found = await refused(ControlStub(channel).AddUser(pb.AddUserRequest(**asked), timeout=10))  # type: ignore[arg-type]
            assert found[0] == code, fields
            assert why in found[1]


async def test_a_certificate_that_has_ended_counts_no_more_on_an_old_connection(tmp_path: Path) -> None:
    async with a_world(tmp_path) as world:
        mine, _ = await add(world, "alice", "viewer", life_s=DAY_S)
        view, who = world.manager.store.view(), Caller(holder_in(mine.certificate))
        user = view.get(User, "alice")
        assert user is not None
        assert abs(user.expires_ms - wall_ms() - DAY_S * 1000) < 600_000
        assert standing(view, who, mine.chain, user.expires_ms / 1000 - 1) == who
        assert (
            standing(view, who, mine.chain, user.expires_ms / 1000)
            == "the certificate of user alice (viewer) has expired"
        )
