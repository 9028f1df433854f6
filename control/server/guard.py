"""Holds every call of a server to the table in `control.access`: one interceptor, before anything of the call is done.

It takes who calls from the certificate that TLS has verified, asks whether that one still stands (a removed node does
not, nor a demoted manager as one), and looks the call up. What is refused is counted and logged, a change is written
into the audit log. While a call is served, `caller()` says whose it is.
"""

from __future__ import annotations

import inspect
import logging
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, cast

import grpc

from control import access
from control.access import Caller
from control.ca.names import holder_of, parse_uri
from control.server.caller import caller, serve_for
from control.server.hop import CALLER, HOP, UID, WHO, local_uid, peer_address, said_uid

log = logging.getLogger(__name__)

Context = grpc.aio.ServicerContext[Any, Any]
# As whom a holder (with the PEM of its certificate) counts now, or why it counts no more.
Standing = Callable[[Caller, bytes], Caller | str]
# Call, caller, address, what it is about, result.
Audit = Callable[[str, str, str, str, str], None]

# The first of these that a request has says which node it is about.
_SUBJECTS = ("node_id", "reference")


def said_by() -> tuple[tuple[str, str], ...]:
    """Whose call it is, for the manager that it is handed on to."""
    who = caller()
    if who is None:
        return ()
    holder = ((WHO, who.holder.uri),) if who.holder is not None else ()
    return (*holder, *(((UID, str(who.uid)),) if who.uid is not None else ()))


class Guard(grpc.aio.ServerInterceptor):
    """See the module. `secure`: callers show certificates; otherwise they come over a socket of this machine."""

    def __init__(self, standing: Standing, audit: Audit, *, secure: bool) -> None:
        self._standing, self._audit, self._secure = standing, audit, secure
        self.refused: Counter[str] = Counter()  # by call
        self.proved: Callable[[str], None] = lambda _: None  # told of each connection on which a call is let through

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        call = access.name_of_call(str(handler_call_details.method))
        handler = await continuation(handler_call_details)
        if handler is None:
            return None  # not served here: gRPC says so
        if handler.unary_unary is not None:
            return grpc.unary_unary_rpc_method_handler(
                self._unary(call, handler.unary_unary), handler.request_deserializer, handler.response_serializer
            )
        if handler.unary_stream is not None:
            return grpc.unary_stream_rpc_method_handler(
                self._stream(call, handler.unary_stream), handler.request_deserializer, handler.response_serializer
            )
        if handler.stream_unary is not None:
            return grpc.stream_unary_rpc_method_handler(
                self._session(call, handler.stream_unary), handler.request_deserializer, handler.response_serializer
            )
        assert handler.stream_stream is not None, "there is no other kind of call"
        return grpc.stream_stream_rpc_method_handler(
            self._session(call, handler.stream_stream), handler.request_deserializer, handler.response_serializer
        )

    # --- the three kinds of calls -----------------------------------------------------------------------------------

    def _unary(self, call: str, behaviour: Any) -> Callable[[Any, Context], Awaitable[Any]]:
        async def guarded(request: Any, context: Context) -> Any:
            who = await self._admit(call, request, context)
            serve_for(who)
            try:
                answer = await behaviour(request, context)
            except BaseException as error:
                self._note(call, who, request, context, f"failed: {_failure(context, error)}")
                raise
            self._note(call, who, request, context, "done")
            return answer

        return guarded

    def _stream(self, call: str, behaviour: Any) -> Any:
        if not inspect.isasyncgenfunction(behaviour):  # it writes by itself
            return self._unary(call, behaviour)

        async def guarded(request: Any, context: Context) -> AsyncIterator[Any]:
            who = await self._admit(call, request, context)
            serve_for(who)
            self._note(call, who, request, context, "begun")
            async for answer in behaviour(request, context):
                yield answer

        return guarded

    def _session(self, call: str, behaviour: Any) -> Callable[[Any, Context], Awaitable[Any]]:
        """Where it is for oneself, only the first message says who that is: the service compares."""

        async def guarded(requests: Any, context: Context) -> Any:
            who = await self._identify(call, context)
            if access.right(call, who.role) is None:
                await self._refuse(call, who, context, access.refusal(call, who, None))
            self.proved(context.peer())
            serve_for(who)
            return await behaviour(requests, context)

        return guarded

    # --- judging ----------------------------------------------------------------------------------------------------

    async def _admit(self, call: str, request: Any, context: Context) -> Caller:
        who = await self._identify(call, context)
        reason = access.refusal(call, who, _subject(request), str(getattr(request, "kind", "")))
        if reason:
            await self._refuse(call, who, context, reason)
        self.proved(context.peer())
        return who

    async def _identify(self, call: str, context: Context) -> Caller:
        """Who calls. Ends the call if that is nobody who stands."""
        if not self._secure:
            return Caller(uid=local_uid(context))
        shown = cast("dict[str, list[bytes]]", context.auth_context())
        holder = holder_of([uri.decode(errors="replace") for uri in shown.get("peer_uri", [])])
        if holder is None or shown.get("ssl_tls_version") != [b"TLSv1.3"]:
            self.refused[call] += 1
            log.warning("refused a call", extra={"call": call, "peer": context.peer(), "reason": "no certificate"})
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, "only members of this cluster may call, by TLS 1.3")
        assert holder is not None
        who = Caller(holder, said_uid(context) if holder.is_node else None)
        now = self._standing(who, next(iter(shown.get("x509_pem_cert", [])), b""))
        if isinstance(now, str):
            await self._refuse(call, who, context, now, grpc.StatusCode.UNAUTHENTICATED)
        else:
            who = now
        metadata = dict(context.invocation_metadata() or ())
        if not metadata.keys() & {HOP, CALLER, WHO}:
            return who
        if who.role == "worker" and holder.role == "manager":
            return who  # it was demoted, and hands on what its own users ask for: that counts as its own
        said = parse_uri(str(metadata[WHO])) if WHO in metadata else who.holder
        if who.role != "manager" or said is None:
            await self._refuse(call, who, context, f"{who} hands on a call, which only managers do")
        return Caller(said, said_uid(context))

    async def _refuse(
        self,
        call: str,
        who: Caller,
        context: Context,
        reason: str,
        code: grpc.StatusCode = grpc.StatusCode.PERMISSION_DENIED,
    ) -> None:
        self.refused[call] += 1
        log.warning("refused a call", extra={"call": call, "peer": peer_address(context), "reason": reason})
        self._audit(call, who.full, peer_address(context), "", f"refused: {reason}")
        await context.abort(code, reason)

    def _note(self, call: str, who: Caller, request: Any, context: Context, result: str) -> None:
        if call not in access.READS:
            self._audit(call, who.full, peer_address(context), _about(request), result)


def _subject(request: Any) -> str | None:
    for field in _SUBJECTS:
        if hasattr(request, field):
            return str(getattr(request, field))
    return None


def _about(request: Any) -> str:
    """What a change is about, without what it says: specs may hold secrets."""
    named = (str(getattr(request, field, "")) for field in ("kind", "reference", "node_id", "role", "name"))
    return " ".join(word[:80] for word in named if word)


def _failure(context: Context, error: BaseException) -> str:
    return str(context.details() or type(error).__name__)[:300]
