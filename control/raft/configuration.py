"""Who takes part in the agreement, and how that may change: values.

**Identity.** A *member* is one life of a node's disk: its id is "<node id>.<n>", n counting all who ever joined. A node
that lost its disk, or was removed, comes back as another member; its former self never votes again (case 24), and the
members that were removed need no list: whoever has a number that was given away and is not here is one of them.
Addresses are hints and have no part in the agreement.

**One at a time.** A change adds or removes at most one voter, so that any majority before it and any after it share a
member (thesis 4.1); the leader sees to the rest (`control.raft.leader`): no second change before the first is applied,
none before an entry of its own term is committed. A newcomer is a learner first.
"""

from __future__ import annotations

import msgspec

# An odd handful; more only slows agreement down. Also bounds what a heartbeat round costs.
MEMBERS_MAX = 15


class Member(msgspec.Struct, frozen=True, array_like=True):
    """One life of one node."""

    id: str
    voter: bool
    standby: bool = False  # a learner that is not promoted by itself
    address: str = ""  # host:port where it was last known to listen


class Configuration(msgspec.Struct, frozen=True, array_like=True):
    """All members. `joined` numbers them; `epoch` grows when a cluster is recovered without its quorum."""

    members: tuple[Member, ...] = ()
    joined: int = 0
    epoch: int = 0

    @property
    def voters(self) -> tuple[str, ...]:
        """Their ids."""
        return tuple(member.id for member in self.members if member.voter)

    def find(self, member_id: str) -> Member | None:
        """By id."""
        return next((member for member in self.members if member.id == member_id), None)

    def of_node(self, node_id: str) -> Member | None:
        """By node."""
        return next((member for member in self.members if node_of(member.id) == node_id), None)

    def removed(self, member_id: str) -> bool:
        """Whether it was a member once and is none now. False for those that this configuration does not know yet."""
        return number_of(member_id) <= self.joined and self.find(member_id) is None


# --- changes ----------------------------------------------------------------------------------------------------------


class AddLearner(msgspec.Struct, frozen=True, array_like=True, tag="add"):
    """A node joins, or joins anew as another learner than before."""

    node_id: str
    address: str = ""
    standby: bool = False


class Promote(msgspec.Struct, frozen=True, array_like=True, tag="promote"):
    """A learner becomes a voter."""

    member_id: str


class Demote(msgspec.Struct, frozen=True, array_like=True, tag="demote"):
    """A voter becomes a learner, and stays one."""

    member_id: str


class Remove(msgspec.Struct, frozen=True, array_like=True, tag="remove"):
    """A member leaves for good."""

    member_id: str


class Readdress(msgspec.Struct, frozen=True, array_like=True, tag="readdress"):
    """A member listens elsewhere."""

    member_id: str
    address: str


class Reset(msgspec.Struct, frozen=True, array_like=True, tag="reset"):
    """The first entry of a cluster, or of a new epoch; never proposed."""

    configuration: Configuration


ConfChange = AddLearner | Promote | Demote | Remove | Readdress | Reset


def apply_change(configuration: Configuration, change: ConfChange) -> Configuration:
    """What it is afterwards. A change that has no object any more changes nothing: all members decide alike."""
    members = configuration.members
    match change:
        case AddLearner(node_id, address, standby):
            kept = tuple(m for m in members if node_of(m.id) != node_id)
            joined = configuration.joined + 1
            member = Member(f"{node_id}.{joined}", voter=False, standby=standby, address=address)
            return Configuration((*kept, member), joined, configuration.epoch)
        case Promote(member_id):
            members = tuple(Member(m.id, True, False, m.address) if m.id == member_id else m for m in members)
        case Demote(member_id):
            members = tuple(Member(m.id, False, True, m.address) if m.id == member_id else m for m in members)
        case Remove(member_id):
            members = tuple(m for m in members if m.id != member_id)
        case Readdress(member_id, address):
            members = tuple(Member(m.id, m.voter, m.standby, address) if m.id == member_id else m for m in members)
        case Reset(new):
            return new
    return Configuration(members, configuration.joined, configuration.epoch)


def mistake(configuration: Configuration, change: ConfChange) -> str:
    """Why a change may not be proposed, in one sentence; "" if it may."""
    match change:
        case AddLearner(node_id):
            member = configuration.of_node(node_id)
            if member is not None and member.voter:
                return f"cannot add node {node_id}: it is a voter already, as {member.id}; remove that first"
            if member is None and len(configuration.members) >= MEMBERS_MAX:
                return f"cannot add node {node_id}: there are {MEMBERS_MAX} managers already"
        case Promote(member_id) | Demote(member_id) | Remove(member_id) | Readdress(member_id):
            member = configuration.find(member_id)
            if member is None:
                return f"there is no manager {member_id}"
            if isinstance(change, Promote) and member.voter:
                return f"manager {member_id} is a voter already"
            if isinstance(change, Demote) and not member.voter:
                return f"manager {member_id} is no voter"
            if isinstance(change, Demote | Remove) and configuration.voters == (member_id,):
                return f"manager {member_id} is the only voter: nobody could agree on anything without it"
        case Reset():
            return "a configuration is reset only offline"
    return ""


def unseats(change: ConfChange, member_id: str) -> bool:
    """Whether it takes the vote of that member."""
    return isinstance(change, Demote | Remove) and change.member_id == member_id


# --- ids and bytes ----------------------------------------------------------------------------------------------------


def node_of(member_id: str) -> str:
    """The node whose member it is."""
    return member_id.rpartition(".")[0]


def number_of(member_id: str) -> int:
    """Which of all that ever joined. A foreign id counts as one that never did."""
    number = member_id.rpartition(".")[2]
    return int(number) if number.isdecimal() else 1 << 62


def first_configuration(node_id: str, address: str = "") -> Configuration:
    """Of a new cluster: one voter."""
    return Configuration((Member(f"{node_id}.1", voter=True, address=address),), joined=1)


_encoder = msgspec.msgpack.Encoder()
_changes: msgspec.msgpack.Decoder[ConfChange] = msgspec.msgpack.Decoder(ConfChange)
_configurations = msgspec.msgpack.Decoder(Configuration)


def encode(value: ConfChange | Configuration) -> bytes:
    """The data of an entry, or of a snapshot's meta."""
    return _encoder.encode(value)


def decode_change(data: bytes) -> ConfChange:
    """Raises msgspec.DecodeError."""
    return _changes.decode(data)


def decode_configuration(data: bytes) -> Configuration:
    """Raises msgspec.DecodeError."""
    return _configurations.decode(data)
