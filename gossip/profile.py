"""Timing of the protocol: three profiles and the formulas that scale with the cluster. Pure.

Constants and formulas are those of memberlist's three default configurations, so that a mixed cluster agrees on them;
what differs is said at the constant. N is the number of members that are not dead or left, this node included.
"""

from __future__ import annotations

import math

import msgspec

# Times that a broadcast is sent by each node, at least. The formula gives 4 for 5 to 9 nodes, and 4 % of Serf's events
# then miss somebody (up to 26 s late, measured); with 12 none of 200 did, at any loss up to 10 %. From 100 nodes on 12
# are too few again: of 500 one is missed by 0.6 % of broadcasts, 5.6 % at a loss of a quarter, with 16 by none in 200
# (docs/decisions/0024).
RETRANSMIT_FLOOR = 12
RETRANSMIT_MORE, RETRANSMIT_MORE_FROM = 4, 100
# More loss than this is no loss but a closed door, against which more sends do not help: at most twice as many.
LOSS_MAX = 0.5
# Probes begun in the time that one may take. memberlist begins one; with two a death is suspected 0.2 to 0.9 s sooner
# at 5 to 40 nodes (docs/decisions/0024), for one ping more a second. What a probe is given is as before.
PROBES_PER_INTERVAL = 2
# What was never told is told this many times sooner than the next turn of gossip is due. Each message is still sent so
# many times and no more, so this costs packets, not messages.
FRESH_SHARE = 4
# Push/pull is done less often in larger clusters: doubled for each doubling above this many.
PUSH_PULL_SCALE_FROM = 32


class Profile(msgspec.Struct, frozen=True):
    """Timing of one node. All members of a cluster should use the same one."""

    probe_interval_s: float = 1.0
    probe_timeout_s: float = 0.5
    indirect_checks: int = 3
    suspicion_mult: int = 4
    suspicion_max_mult: int = 6
    retransmit_mult: int = 4
    retransmit_floor: int = RETRANSMIT_FLOOR
    gossip_interval_s: float = 0.2
    gossip_nodes: int = 3
    fresh_share: int = FRESH_SHARE
    gossip_to_dead_s: float = 30.0
    push_pull_interval_s: float = 30.0
    stream_timeout_s: float = 10.0
    awareness_max: int = 8
    reconnect_interval_s: float = 30.0  # tries to reach somebody who failed, and the seeds (Serf's ReconnectInterval)
    reconnect_timeout_s: float = 24 * 3600.0  # after which only the seeds are tried (Serf's ReconnectTimeout)

    @property
    def probe_period_s(self) -> float:
        """From the beginning of a probe that succeeds to that of the next."""
        return self.probe_interval_s / PROBES_PER_INTERVAL

    @property
    def fresh_interval_s(self) -> float:
        """Between two turns of gossip, when there is news."""
        return self.gossip_interval_s / self.fresh_share

    def suspicion_min_s(self, nodes: int) -> float:
        """How long a suspicion lasts when enough others confirm it."""
        return self.suspicion_mult * max(1.0, math.log10(max(1, nodes))) * self.probe_interval_s

    def retransmits(self, nodes: int, loss: float = 0.0) -> int:
        """How many times each node sends a broadcast: so often that as many arrive as if no packets were lost."""
        floor = self.retransmit_floor
        if floor and nodes >= RETRANSMIT_MORE_FROM:
            floor += RETRANSMIT_MORE
        sends = max(floor, self.retransmit_mult * math.ceil(math.log10(nodes + 1)))
        return round(sends / (1.0 - min(loss, LOSS_MAX)))

    def push_pull_s(self, nodes: int) -> float:
        """Time between push/pulls with somebody at random."""
        if nodes <= PUSH_PULL_SCALE_FROM:
            return self.push_pull_interval_s
        return self.push_pull_interval_s * (math.ceil(math.log2(nodes) - math.log2(PUSH_PULL_SCALE_FROM)) + 1)


LAN = Profile()
WAN = Profile(
    probe_interval_s=5.0,
    probe_timeout_s=3.0,
    suspicion_mult=6,
    gossip_interval_s=0.5,
    gossip_nodes=4,
    gossip_to_dead_s=60.0,
    push_pull_interval_s=60.0,
    stream_timeout_s=30.0,
)
LOCAL = Profile(
    probe_timeout_s=0.2,
    indirect_checks=1,
    suspicion_mult=3,
    retransmit_mult=2,
    gossip_interval_s=0.1,
    gossip_to_dead_s=15.0,
    push_pull_interval_s=15.0,
    stream_timeout_s=1.0,
)
PROFILES = {"lan": LAN, "wan": WAN, "local": LOCAL}
