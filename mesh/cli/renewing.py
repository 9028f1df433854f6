"""Another certificate for a context, at the door of a manager: by the key alone, with a manager that is believed."""

from __future__ import annotations

import msgspec

from control.ca.greeting import BadFrame, enrolment_address
from control.ca.requests import make_request
from control.ca.root import CaError, load_certificates, load_key
from control.ca.verify import verify_manager
from control.rpc import control_pb2 as pb
from control.server.enrolment import enrol
from control.server.refusal import Refusal
from mesh.cli.contexts import ClusterContext
from mesh.cli.errors import OF_STATUS, ExitCode, Failure


async def renewed(context: ClusterContext, now_s: float) -> ClusterContext:
    """The context with another certificate, and with the roots and managers of now. Raises Failure.

    Managers are believed by the roots of the context, so it works as long as the root that it knows has signed the one
    that is used now: after one change of the root, not after two.
    """
    try:
        roots, key = load_certificates(context.roots.encode()), load_key(context.key.encode())
    except CaError as error:
        raise Failure(f'context "{context.name}" cannot be used: {error}') from error
    request = pb.JoinRequest(user=context.user, csr=make_request(key)).SerializeToString()
    reasons = []
    for address in context.managers:
        try:
            _, answer = await enrol(
                enrolment_address(address), lambda leaf, chain, _: verify_manager(leaf, chain, roots, now_s), request
            )
        except (CaError, OSError, EOFError, BadFrame, ValueError) as error:
            reasons.append(f"{address}: {getattr(error, 'strerror', None) or error or 'no answer'}")
            continue
        except Refusal as refusal:
            if refusal.code == "UNAVAILABLE":
                reasons.append(f"{address}: {refusal}")
                continue
            raise Failure(str(refusal), OF_STATUS.get(refusal.code, ExitCode.FAILED)) from refusal
        reply = pb.JoinReply.FromString(answer)
        return msgspec.structs.replace(context, roots=reply.roots.decode(), certificate=reply.certificate.decode())
    raise Failure(f'no manager of context "{context.name}" answers: {"; ".join(reasons)}', ExitCode.UNAVAILABLE)
