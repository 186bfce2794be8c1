"""A hundred thousand hostile inputs: only our errors come out, and memory stays bounded.

Each loop mutates good inputs at random, from a fixed seed; hypothesis looks for the rest. The
control service and the safetensors header have floods of their own
(``tests/server/control/test_fuzz.py``, ``tests/shared/test_tensorfile.py``).
"""

from __future__ import annotations

import io
import json
import random
import resource
import struct
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict
from hypothesis import given
from hypothesis import strategies as st

from client.fleet.frames import Frame, read_frame, write_frame
from client.fleet.limits import Limits
from client.fleet.messages import content_of, read_question
from client.fleet.objects import RECORD_DICT, Tree, build, object_id, parse, verify
from client.fleet.records import Record, decode, encode
from client.fleet.worker import from_flower
from server.adapters import WEIGHTS, read_adapter
from shared.enrolment import EnrolmentToken, encode_bytes
from shared.errors import FedSLMError
from shared.lora import AdapterSpec, Factor, initial_factors
from shared.npyfile import DTYPES, read_npy, write_npy
from shared.privacy.secagg.uploads import (
    Advertisement,
    Confirmation,
    MaskedInput,
    Reveals,
    Shares,
)
from shared.wire import (
    ADAPTER,
    HEADER,
    VECTOR,
    ClientUpdate,
    Instruction,
    decode_instruction,
    decode_introduction,
    decode_measurement,
    decode_phase_call,
    decode_phase_reply,
    decode_update,
    encode_instruction,
    encode_update,
)

SEED = 20
ROOM = 256 << 20
SMALL = Limits(message_bytes=1 << 20, object_bytes=1 << 18, objects=64, records=32)
SPLICES = [
    b"", b"\x00", b"\xff" * 8, b"{", b"}", b"[" * 200, b'"', b",", b"-1", b"1e9", b"null", b"NaN",
    b"99999999999999999999", b"\x93NUMPY", b"PK\x03\x04", b"\x1f\x8b\x08", b"../", b"\\u0000",
    b"numpy.ndarray", b"(1000000000000,)", b"True", b"|O", b"\x80\x04\x95", b"ArrayChunk  0",
]  # fmt: skip


def mutated(rng: random.Random, good: bytes) -> bytes:
    """Return bytes that differ from good ones in a few places."""
    data = bytearray(good)
    for _ in range(rng.randint(1, 4)):
        at, kind = rng.randrange(len(data) + 1), rng.randrange(6)
        if kind == 0 and data:
            data[at % len(data)] ^= 1 << rng.randrange(8)
        elif kind == 1:
            del data[at : at + rng.randint(1, 16)]
        elif kind == 2:
            data[at:at] = rng.choice(SPLICES)
        elif kind == 3 and data:
            stop = at + rng.randint(1, 16)
            data[at:stop] = rng.choice(SPLICES)
        elif kind == 4:
            del data[at:]
        else:
            data[at:at] = rng.randbytes(rng.randint(1, 24))
    return bytes(data)


def refusal(call: Callable[[], object]) -> FedSLMError | None:
    """Return the error of ours that a call ends with; None if it returns."""
    try:
        call()
    except FedSLMError as error:
        return error
    return None


