"""Adapter vectors: lossless, ordered, and orthonormal at the start."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.errors import AdapterIncompatible, InvalidValue
from shared.lora import AdapterSpec, Factor, initial_factors, module_names


def make_spec(r: int = 3, modules: int = 4, width: int = 8) -> AdapterSpec:
    factors = []
    for i in range(modules):
        factors.append(Factor(name=f"m{i}.lora_A.weight", kind="A", shape=(r, width + i)))
        factors.append(Factor(name=f"m{i}.lora_B.weight", kind="B", shape=(width - i, r)))
    return AdapterSpec(
        factors=tuple(sorted(factors, key=lambda f: f.name)),
        r=r,
        lora_alpha=2.0 * r,
        target_modules=("m",),
    )


@given(seed=st.integers(0, 2**32), kinds=st.sampled_from(["A", "B", "AB"]))
def test_flatten_and_unflatten_are_inverse(seed: int, kinds: str) -> None:
    spec = make_spec()
    vector = np.random.default_rng(seed).standard_normal(spec.size(kinds)).astype(np.float32)
    factors = spec.unflatten(vector, kinds)
    assert {f.name for f in spec.of_kind(kinds)} == set(factors)
    assert np.array_equal(spec.flatten(factors, kinds), vector)


def test_json_round_trip_and_digest() -> None:
    spec = make_spec()
    again = AdapterSpec.from_json(spec.to_json())
    assert again == spec
    assert again.digest() == spec.digest()
    assert make_spec(r=2).digest() != spec.digest()
    for broken in ({}, {**spec.to_json(), "factors": [["x"]]}, {**spec.to_json(), "r": "x"}):
        with pytest.raises(AdapterIncompatible):
            AdapterSpec.from_json(broken)


def test_wrong_shapes_are_refused() -> None:
    spec = make_spec()
    factors = spec.unflatten(np.zeros(spec.size(), dtype=np.float32))
    name = spec.factors[0].name
    with pytest.raises(AdapterIncompatible, match="expected shape"):
        spec.flatten({**factors, name: factors[name].T})
    del factors[name]
    with pytest.raises(AdapterIncompatible, match="nothing"):
        spec.flatten(factors)
    with pytest.raises(AdapterIncompatible):
        spec.unflatten(np.zeros(3, dtype=np.float32))


def test_unsorted_or_unpaired_factors_are_refused() -> None:
    a = Factor(name="a", kind="A", shape=(1, 2))
    b = Factor(name="b", kind="B", shape=(2, 1))
    for factors in ((), (b, a), (a, a), (a,), (a, Factor(name="c", kind="C", shape=(1, 1)))):
        with pytest.raises(AdapterIncompatible):
            AdapterSpec(factors=factors, r=1, lora_alpha=1.0, target_modules=("m",))


def test_a_is_orthonormal_and_b_is_zero() -> None:
    spec = make_spec(r=5, width=32)
    factors = initial_factors(spec, seed=3)
    for factor in spec.factors:
        value = factors[factor.name].astype(np.float64)
        if factor.kind == "A":
            assert np.allclose(value @ value.T, np.eye(5), atol=1e-6)
        else:
            assert not value.any()
    assert np.array_equal(
        spec.flatten(factors, "A"), spec.flatten(initial_factors(spec, seed=3), "A")
    )
    other = spec.flatten(initial_factors(spec, seed=4), "A")
    assert not np.allclose(spec.flatten(factors, "A"), other)


def test_rank_above_the_input_width_is_refused() -> None:
    with pytest.raises(InvalidValue, match=r"lora\.r=9"):
        initial_factors(make_spec(r=9, modules=1), seed=0)


def test_module_names() -> None:
    assert module_names(["a.b.q_proj", "a.c.q_proj", "v_proj"]) == ("q_proj", "v_proj")
