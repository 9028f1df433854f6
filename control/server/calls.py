"""gRPC's server, without a way in that ends it: a call whose path is not UTF-8 stops grpc.aio's server for good.

Its loop decodes the path of each call that nobody has registered, and an error there shuts the whole server down
(grpcio 1.85, `_server_main_loop`). Our methods are all registered, so calls of others are taken and dropped before
their path is looked at: whoever makes one is told that it was cancelled.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, cast

import grpc
from grpc._cython import cygrpc  # type: ignore[attr-defined]


def make_server(
    options: Sequence[tuple[str, int]],
    interceptors: Sequence[grpc.aio.ServerInterceptor] = (),
    calls_max: int | None = None,
) -> grpc.aio.Server:
    """As `grpc.aio.server`."""
    server = grpc.aio.server(options=options, interceptors=tuple(interceptors), maximum_concurrent_rpcs=calls_max)
    loop = asyncio.get_running_loop()
    # The one attribute that there is; `grpc.aio.Server` does nothing else with these.
    cast(Any, server)._server = _Server(loop, None, (), tuple(interceptors), tuple(options), calls_max)
    return server


class _Server(cygrpc.AioServer):  # type: ignore[misc]  # has no types
    """Serves what is registered."""

    def _make_request_call_future(self, method: bytes | None) -> asyncio.Future[object]:
        if method is not None:
            return cast("asyncio.Future[object]", super()._make_request_call_future(method))
        return asyncio.get_running_loop().create_task(self._drop())

    async def _drop(self) -> object:
        """Take calls that nobody has registered, until there are no more; raises what ends the server's loop."""
        while True:
            await self._request_call()