@contextmanager
def bounded_memory() -> Iterator[None]:
    """Let this process grow by 256 MB at most; whoever wants more gets a MemoryError."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    most = pages * resource.getpagesize() + ROOM
    resource.setrlimit(resource.RLIMIT_AS, (most, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def flood(count: int, case: Callable[[random.Random], object]) -> Counter[str]:
    """Run cases; whatever is no error of ours fails the test, a MemoryError too."""
    rng = random.Random(SEED)
    found: Counter[str] = Counter()
    with bounded_memory():
        for _ in range(count):
            error = refusal(partial(case, rng))
            found["taken" if error is None else error.code] += 1
            if error is not None:
                assert len(error.message) < 400
                assert error.message.isprintable()
    assert found.total() == count
    assert found.total() > found["taken"]
    return found


def test_the_bound_on_memory_is_one() -> None:
    with bounded_memory(), pytest.raises(MemoryError):
        bytearray(2 * ROOM)
    assert len(bytearray(2 * ROOM)) == 2 * ROOM


VALUES = [
    1, 0, -1, 3, 2**63 - 1, 1.5, float("nan"), float("inf"), True, "", "c", "clipped", "mask", "r",
    "\x1b[31m", "x" * 10_000, b"", b"\x00" * 100, [1, 2], ["a"], [], [True], [b"x"], [0.5],
]  # fmt: skip
FIELDS = [
    "protocol", "server-round", "config-digest", "plan-digest", "stage", "run-id", "empty", "phase",
    "payload", "clipping-norm", "failure", "loss", "tokens", "client", "ledger-seq", "ledger-hash",
    "ledger-public_key", "ledger-signature", "more",
]  # fmt: skip
VECTOR_BYTES = write_npy(np.arange(8, dtype=np.float32))
DECODERS: list[Callable[[RecordDict], object]] = [
    decode_instruction,
    decode_phase_call,
    lambda records: decode_phase_reply(records, phase="mask"),
    lambda records: decode_update(
        records, server_round=3, config_digest="c", stage="clipped", size=8
    ),
    decode_measurement,
    decode_introduction,
]


def records_case(rng: random.Random) -> object:
    """Decode a message of which fields, vector and records were changed at random."""
    vector = np.arange(8, dtype=np.float32)
    if rng.random() < 0.5:
        told = Instruction(
            run_id="r", server_round=3, config_digest="c", plan_digest="p", vector=vector
        )
        records = encode_instruction(told)
    else:
        update = ClientUpdate(server_round=3, config_digest="c", stage="clipped", vector=vector)
        records = encode_update(update)
    header: dict[str, object] = dict(records[HEADER])
    for _ in range(rng.randint(0, 3)):
        header[rng.choice(FIELDS)] = rng.choice(VALUES)
        if rng.random() < 0.3:
            header.pop(rng.choice(FIELDS), None)
    records[HEADER] = ConfigRecord(header)  # type: ignore[arg-type]
    if rng.random() < 0.6:
        dtype = rng.choice([*DTYPES, "float32", "float32", "float32", "bfloat16", "object", ""])
        shape = rng.choice([(8,), (8,), (8,), (), (2, 4), (0,), (-1,), (10**12,), (True,)])
        data = mutated(rng, VECTOR_BYTES) if rng.random() < 0.8 else VECTOR_BYTES
        stype = rng.choice(["numpy.ndarray", "numpy.ndarray", "torch.Tensor", ""])
        array = Array(dtype=dtype, shape=shape, stype=stype, data=data)
        records[ADAPTER] = ArrayRecord({rng.choice([VECTOR, VECTOR, VECTOR, "w"]): array})
    if rng.random() < 0.05:
        del records[rng.choice([HEADER, ADAPTER])]
    return rng.choice(DECODERS)(records)


@pytest.mark.slow
def test_twenty_five_thousand_messages_of_the_wire_codec() -> None:
    found = flood(25_000, records_case)
    assert found["taken"] > 1000
    assert set(found) == {"taken", "schema-mismatch", "client-failed"}


def good_tree() -> Tree:
    """Return the objects of an honest instruction and of everything else a record may hold."""
    told = Instruction(
        run_id="r",
        server_round=3,
        config_digest="c",
        plan_digest="p",
        vector=np.arange(8, dtype=np.float32),
    )
    found = from_flower(encode_instruction(told))
    more = Record(
        arrays={**found.arrays, "a": {"f": np.ones((2, 3)), "i": np.zeros(0, dtype=np.int8)}},
        configs={**found.configs, "c": {"l": [1, 2], "b": b"x", "e": []}},
        metrics={"m": {"x": 1.5, "y": [2, 3]}},
    )
    return encode(more)


def tree_case(good: Tree) -> Callable[[random.Random], object]:
    """Return a case that changes one object's bytes or body, and names it and its parents anew."""

    def case(rng: random.Random) -> object:
        target = rng.choice(list(good.contents))
        new: dict[str, str] = {}
        contents: dict[str, bytes] = {}
        for name, content in good.contents.items():
            parsed = parse(content)
            body = bytes(parsed.body)
            for old, fresh in new.items():
                body = body.replace(old.encode(), fresh.encode())
            children = [new.get(child, child) for child in parsed.children]
            if name == target and rng.random() < 0.8:
                body = mutated(rng, body)
            written = build(parsed.kind, children, body)
            if name == target and rng.random() < 0.2:
                written = mutated(rng, written)
            new[name] = object_id(written)
            contents[new[name]] = written
        tree = Tree(root=new[good.root], contents=contents)
        return decode(tree, limits=SMALL)

    return case


@pytest.mark.slow
def test_twelve_thousand_trees_of_objects() -> None:
    """What a server sends a node: read to the last number in the node's worker."""
    found = flood(12_000, tree_case(good_tree()))
    assert found["taken"] > 100
    assert set(found) == {"taken", "schema-mismatch"}


@pytest.mark.slow
def test_twenty_five_thousand_single_objects_and_arrays() -> None:
    contents = list(good_tree().contents.values())

    def case(rng: random.Random) -> object:
        if rng.random() < 0.5:
            return parse(mutated(rng, rng.choice(contents)), limits=SMALL)
        data = memoryview(mutated(rng, VECTOR_BYTES))
        return read_npy(data, dtype=rng.choice(list(DTYPES)), shape=rng.choice([(8,), (2, 4), ()]))

    found = flood(25_000, case)
    assert set(found) <= {"taken", "schema-mismatch"}


