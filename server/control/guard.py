"""The checks that stand before every method, in one place, in one order.

Limits by key, then who calls, then what the role may do, then the request's form, then the method,
and a bound on how long all of it may take. What a caller gets of an error is decided by
:mod:`server.control.refusals`; what is counted and logged is the same for every call.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterable, Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Any, TypeAlias, TypeVar

import grpc
from google.protobuf.message import DecodeError, Message
from grpc import aio

from server.control import logs
from server.control.identity import NOBODY, Caller, Connection, Door
from server.control.limits import Slots, TokenBuckets
from server.control.refusals import Malformed, Refusal, TooMany, TooSlow, refusal_of
from server.control.telemetry import Telemetry
from shared.control.methods import MAX_REQUEST_BYTES, MAX_RESPONSE_BYTES, Method
from shared.enrolment import Role
from shared.errors import FedSLMError

T = TypeVar("T")
Context: TypeAlias = "aio.ServicerContext[bytes, bytes]"

_MAX_MESSAGES = 200
# Refusals for too many calls are written down at most once in this time, or they fill the disk.
_QUIET_SECONDS = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """One served method.

    Attributes:
        method: of the interface.
        roles: who may call it; empty on a port where nobody is known.
        call: what it does: one message, or an iterable of messages where the method streams.
        seconds: how long a call may take.
        cost: what a call counts for in the limit of calls a minute.
        many: whether the caller may send several requests on one stream.
    """

    method: Method
    roles: frozenset[Role]
    call: Callable[[Any, Caller], Message | Iterable[Message]]
    seconds: float
    cost: float = 1.0
    many: bool = False


class Guard:
    """Wraps endpoints for one port.

    Args:
        door: decides who calls.
        buckets: how often one key may call.
        slots: how many calls one key may have under way.
        pool: threads for work; the event loop only waits.
        telemetry: counts calls.
    """

    def __init__(
        self,
        *,
        door: Door,
        buckets: TokenBuckets,
        slots: Slots,
        pool: ThreadPoolExecutor,
        telemetry: Telemetry,
    ) -> None:
        self._door = door
        self._buckets = buckets
        self._slots = slots
        self._pool = pool
        self._telemetry = telemetry
        self._noted = -_QUIET_SECONDS

    def handler(self, endpoint: Endpoint) -> grpc.RpcMethodHandler[Any, Any]:
        """Return what gRPC calls; bytes go in and out, so that nothing is parsed unchecked."""

        async def one(raw: bytes, context: Context) -> bytes:
            return await self._one(endpoint, raw, context)

        async def stream(raw: bytes, context: Context) -> None:
            await self._stream(endpoint, raw, context)

        async def many(requests: AsyncIterable[bytes], context: Context) -> None:
            await self._many(endpoint, requests, context)

        if endpoint.many:
            return grpc.stream_stream_rpc_method_handler(many)
        if endpoint.method.streaming:
            return grpc.unary_stream_rpc_method_handler(stream)
        return grpc.unary_unary_rpc_method_handler(one)

    async def _one(self, endpoint: Endpoint, raw: bytes, context: Context) -> bytes:
        """Answer one request with one message."""
        call = Call(endpoint, context)
        async with self._watched(call):
            self._limit(call)
            data = await self._work(call, lambda: self._answer(call, raw))
            call.sent += len(data)
        return data

    async def _stream(self, endpoint: Endpoint, raw: bytes, context: Context) -> None:
        """Answer one request with a stream; who calls is asked again before every part of it."""
        call = Call(endpoint, context)
        async with self._watched(call):
            self._limit(call)
            parts = await self._work(call, lambda: iter(self._start(call, raw)))
            while (data := await self._work(call, lambda: self._next(call, parts))) is not None:
                await context.write(data)
                call.sent += len(data)

    async def _many(
        self, endpoint: Endpoint, requests: AsyncIterable[bytes], context: Context
    ) -> None:
        """Answer several requests of one stream, each with one message or more."""
        call = Call(endpoint, context)
        async with self._watched(call):
            self._limit(call)
            count = 0
            async for raw in requests:
                count += 1
                if count > _MAX_MESSAGES:
                    msg = f"more than {_MAX_MESSAGES} requests on one stream."
                    raise TooMany(msg)
                parts = await self._work(call, partial(self._all, call, raw))
                for data in parts:
                    await context.write(data)
                    call.sent += len(data)

    def _limit(self, call: Call) -> None:
        """Count the call against its key's limits.

        Raises:
            TooMany: if there is nothing left, with when to come again.
            CertificateInvalid: without a certificate that can be read.
        """
        key = self._door.key(call.connection)
        seconds = self._buckets.take(key, call.endpoint.cost)
        if seconds > 0:
            msg = "too many calls a minute."
            raise TooMany(msg, seconds=seconds)
        if not self._slots.enter(key):
            msg = "too many calls at the same time."
            raise TooMany(msg)
        call.key = key

    async def _work(self, call: Call, job: Callable[[], T]) -> T:
        """Run something in a thread; the call's slot is held for as long as it runs."""
        future = self._pool.submit(job)
        call.job = future
        return await asyncio.wrap_future(future)

    def _answer(self, call: Call, raw: bytes) -> bytes:
        """Do the work of a call with one answer; in a thread."""
        return b"".join(_wire(message) for message in self._start(call, raw))

    def _all(self, call: Call, raw: bytes) -> list[bytes]:
        """Do the work of one request among several; in a thread."""
        return [_wire(message) for message in self._start(call, raw)]

    def _start(self, call: Call, raw: bytes) -> Iterable[Message]:
        """Admit the caller, parse the request, and begin; in a thread.

        Raises:
            AccessDenied: if the caller may not call this.
            Malformed: if the request is too long or not what the method takes.
        """
        endpoint, caller = call.endpoint, self._admit(call)
        if len(raw) > MAX_REQUEST_BYTES:
            msg = f"a request of {len(raw)} bytes, expected at most {MAX_REQUEST_BYTES}."
            raise Malformed(msg)
        call.received += len(raw)
        try:
            request = endpoint.method.request.FromString(raw)
        except DecodeError as error:
            msg = f"the request is not a {endpoint.method.request.DESCRIPTOR.name}."
            raise Malformed(msg) from error
        answer = endpoint.call(request, caller)
        return [answer] if isinstance(answer, Message) else answer

    def _admit(self, call: Call) -> Caller:
        """Return who calls, asked anew."""
        call.caller = self._door.admit(call.connection, call.endpoint.roles)
        return call.caller

    def _next(self, call: Call, parts: Iterator[Message]) -> bytes | None:
        """Return the next part of a stream for a caller who still may have it; in a thread."""
        self._admit(call)
        part = next(parts, None)
        return None if part is None else _wire(part)

    def _watched(self, call: Call) -> Watched:
        """Bound a call in time, count it, and turn its error into a refusal."""
        return Watched(call, slots=self._slots, done=self._done)

    def _done(self, call: Call, status: str, error: BaseException | None) -> None:
        """Count a finished call and write it down."""
        name = call.endpoint.method.path.lstrip("/")
        seconds = time.monotonic() - call.started
        self._telemetry.called(
            name, status, seconds=seconds, received=call.received, sent=call.sent
        )
        if isinstance(error, TooMany):
            if time.monotonic() - self._noted < _QUIET_SECONDS:
                return
            self._noted = time.monotonic()
        facts: dict[str, object] = {
            "method": name,
            "status": status,
            "milliseconds": round(seconds * 1000, 1),
            "received": call.received,
            "sent": call.sent,
        }
        if call.caller.role is not None:
            facts |= {"caller": call.caller.name, "role": call.caller.role}
        if isinstance(error, FedSLMError):
            facts["error"] = error.code
        logs.event("call", facts)


