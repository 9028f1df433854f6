"""Networks for agents without sockets: a lone node, for tests of what is above."""

from __future__ import annotations

import random
from collections.abc import Mapping

from gossip.agent import AgentSettings
from gossip.delegate import Delegate, Membership
from gossip.keyring import KeyRing
from tests.gossip.serf.membership import FakeMembership


class LoneNetwork:
    """Satisfies gossip.agent.Network; nobody is there."""

    def __init__(self, settings: AgentSettings, delegate: Delegate) -> None:
        self.fake = FakeMembership(settings.name, settings.address.port, delegate.node_meta())
        self.open = False
        self.silent = False

    @property
    def membership(self) -> Membership:
        return self.fake

    async def start(self) -> None:
        self.open = True

    async def close(self) -> None:
        self.open = False

    def silence(self) -> None:
        self.silent = True

    def poke(self) -> None:
        pass

    def stats(self) -> Mapping[str, str]:
        return {"health_score": "0"}


def lone(settings: AgentSettings, delegate: Delegate, ring: KeyRing, source: random.Random) -> LoneNetwork:
    del ring, source
    return LoneNetwork(settings, delegate)
