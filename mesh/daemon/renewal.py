"""Keeps the certificate of this node good: in time, for the role it has now, and under the root the cluster has now.

One task, `run`. It asks the managers with the certificate it has; where that is refused or of no use any more (it has
expired, or the root was changed while this node was off), it goes to the door for newcomers, believes the managers by
the roots it knew, and proves that it is a member by its key and its secret.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable

import grpc

from control.ca.disk import CredentialsError
from control.ca.greeting import BadFrame, enrolment_address
from control.ca.root import CaError
from control.ca.schedule import retry_delay_s
from control.rpc import control_pb2 as pb
from control.rpc.control_pb2_grpc import MembershipStub
from control.server.edge import Edge
from control.server.enrolment import enrol
from control.server.refusal import Refusal
from mesh.daemon.identity import Identity
from mesh.daemon.papers import Papers

log = logging.getLogger(__name__)

ASK_TIMEOUT_S = 25.0
# Looked at this often even if nothing is due: clocks are set, machines sleep, managers are lost.
LOOK_S = 2.0
# A node without a session for so long may have a certificate that nobody believes any more: it tries to get another,
# then more and more rarely, since most often it is the managers that are away.
LOST_FIRST_S, LOST_MAX_S = 4.0, 120.0
# Nodes that are asked at once to renew do so over this time.
SPREAD_S = 3.0


class Renewal:
    """See the module. `identity` and `managers` as they are when asked."""

    def __init__(
        self,
        papers: Papers,
        edge: Edge,
        identity: Callable[[], Identity],
        managers: Callable[[], tuple[str, ...]],
        connected: Callable[[], bool],
        random_source: random.Random,
    ) -> None:
        self._connected = connected
        self._lost_at: float | None = None
        self._lost_wait_s = LOST_FIRST_S
        self._papers, self._edge, self._identity, self._managers = papers, edge, identity, managers
        self._random = random_source
        self._news = asyncio.Event()
        self._kept = asyncio.Event()
        self._asked = False
        self.error = ""  # why there is no better certificate, if there should be one

    def reconsider(self, *, asked: bool = False) -> None:
        """The role may have changed; `asked`: the managers want this node to renew."""
        self._asked = self._asked or asked
        self._news.set()

    async def until_role(self, role: str) -> None:
        """Wait until the certificate is one for `role`."""
        while not self._fits(role):
            self.reconsider()
            self._kept.clear()
            await self._kept.wait()

    async def run(self) -> None:
        """Until cancelled."""
        attempts, fraction = 0, self._random.random()
        while True:
            due_s = self._papers.renew_in_s(fraction)
            if self._asked and self._fits(self._identity().role):
                await asyncio.sleep(self._random.uniform(0, SPREAD_S))
            if due_s <= 0 or self._asked or not self._fits(self._identity().role) or self._is_lost():
                if await self._renew():
                    attempts, fraction, self._asked = 0, self._random.random(), False
                    self._kept.set()
                else:
                    attempts += 1
                    await asyncio.sleep(retry_delay_s(attempts - 1, self._random.random()))
                continue
            try:
                async with asyncio.timeout(min(due_s, LOOK_S)):
                    await self._news.wait()
            except TimeoutError:
                pass
            self._news.clear()

    def _is_lost(self) -> bool:
        """Whether there has been no session for so long that another certificate should be tried."""
        now_s = asyncio.get_running_loop().time()
        if self._connected():
            self._lost_at, self._lost_wait_s = None, LOST_FIRST_S
        elif self._lost_at is None:
            self._lost_at = now_s
        elif now_s - self._lost_at >= self._lost_wait_s:
            self._lost_at, self._lost_wait_s = now_s, min(2 * self._lost_wait_s, LOST_MAX_S)
            return True
        return False

    def _fits(self, role: str) -> bool:
        holder = self._papers.holder
        return holder is not None and holder.role == role

    async def _renew(self) -> bool:
        try:
            reply = await self._ask(await self._papers.request())
            await self._papers.keep(reply.certificate, reply.roots)
        except (Refusal, CaError, CredentialsError, BadFrame) as error:
            reason = str(error)
        except (OSError, EOFError) as error:
            reason = f"no manager answers: {getattr(error, 'strerror', None) or error}"
        else:
            self.error = ""
            log.info("has another certificate", extra={"holder": str(self._papers.holder)})
            return True
        if reason != self.error:
            log.warning("cannot renew the certificate of this node", extra={"reason": reason})
        self.error = reason
        return False

    async def _ask(self, csr: bytes) -> pb.RenewReply:
        """The first manager that gives one. Raises what the last attempt failed with."""
        identity = self._identity()
        request, failure = pb.RenewRequest(node_id=identity.node_id, csr=csr), ""
        for address in self._managers() if not self._papers.expired else ():
            try:
                async with self._edge.channel(address) as channel:
                    return await MembershipStub(channel).Renew(request, timeout=ASK_TIMEOUT_S)
            except grpc.aio.AioRpcError as error:
                failure = f"{address}: {error.details()}"
        again = pb.JoinRequest(node_id=identity.node_id, secret=identity.secret, csr=csr)
        last: Exception = Refusal("UNAVAILABLE", failure or "no manager is known")
        for address in self._managers():
            try:
                door = enrolment_address(address)
                _, answer = await enrol(door, self._papers.by_roots(), again.SerializeToString())
                reply = pb.JoinReply.FromString(answer)
                return pb.RenewReply(certificate=reply.certificate, roots=reply.roots)
            except (Refusal, CaError, BadFrame, OSError, EOFError) as error:
                last = error
        raise last
