"""Where certificates come from that the cluster does not sign itself: one HTTPS request each, to an external CA.

`Signatures` keeps what was fetched until it is used. A decision that needs one that is not there ends with `Unsigned`,
and is made again once it is; so no decision waits for a network. No tasks; requests run in threads.
"""

from __future__ import annotations

import asyncio
import http.client
import ssl
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from urllib.parse import urlsplit

from control.ca.contexts import Credentials, load_into
from control.ca.external import ANSWER_MAX_BYTES, Order, Unsigned, body_of, chain_in
from control.ca.root import CaError
from control.server.refusal import Refusal

# Longer than a CA takes, shorter than the calls that wait for it.
ASK_TIMEOUT_S = 8.0
# Requests to the CA at a time: a change of many nodes must not become a flood there.
ASKING_MAX = 8
# Fetched and not used, since their decision failed for another reason.
KEPT_MAX = 64
# Decisions that want another certificate after the first have changed meanwhile: somebody's role.
TRIES_MAX = 3


class Signatures:
    """See the module. `credentials` of this manager are shown to the CA, if there are any yet."""

    def __init__(self, credentials: Callable[[], Credentials] | None, wall_ms: Callable[[], int]) -> None:
        self._credentials, self._wall_ms = credentials, wall_ms
        self._found: OrderedDict[Order, bytes] = OrderedDict()
        self._asking = asyncio.Semaphore(ASKING_MAX)

    def take(self, order: Order) -> bytes:
        """The certificate with its chain, PEM. Raises Unsigned if it has to be fetched first."""
        found = self._found.pop(order, None)
        if found is None:
            raise Unsigned(order)
        return found

    async def fetch(self, order: Order) -> None:
        """Have it. Raises CaError."""
        shown = self._credentials() if self._credentials is not None else None
        async with self._asking:
            answer = await asyncio.to_thread(_ask, order, body_of(order), shown)
        self._found[order] = chain_in(answer, order, self._wall_ms() / 1000)
        while len(self._found) > KEPT_MAX:
            self._found.popitem(last=False)

    async def decided(self, decide: Callable[[], Awaitable[None]]) -> None:
        """Do what decides, and again with what it was missing. Raises Refusal, and what it raises."""
        for _ in range(TRIES_MAX):
            try:
                await decide()
            except Unsigned as missing:
                order = missing.order
            else:
                return
            try:
                await self.fetch(order)
            except CaError as error:
                raise Refusal("UNAVAILABLE", str(error)) from error
        raise Refusal("UNAVAILABLE", "the node was changed while its certificate was signed: try again")


def _ask(order: Order, body: bytes, shown: Credentials | None) -> bytes:
    """One request. Blocks. Raises CaError."""
    parts = urlsplit(order.url)
    assert parts.hostname is not None, "the URL was checked"
    context = ssl.create_default_context(cadata=order.root.decode())
    if shown is not None:
        load_into(context, shown)
    connection = http.client.HTTPSConnection(parts.hostname, parts.port, timeout=ASK_TIMEOUT_S, context=context)
    target = (parts.path or "/") + ("?" + parts.query if parts.query else "")
    try:
        connection.request("POST", target, body, {"Content-Type": "application/json"})
        answer = connection.getresponse().read(ANSWER_MAX_BYTES + 1)
    except (OSError, http.client.HTTPException) as error:
        reason = (
            getattr(error, "strerror", None) or getattr(error, "reason", None) or str(error) or type(error).__name__
        )
        raise CaError(f"the external CA at {order.url} does not answer: {reason}") from error
    finally:
        connection.close()
    if len(answer) > ANSWER_MAX_BYTES:
        raise CaError(f"the external CA at {order.url} gives no answer that can be read: it is too long")
    return answer
