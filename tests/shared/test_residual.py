"""A residual on the wire and in a released adapter: whole, or refused."""

from __future__ import annotations

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.errors import AdapterIncompatible, SchemaMismatch
from shared.lora import AdapterSpec, Factor, initial_factors
from shared.residual import Residual, same, stacked, unstacked, widened
from shared.wire import (
    HEADER,
    ClientUpdate,
    Instruction,
    decode_instruction,
    decode_update,
    encode_instruction,
    encode_update,
)

SPEC = AdapterSpec(
    factors=tuple(
        Factor(name=f"{m}.lora_{k}.weight", kind=k, shape=(2, 5) if k == "A" else (4, 2))
        for m in ("a", "b")
        for k in ("A", "B")
    ),
    r=2,
    lora_alpha=3.0,
    target_modules=("a", "b"),
    rslora=True,
)


def residual(first: int, second: int, seed: int = 0) -> Residual:
    rng = np.random.default_rng(seed)
    return Residual.of(
        [(rng.standard_normal((4, k)), rng.standard_normal((k, 5))) for k in (first, second)]
    )


def told(beneath: Residual | None) -> Instruction:
    return Instruction(
        run_id="r",
        server_round=1,
        config_digest="c",
        plan_digest="p",
        vector=np.ones(3, dtype=np.float32),
        residual=beneath,
    )


@settings(max_examples=30, deadline=None)
@given(first=st.integers(0, 4), second=st.integers(0, 4), seed=st.integers(0, 1000))
def test_what_is_sent_is_read(first: int, second: int, seed: int) -> None:
    sent = residual(first, second, seed)
    found = decode_instruction(encode_instruction(told(sent)))
    assert same(found.residual, sent)
    assert found.residual is not None
    assert len(found.residual.factors(SPEC)) == 2


def test_none_is_none() -> None:
    assert decode_instruction(encode_instruction(told(None))).residual is None
    assert not same(None, residual(1, 1))
    assert not same(residual(1, 1), residual(1, 1, seed=1))


@pytest.mark.parametrize("ranks", [[-1, 1], [1.0, 1.0], [True, True], "ab", 3, [65_537], None])
def test_ranks_that_are_none_are_refused(ranks: object) -> None:
    records = encode_instruction(told(residual(1, 1)))
    header = dict(records.config_records[HEADER])
    del header["residual-ranks"]
    if ranks is not None:
        header["residual-ranks"] = ranks  # type: ignore[assignment]
    records[HEADER] = ConfigRecord(header)
    with pytest.raises(SchemaMismatch):
        decode_instruction(records)


def test_arrays_that_are_none_are_refused() -> None:
    records = encode_instruction(told(residual(1, 1)))
    records["residual"] = ArrayRecord({"vector": Array(np.ones(3))})
    with pytest.raises(SchemaMismatch):
        decode_instruction(records)
    del records["residual"]
    with pytest.raises(SchemaMismatch):
        decode_instruction(records)


def test_an_update_has_no_place_for_one() -> None:
    update = ClientUpdate(
        server_round=1, config_digest="c", stage="plain", vector=np.ones(3, dtype=np.float32)
    )
    records = encode_update(update)
    records["residual"] = ArrayRecord({"vector": Array(np.ones(3, dtype=np.float32))})
    with pytest.raises(SchemaMismatch):
        decode_update(records, server_round=1, config_digest="c", stage="plain", size=3)


@settings(max_examples=30, deadline=None)
@given(first=st.integers(0, 4), second=st.integers(0, 4))
def test_one_adapter_computes_both(first: int, second: int) -> None:
    beneath = residual(first, second)
    factors = initial_factors(SPEC, 1)
    rng = np.random.default_rng(2)
    factors = {n: v + rng.standard_normal(v.shape).astype(np.float32) for n, v in factors.items()}
    wide, found = stacked(SPEC, factors, beneath)
    assert wide.r == 2 + max(first, second)
    wide.flatten(found)
    for (a, b), (left, right) in zip(SPEC.pairs(), beneath.factors(SPEC), strict=True):
        np.testing.assert_allclose(
            wide.scale * found[b.name] @ found[a.name],
            SPEC.scale * (factors[b.name] @ factors[a.name] + left @ right),
            atol=1e-5,
        )
    again, back = unstacked(SPEC, wide, found)
    np.testing.assert_array_equal(SPEC.flatten(again), SPEC.flatten(factors))
    assert (back is None) == (first == second == 0)
    if back is not None:
        assert same(back, beneath)


def test_more_directions_than_a_layer_has_are_refused() -> None:
    wide = widened(SPEC, 7)
    factors = {f.name: np.ones(f.shape, dtype=np.float32) for f in wide.factors}
    with pytest.raises(AdapterIncompatible):
        unstacked(SPEC, wide, factors)
