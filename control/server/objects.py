"""Objects and specs as they go over the wire (control.proto): MessagePack of the model inside protobuf. Pure."""

from __future__ import annotations

from typing import TypeVar

import msgspec

from control.model import KIND_OF, Cluster, ClusterSpec, NetworkSpec, Node, NodeSpec, Object, Service, ServiceSpec, Task
from control.registry import concealed
from control.rpc import control_pb2 as pb
from control.server.caller import shown_secrets
from control.server.refusal import Refusal

S = TypeVar("S", NetworkSpec, ServiceSpec, NodeSpec, ClusterSpec)

_encoder = msgspec.msgpack.Encoder()


def to_wire(obj: Object) -> pb.Object:
    """An object for whoever makes the call: without what proves a node's identity, and what only some may see."""
    if isinstance(obj, Node):
        obj = msgspec.structs.replace(obj, secret_digest="")
    elif isinstance(obj, Cluster):
        obj = msgspec.structs.replace(obj, unlock_key="")
        if not shown_secrets():
            obj = msgspec.structs.replace(obj, worker_token="", manager_token="", gossip_keys=())
    elif isinstance(obj, Service | Task):
        obj = concealed(obj)
    return pb.Object(kind=KIND_OF[type(obj)], value=_encoder.encode(obj))


def spec_from_wire(data: bytes, cls: type[S]) -> S:
    """The spec in a request. Raises Refusal."""
    try:
        return msgspec.msgpack.decode(data, type=cls)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise Refusal("INVALID_ARGUMENT", f"unreadable {cls.__name__}: {error}") from error
