"""The leader's loop over the managers: who takes part in the agreement follows from the roles of the nodes.

One asyncio task, `run`, for one term. Whoever is a member and is no manager any more is taken out, one at a time; this
manager itself first hands the leadership over, and its successor does it. Who is to be a manager comes by itself
(`admit`, for Membership.Enlist) and is promoted by the backend when it has caught up.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from typing import Protocol

from control.model import Node
from control.quorum.members import QuorumStatus
from control.quorum.seat import Seat
from control.store.backend import Member
from control.store.errors import NotLeader, OutcomeUnknown, Refused, StoreClosed
from control.store.store import Store

log = logging.getLogger(__name__)

# Another look, also if nothing changes: a refused removal may be possible now.
LOOK_S = 5.0
RETRY_S = 1.0
# A manager that was heard within this time answers: an election's shortest time.
HEARD_S = 1.5


class Electorate(Protocol):
    """What is asked of a backend whose managers vote (`control.quorum.backend.RaftBackend`)."""

    async def add_learner(self, node_id: str, address: str = "", *, standby: bool = False) -> Seat: ...
    async def remove(self, node_id: str) -> None: ...
    async def readdress(self, node_id: str, address: str) -> None: ...
    async def transfer(self, node_id: str = "") -> None: ...
    def set_peers(self, addresses: Mapping[str, str]) -> None: ...
    def members(self) -> tuple[Member, ...]: ...
    def quorum(self) -> QuorumStatus | None: ...


class Roll:
    """See the module. `electorate` is None where something else agrees (etcd): then there is nothing to keep."""

    def __init__(self, store: Store, electorate: Electorate | None, node_id: str) -> None:
        self._store, self.electorate, self._node_id = store, electorate, node_id

    @property
    def votes(self) -> bool:
        """Whether the managers themselves agree, so that losing some matters."""
        return self.electorate is not None

    def answering(self) -> frozenset[str]:
        """Node ids of managers that are heard by this one, which leads."""
        status = self.electorate.quorum() if self.electorate is not None else None
        if status is None:
            return frozenset(member.node_id for member in self._store.members())
        return frozenset(m.node_id for m in status.members if m.node_id == self._node_id or m.silent_s < HEARD_S)

    def recoveries(self) -> int:
        """How often the cluster was recovered without its quorum."""
        status = self.electorate.quorum() if self.electorate is not None else None
        return status.recoveries if status is not None else 0

    def meet(self, addresses: Mapping[str, str]) -> None:
        """See `Manager.meet`."""
        if self.electorate is not None:
            self.electorate.set_peers(addresses)

    async def admit(self, node_id: str, address: str, *, enrolled: bool) -> Seat | None:
        """A manager listens at `address`; its seat, if it has none or that is worth nothing. Raises StoreError."""
        if self.electorate is None:
            return None
        status = self.electorate.quorum()
        member = next((m for m in status.members if m.node_id == node_id), None) if status is not None else None
        if member is None or not (enrolled or member.voter):
            return await self.electorate.add_learner(node_id, address)
        if not enrolled:  # it has lost its disk: its former self must go first
            await self.electorate.remove(node_id)
            return await self.electorate.add_learner(node_id, address)
        if member.address != address:
            await self.electorate.readdress(node_id, address)
        return None

    async def run(self, term: int) -> None:
        """Until cancelled, or with NotLeader."""
        watcher = self._store.watch()
        while True:
            pause_s = await self._tidy()
            try:
                async with asyncio.timeout(pause_s):
                    await anext(watcher)
            except TimeoutError:
                pass
            except StopAsyncIteration as error:
                raise StoreClosed("the store is closed: this manager is stopping") from error
            self._check_term(term)

    def _check_term(self, term: int) -> None:
        if self._store.term != term:
            raise NotLeader(f"the leadership of term {term} is over")

    async def _tidy(self) -> float:
        """Take one out who is no manager; how long to wait then."""
        leaving = self._leaving() if self.electorate is not None else ""
        if not leaving or self.electorate is None:
            return LOOK_S
        try:
            if leaving == self._node_id:
                log.info("hands the leadership over: this node is to be no manager any more")
                await self.electorate.transfer()
            else:
                await self.electorate.remove(leaving)
                log.info("took a manager out", extra={"node": leaving})
        except (Refused, OutcomeUnknown) as error:
            log.warning("cannot take a manager out yet", extra={"node": leaving, "reason": str(error)})
            return RETRY_S
        return 0.0

    def _leaving(self) -> str:
        """A member that is no manager any more; the leader itself last."""
        view = self._store.view()
        leaving = sorted(m.node_id for m in self._store.members() if not _is_manager(view.get(Node, m.node_id)))
        return next((node_id for node_id in leaving if node_id != self._node_id), leaving[0] if leaving else "")


def _is_manager(node: Node | None) -> bool:
    return node is not None and node.spec.role == "manager"
