"""Anything at all, sent to every method of a running service.

The loop sends 8,000 payloads from a fixed seed; more with FEDSLM_FUZZ_CASES. What counts: the
process lives, its memory stays, and no call ends in a fault of the server.
"""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from grpc import aio
from grpc_reflection.v1alpha import reflection_pb2
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from client.control import Identity
from server.control.health import CHECK, REFLECTION
from shared.control.methods import METHODS, Method
from tests.server.control.ledgers import charge
from tests.server.control.registries import add_adapter
from tests.server.control.service import Service, code_of, make_home, serving
from tests.server.control.test_runstates import add_run

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

CASES = int(os.environ.get("FEDSLM_FUZZ_CASES", "8000"))
SEED = 20_261_121
AT_ONCE = 16
# A fault of the server; everything else is an answer or a refusal.
FAULTS = {grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN, grpc.StatusCode.UNAVAILABLE}
REFLECT = Method(
    service=REFLECTION,
    name="ServerReflectionInfo",
    request=reflection_pb2.ServerReflectionRequest,
    response=reflection_pb2.ServerReflectionResponse,
    streaming=True,
)
# Leaving is for good: whoever leaves would not get through to anything else.
CONTROL = [
    *(m for name, m in METHODS.items() if name not in {"Enrolment.Enroll", "Certificates.Leave"}),
    CHECK,
    REFLECT,
]
NASTY = [
    "",
    "../../etc/passwd",
    "clinics-1",
    "clinic-1",
    "a\x00b",
    "%s%n",
    "' OR 1=1 --",
    "A" * 5000,
    "é\u202e",
    "0" * 64,
    "node",
    "operator",
]


@pytest.fixture(scope="module", name="running")
def _running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    home = make_home(tmp_path_factory.mktemp("fuzz") / "server")
    charge(home, rounds=1)
    add_run(home, "clinics-1", 3)
    add_adapter(home)
    many = 10**9
    with serving(
        home, requests_per_minute=many, enrolments_per_minute=many, calls_per_key=100
    ) as service:
        yield service


@pytest.fixture(scope="module", name="olga")
def _olga(running: Service) -> Identity:
    return running.identity("olga", "operator")


def secure(who: Identity, address: str) -> grpc.ChannelCredentials:
    certificate = None if address != who.address else who.certificate
    key = None if certificate is None else who.key
    return grpc.ssl_channel_credentials(who.ca, key, certificate)


