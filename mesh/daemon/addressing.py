"""Which addresses of this machine its node uses: what was asked for, what is configured, or the one that there is.

Only what this machine has is taken: an address, a device's name, or "" for whichever there is (`mesh.machine`).
"""

from __future__ import annotations

import asyncio

import msgspec

from mesh import machine
from mesh.config import Config
from mesh.daemon.identity import Identity
from mesh.daemon.local import StateError


class Addressing:
    """See the module. All raise StateError."""

    def __init__(self, config: Config) -> None:
        self._config = config

    async def first(self, control: str, data: str) -> tuple[str, str]:
        """Of the first manager of a cluster: host:port of its API, and its data address."""
        host, port = self._split(control or self._config.advertise_address)
        own = await self._own(host)
        return f"{own}:{port}", await self._own(data or self._config.data_address or own)

    async def towards(self, data: str, manager: str) -> str:
        """The data address asked for, else the one from which this machine reaches a manager ("": none is known)."""
        asked = data or self._config.data_address
        return await self._own(machine.source_address(manager) if not asked and manager else asked)

    async def control(self, asked: str, data_address: str) -> str:
        """host:port of this node as a manager."""
        host, port = self._split(asked or self._config.advertise_address or data_address)
        return f"{await self._own(host)}:{port}"

    async def settled(self, identity: Identity) -> Identity:
        """The identity with addresses that this machine has: it may have got others since it was last up."""
        own = {str(address.address) for address in await asyncio.to_thread(machine.addresses)}
        data, address = identity.data_address, identity.address
        if data not in own:
            data = await self._own(self._config.data_address or self._config.advertise_address.partition(":")[0])
        if identity.role == "manager" and address.rpartition(":")[0].strip("[]") not in own:
            address = await self.control("", data)
        return msgspec.structs.replace(identity, data_address=data, address=address)

    def _split(self, address: str) -> tuple[str, str]:
        host, _, port = address.partition(":")
        return host, port or self._config.listen.rpartition(":")[2]

    async def _own(self, asked: str) -> str:
        try:
            return str(machine.choose_address(asked, await asyncio.to_thread(machine.addresses)))
        except machine.AddressError as error:
            raise StateError(str(error)) from error
