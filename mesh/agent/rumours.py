"""What gossip has said, kept as `compile` wants it: who lives, and what nodes say of their own tasks. Pure.

Members are known to gossip by name and to the managers by id: a member that is a node carries its id in the tag
NODE_TAG. Others are strangers: machines that run a stock Serf agent. A shared gossip key gives no identity: what is
said here only qualifies what the managers have placed on the node that says it. Where a manager says that it answers
(MANAGER_TAG) is a hint for who does not know any other place; who answers there has to show its certificate.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import ip_address

from gossip.endpoints import EndpointChange, Health, Snapshot, task_key
from gossip.serf.roster import Kind, MemberChange, SerfMember, Status
from mesh.agent.view import Liveness, Rumours, Said, Told

NODE_TAG = "_node"
MANAGER_TAG = "_manager"  # IP:port of its API
# Places to try besides those that managers have named: more than any cluster has managers.
MANAGERS_MAX = 16
# Weights of gossip are out of 100 as usual; balancers take small numbers.
USUAL_WEIGHT = 100
# Tasks remembered as gone, for each owner: those of some minutes on a busy node. The managers know them by then.
GONE_MAX = 1024
STRANGERS_MAX = 4096
_LABEL = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")

_SERVING: Mapping[Health, Told] = {
    Health.READY: Told("ready"),
    Health.DRAINING: Told("draining"),
    Health.UNHEALTHY: Told("hidden"),
}
_GONE = Told("hidden")


@dataclass(frozen=True, slots=True)
class Owner:
    """What one node says. Its tasks that it has spoken of and speaks of no more are gone."""

    snapshot: Snapshot
    gone: Mapping[bytes, None]

    def get(self, task_id: str) -> Told | None:
        """See `Said`."""
        state = self.snapshot.state_of(task_id)
        if state is not None:
            return _SERVING[state.health] if state.weight else Told("draining")
        return _GONE if task_key(task_id) in self.gone else None


@dataclass(slots=True)
class RumourBook:
    """All that was heard, by the members' names."""

    _members: dict[str, SerfMember] = field(default_factory=dict)
    _owners: dict[str, Owner] = field(default_factory=dict)

    def receive(self, event: object) -> bool:
        """An event of gossip's. Whether anything that matters has changed."""
        match event:
            case MemberChange(kind=Kind.REAP, member=member):
                return self._members.pop(member.name, None) is not None
            case MemberChange(member=member):
                before = self._members.get(member.name)
                self._members[member.name] = member
                return before is None or _matters(before) != _matters(member)
            case EndpointChange(owner=owner, before=before, after=after):
                return self._speak(owner, before, after)
            case _:
                return False

    def _speak(self, owner: str, before: Snapshot | None, after: Snapshot | None) -> bool:
        if after is None:
            return self._owners.pop(owner, None) is not None
        known = self._owners.get(owner)
        gone = dict(known.gone) if known is not None else {}
        gone.update(dict.fromkeys(key for key in (before.tasks if before else ()) if key not in after.tasks))
        kept = [key for key in gone if key not in after.tasks][-GONE_MAX:]
        self._owners[owner] = Owner(after, dict.fromkeys(kept))
        return True

    def managers(self) -> tuple[str, ...]:
        """Where managers that are alive say that they answer, IP:port."""
        alive = (member for member in self._members.values() if _liveness(member) == "alive")
        said = {member.tags.get(MANAGER_TAG, "") for member in alive if member.tags.get(NODE_TAG)}
        return tuple(sorted(address for address in said if _is_address(address))[:MANAGERS_MAX])

    def rumours(self) -> Rumours:
        """As `compile` wants it."""
        nodes: dict[str, Liveness] = {}
        tasks: dict[str, Said] = {}
        strangers: dict[str, str] = {}
        for name, member in self._members.items():
            node_id = member.tags.get(NODE_TAG, "")
            if node_id:
                nodes[node_id] = _liveness(member)
                if name in self._owners:
                    tasks[node_id] = self._owners[name]
            elif member.status is Status.ALIVE and _LABEL.fullmatch(name) and len(strangers) < STRANGERS_MAX:
                strangers[name] = member.address.host
        return Rumours(nodes, tasks, strangers)


def _liveness(member: SerfMember) -> Liveness:
    if member.status in (Status.ALIVE, Status.LEAVING):
        return "suspect" if member.suspect or member.status is Status.LEAVING else "alive"
    return "dead"


def _is_address(text: str) -> bool:
    host, _, port = text.rpartition(":")
    try:
        ip_address(host.removeprefix("[").removesuffix("]"))
    except ValueError:
        return False
    return port.isascii() and port.isdigit() and 0 < int(port) < 1 << 16


def _matters(member: SerfMember) -> tuple[str, str, str]:
    return member.tags.get(NODE_TAG, ""), _liveness(member), member.address.host