class Inputs:
    """Random payloads: bytes, messages that are valid, and valid ones that were damaged."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def payload(self, method: Method) -> bytes:
        kind = self._random.random()
        if kind < 0.3:
            return self._random.randbytes(self._random.randrange(200))
        raw = self._message(method.request).SerializeToString()
        if kind < 0.7 or not raw:
            return raw
        damaged = bytearray(raw)
        for _ in range(self._random.randrange(1, 6)):
            damaged[self._random.randrange(len(damaged))] = self._random.randrange(256)
        cut = self._random.randrange(len(damaged) + 1)
        return bytes(damaged[:cut] if self._random.random() < 0.3 else damaged)

    def _message(self, kind: type[Message]) -> Message:
        found = kind()
        for field in kind.DESCRIPTOR.fields:
            if self._random.random() < 0.8 and field.message_type is None:
                setattr(found, field.name, self._value(field))
        return found

    def _value(self, field: FieldDescriptor) -> object:
        draw = self._random
        if field.type == FieldDescriptor.TYPE_STRING:
            return draw.choice([*NASTY, "".join(map(chr, draw.sample(range(1, 0xD000), 8)))])
        if field.type == FieldDescriptor.TYPE_BYTES:
            return draw.randbytes(draw.choice([0, 1, 50, 3000]))
        top = 2**32 if field.type == FieldDescriptor.TYPE_UINT32 else 2**64
        return draw.choice([0, 1, 2, top - 1, draw.randrange(top)])


async def send_all(who: Identity, address: str, cases: list[tuple[Method, bytes]]) -> Counter[Any]:
    """Send every payload; return how often each status came back for each method."""
    found: Counter[Any] = Counter()
    queue = iter(cases)

    async def worker() -> None:
        async with aio.secure_channel(address, secure(who, address)) as channel:
            for method, raw in queue:
                code = await send(channel, method, raw)
                found[(method.name, code)] += 1

    await asyncio.gather(*(worker() for _ in range(AT_ONCE)))
    return found


async def send(channel: aio.Channel, method: Method, raw: bytes) -> grpc.StatusCode:
    try:
        if method is REFLECT:
            both: Any = channel.stream_stream(method.path)
            async for _ in both(iter([raw]), timeout=30):
                pass
        elif method.streaming:
            many: Any = channel.unary_stream(method.path)
            async for _ in many(raw, timeout=30):
                pass
        else:
            one: Any = channel.unary_unary(method.path)
            await one(raw, timeout=30)
    except aio.AioRpcError as error:
        return error.code()
    return grpc.StatusCode.OK


def judge(running: Service, found: Counter[Any], before: int) -> None:
    """Require that the service is as it was."""
    assert running.process.poll() is None
    assert {key: n for key, n in found.items() if key[1] in FAULTS} == {}
    assert [line for line in running.log() if line["event"] == "failure"] == []
    assert running.resident() - before < 64_000_000
    with running.client(f"after-{time.monotonic_ns() % 10**9}") as client:
        assert client.own_budget().statements


def test_every_method_survives_a_flood_of_payloads(running: Service, olga: Identity) -> None:
    inputs = Inputs(SEED)
    warm = [(method, inputs.payload(method)) for method in CONTROL for _ in range(20)]
    asyncio.run(send_all(olga, running.address, warm))
    before = running.resident()
    cases = [(m, inputs.payload(m)) for _, m in zip(range(CASES), _for_ever(CONTROL), strict=False)]
    found = asyncio.run(send_all(olga, running.address, cases))
    assert found.total() == CASES
    judge(running, found, before)
    # Both sides of every check were reached.
    reached = {name for name, code in found if code is grpc.StatusCode.OK}
    assert {"GetOwn", "ListRuns", "GetRun", "ListAdapters", "NewToken", "Check"} <= reached
    assert any(code is grpc.StatusCode.INVALID_ARGUMENT for _, code in found)


def test_enrolment_survives_a_flood_of_payloads(running: Service, olga: Identity) -> None:
    inputs, enroll = Inputs(SEED + 1), METHODS["Enrolment.Enroll"]
    cases = [(enroll, inputs.payload(enroll)) for _ in range(max(1000, CASES // 8))]
    before = running.resident()
    found = asyncio.run(send_all(olga, running.enrol, cases))
    judge(running, found, before)
    assert ("Enroll", grpc.StatusCode.OK) not in found
    with running.fleet() as fleet:
        assert {e.name for e in fleet.nodes() if not e.name.startswith("after-")} == {"olga"}


def test_leaving_survives_payloads(running: Service) -> None:
    who, leave = running.identity("leaver"), METHODS["Certificates.Leave"]
    inputs, before = Inputs(SEED + 2), running.resident()
    cases = [(leave, inputs.payload(leave)) for _ in range(500)]
    found = asyncio.run(send_all(who, running.address, cases))
    judge(running, found, before)
    assert found[("Leave", grpc.StatusCode.OK)] >= 1
    assert found[("Leave", grpc.StatusCode.PERMISSION_DENIED)] >= 100


def _for_ever(methods: list[Method]) -> Iterator[Method]:
    while True:
        yield from methods


def values(field: FieldDescriptor) -> st.SearchStrategy[Any]:
    """Return a strategy for any value of a field."""
    if field.type == FieldDescriptor.TYPE_STRING:
        return st.sampled_from(NASTY) | st.text(max_size=100)
    if field.type == FieldDescriptor.TYPE_BYTES:
        return st.binary(max_size=500)
    top = 2**32 if field.type == FieldDescriptor.TYPE_UINT32 else 2**64
    return st.integers(0, top - 1)


def messages(method: Method) -> st.SearchStrategy[bytes]:
    """Return a strategy for any request of a method."""
    fields = {
        field.name: values(field)
        for field in method.request.DESCRIPTOR.fields
        if field.message_type is None
    }
    drawn = st.fixed_dictionaries({}, optional=fields)
    return drawn.map(lambda given: method.request(**given).SerializeToString())


@pytest.fixture(scope="module", name="channel")
def _channel(running: Service, olga: Identity) -> Iterator[grpc.Channel]:
    with grpc.secure_channel(running.address, secure(olga, running.address)) as channel:
        yield channel


@pytest.mark.parametrize("method", [m for m in CONTROL if m is not REFLECT], ids=lambda m: m.name)
@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_request_is_answered_or_refused(
    method: Method, channel: grpc.Channel, data: st.DataObject
) -> None:
    raw = data.draw(st.binary(max_size=300) | messages(method))
    call: grpc.UnaryStreamMultiCallable[bytes, bytes] = channel.unary_stream(method.path)
    try:
        for part in call(raw, timeout=30):
            method.response.FromString(part)
        code = grpc.StatusCode.OK
    except grpc.RpcError as found:
        code = code_of(found)
    assert code not in FAULTS
