"""The network of a real agent: SWIM on sockets, as `gossip.agent` wants it."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Mapping

from gossip.agent import AgentSettings
from gossip.delegate import Address, Delegate, Membership
from gossip.keyring import KeyRing
from gossip.packet import LABEL_MAX, Envelope
from gossip.service import Service, bind
from gossip.snapshot import address_before
from gossip.swim import Swim
from gossip.swim_ports import SwimConfig, first_incarnation


class SocketNetwork:
    """Satisfies gossip.agent.Network."""

    def __init__(
        self, settings: AgentSettings, delegate: Delegate, ring: KeyRing, source: random.Random, unix_s: float
    ) -> None:
        """To be called in a running loop. `unix_s`: the time of day, which incarnations begin with."""
        label = settings.label.encode()
        if len(label) > LABEL_MAX:
            raise ValueError(f"a label takes at most {LABEL_MAX} bytes, not {len(label)}")
        self._unix_s = unix_s
        self._settings, self._delegate, self._source = settings, delegate, source
        self._envelope = Envelope(ring, label)
        self._loop = asyncio.get_running_loop()
        self._service: Service | None = None
        self._former = address_before(settings.snapshot, settings.name) if settings.snapshot is not None else None
        self._swim = self._core(settings.address.port)

    def _core(self, port: int) -> Swim:
        settings = self._settings
        told = settings.advertise or settings.address
        config = SwimConfig(
            settings.name,
            Address(told.host, told.port or port),
            first_incarnation(self._unix_s),
            settings.profile,
            settings.compression,
            former=self._former,
        )
        return Swim(config, self._delegate, self._source, self._envelope, self._loop.time())

    @property
    def membership(self) -> Membership:
        """The core; with port 0, another one once it has started."""
        return self._swim

    @property
    def swim(self) -> Swim:
        return self._swim

    async def start(self) -> None:
        """Open the sockets. Raises OSError."""
        sockets = bind(self._settings.address)
        if not self._settings.address.port:
            self._swim = self._core(sockets.port)
        self._service = Service(self._swim, self._envelope, sockets, self._loop)
        self._service.start()

    async def close(self) -> None:
        """Close them, without a word to anybody."""
        self.silence()

    def silence(self) -> None:
        """Take and send nothing any more."""
        if self._service is not None:
            self._service.close()

    def poke(self) -> None:
        """The membership was asked to send something."""
        if self._service is not None:
            self._service.turn()

    def stats(self) -> Mapping[str, str]:
        """Numbers; "degraded" names the members that only TCP or others reach."""
        swim = self._swim
        return {
            "health_score": str(swim.awareness.score),
            "members_alive": str(swim.alive_count),
            "udp": "blocked" if swim.udp_blocked else "ok",
            "degraded": ",".join(swim.degraded),
        } | {key: str(count) for key, count in sorted(swim.counts.items())}


def socket_network(settings: AgentSettings, delegate: Delegate, ring: KeyRing, source: random.Random) -> SocketNetwork:
    """A gossip.agent.MakeNetwork. To be called in a running loop."""
    return SocketNetwork(settings, delegate, ring, source, time.time_ns() / 1e9)
