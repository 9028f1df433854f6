"""How a machine gets into a cluster: asking managers at their doors, one after the other, or with an authority of its
user's. No tasks."""

from __future__ import annotations

from control.ca.external import External, check_url
from control.ca.greeting import BadFrame, enrolment_address
from control.ca.root import CaError, Root, load_root
from control.ca.verify import check_root
from control.rpc import control_pb2 as pb
from control.server.enrolment import Believe, enrol
from control.server.refusal import Refusal
from mesh.daemon.local import StateError


def brought_root(request: pb.InitRequest, now_s: float) -> Root | None:
    """An authority that the user of `mesh init` brings; None: the cluster makes its own. Raises CaError."""
    if request.external_ca or not (request.ca_certificate or request.ca_key):
        return None
    root = load_root(request.ca_certificate, request.ca_key, now_s)
    check_root(root, now_s)
    return root


def external_ca(request: pb.InitRequest) -> External | None:
    """A CA elsewhere that is to sign; None: the cluster signs itself. Raises CaError."""
    if not request.external_ca:
        return None
    if mistake := check_url(request.external_ca):
        raise CaError(mistake)
    return External(request.external_ca, request.ca_certificate)


async def ask_to_join(managers: list[str], believe: Believe, request: pb.JoinRequest) -> pb.JoinReply:
    """The first manager's answer. Nothing is said to one that is not believed. Raises StateError, Refusal."""
    if not managers:
        raise StateError("say which manager to join: mesh join --token TOKEN HOST:PORT")
    failure = ""
    for address in managers:
        try:
            _, answer = await enrol(enrolment_address(address), believe, request.SerializeToString())
            return pb.JoinReply.FromString(answer)
        except CaError as error:
            raise StateError(f"cannot join at {address}: {error}") from error
        except Refusal as refusal:
            if refusal.code != "UNAVAILABLE":
                raise
            failure = str(refusal)
        except (OSError, EOFError, BadFrame) as error:
            failure = getattr(error, "strerror", None) or str(error) or "it does not answer in time"
    raise StateError(f"no manager answers at {', '.join(managers)}: {failure}")