class Call:
    """One call under way.

    Args:
        endpoint: what is called.
        context: gRPC's side of it.
    """

    def __init__(self, endpoint: Endpoint, context: Context) -> None:
        self.endpoint = endpoint
        self.context = context
        self.connection = Connection.of(context.peer(), context.auth_context())
        self.caller = NOBODY
        self.key: str | None = None
        self.job: Future[Any] | None = None
        self.started = time.monotonic()
        self.received = 0
        self.sent = 0


class Watched:
    """Bounds a call in time and ends it: with its answer, or with a refusal.

    Args:
        call: the call.
        slots: where its slot is given back.
        done: told about the end: the call, its status, its error.
    """

    def __init__(
        self,
        call: Call,
        *,
        slots: Slots,
        done: Callable[[Call, str, BaseException | None], None],
    ) -> None:
        self._call = call
        self._slots = slots
        self._done = done
        self._timeout = asyncio.timeout(call.endpoint.seconds)

    async def __aenter__(self) -> None:
        await self._timeout.__aenter__()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            await self._timeout.__aexit__(kind, error, trace)
        except TimeoutError:
            msg = f"the call took longer than {self._call.endpoint.seconds:g} seconds."
            error = TooSlow(msg, hint="Ask for less, or go on from where it ended.")
        self._leave()
        if error is None:
            self._done(self._call, "OK", None)
            return
        if not isinstance(error, Exception):
            # The caller went away, or the service stops.
            self._done(self._call, "CANCELLED", error)
            return
        refusal = refusal_of(error)
        if refusal.status is grpc.StatusCode.INTERNAL:
            logs.failure(self._call.endpoint.method.path, error)
        self._done(self._call, refusal.status.name, error)
        await self._refuse(refusal)

    def _leave(self) -> None:
        """Give the slot back once no thread works for the call any more."""
        key, job = self._call.key, self._call.job
        if key is None:
            return
        if job is None or job.done():
            self._slots.leave(key)
            return
        loop = asyncio.get_running_loop()
        job.add_done_callback(lambda _: loop.call_soon_threadsafe(self._slots.leave, key))

    async def _refuse(self, refusal: Refusal) -> None:
        """End the call with a status; this raises what gRPC ends a call by."""
        await self._call.context.abort(refusal.status, refusal.details, refusal.metadata)


def _wire(message: Message) -> bytes:
    """Return a message's bytes.

    Raises:
        FedSLMError: if it is longer than both ends allow.
    """
    data = message.SerializeToString()
    if len(data) > MAX_RESPONSE_BYTES:
        msg = f"an answer of {len(data)} bytes, expected at most {MAX_RESPONSE_BYTES}."
        raise FedSLMError(msg, hint="Ask for a smaller page.")
    return data