@pytest.mark.slow
def test_twenty_five_thousand_frames_between_node_and_worker() -> None:
    stream = io.BytesIO()
    write_frame(stream, Frame(header={"kind": "answer", "names": ["a", "b"]}, parts=[b"1", b"22"]))
    good = stream.getvalue()

    def case(rng: random.Random) -> object:
        data = mutated(rng, good)
        if rng.random() < 0.3:
            lengths = [rng.choice([0, 1, 2**31, 2**32 - 1, 2**63]) for _ in range(2)]
            data = struct.pack(">QQ", *lengths) + data
        return read_frame(io.BytesIO(data), limits=SMALL)

    found = flood(25_000, case)
    assert set(found) <= {"taken", "schema-mismatch"}


@pytest.mark.slow
def test_heads_of_messages_from_a_server() -> None:
    from google.protobuf.message import DecodeError

    from client.fleet.fleet_pb2 import Message, Metadata

    head = Metadata(
        run_id=1,
        message_id="a" * 64,
        src_node_id=1,
        dst_node_id=17,
        group_id="1",
        ttl=60.0,
        message_type="train",
        created_at=1.0,
    )
    good = Message(metadata=head).SerializeToString()

    def case(rng: random.Random) -> object:
        body = mutated(rng, good)
        try:
            message = Message.FromString(body)
        except DecodeError:
            message = Message.FromString(good)
        question = read_question(message, node_id=17)
        root = build("Message", [object_id(b"x")], body)
        return content_of(question, Tree(root=object_id(root), contents={object_id(root): root}))

    found = flood(5000, case)
    assert set(found) <= {"taken", "schema-mismatch"}


UPLOADS = [
    Advertisement.from_bytes,
    Shares.from_bytes,
    MaskedInput.from_bytes,
    Confirmation.from_bytes,
    Reveals.from_bytes,
]


@pytest.mark.slow
def test_twelve_thousand_messages_of_secure_aggregation() -> None:
    def case(rng: random.Random) -> object:
        size = rng.choice([0, 1, 7, 32, 96, 100, 500])
        data = bytearray(rng.randbytes(size))
        if size > 8 and rng.random() < 0.5:
            data[:8] = struct.pack(rng.choice([">Q", "<Q"]), rng.choice([0, 1, 2, 2**32, 2**63]))
        return rng.choice(UPLOADS)(bytes(data))

    found = flood(12_000, case)
    assert len(found) <= 3


SPEC = AdapterSpec(
    factors=(
        Factor(name="m.lora_A.weight", kind="A", shape=(2, 6)),
        Factor(name="m.lora_B.weight", kind="B", shape=(5, 2)),
    ),
    r=2,
    lora_alpha=4.0,
    target_modules=("m",),
)


@pytest.mark.slow
def test_six_thousand_weight_files(tmp_path: Path) -> None:
    """What is read is finite-shaped tensors of the adapter's own names and shapes, or nothing."""
    from safetensors.numpy import save

    good = save(dict(initial_factors(SPEC, 1)))
    path = tmp_path / WEIGHTS

    def case(rng: random.Random) -> object:
        path.write_bytes(mutated(rng, good))
        factors = read_adapter(tmp_path, SPEC)
        assert {name: array.shape for name, array in factors.items()} == {
            factor.name: factor.shape for factor in SPEC.factors
        }
        return factors

    found = flood(6000, case)
    assert set(found) <= {"taken", "adapter-corrupt", "adapter-incompatible"}


@pytest.mark.slow
def test_five_thousand_enrolment_tokens() -> None:
    good = EnrolmentToken(
        address="localhost:9096",
        fingerprint="a" * 64,
        secret=encode_bytes(b"b" * 32),
        name="n",
        expires_at=2_000_000_000,
    ).to_text()

    def case(rng: random.Random) -> object:
        return EnrolmentToken.from_text(mutated(rng, good.encode()).decode("latin-1"))

    flood(5000, case)


@given(st.binary(max_size=400), st.sampled_from(UPLOADS))
def test_any_bytes_are_an_upload_or_are_refused(
    data: bytes, read: Callable[[bytes], object]
) -> None:
    error = refusal(lambda: read(data))
    assert error is None or error.message.isprintable()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=10,
)


@given(JSON | st.binary(max_size=200), st.sampled_from(["RecordDict", "ArrayRecord", "Array"]))
def test_any_body_in_the_place_of_a_record_is_refused_or_read(body: object, kind: str) -> None:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    content = build(kind, (), raw)
    root = content
    contents = {object_id(content): content}
    if kind != RECORD_DICT:
        root = build(
            RECORD_DICT, [object_id(content)], json.dumps({"a": object_id(content)}).encode()
        )
        contents[object_id(root)] = root
    tree = Tree(root=object_id(root), contents=contents)
    error = refusal(lambda: decode(verify(tree, RECORD_DICT), limits=SMALL))
    assert error is None or error.code == "schema-mismatch"
