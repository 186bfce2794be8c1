"""Mean products as factors, against dense numpy."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.factored import ProductSum, balanced_at_a, completed
from server.flexlora import ProductMean
from shared.errors import ConflictingSettings, SchemaMismatch
from shared.lora import AdapterSpec, Factor, Vector, initial_factors
from shared.privacy.plan import PrivacyPlan
from shared.privacy.planning import make_plan

OUT, IN, R = 9, 14, 3
SPEC = AdapterSpec(
    factors=(
        Factor(name="m.lora_A.weight", kind="A", shape=(R, IN)),
        Factor(name="m.lora_B.weight", kind="B", shape=(OUT, R)),
        Factor(name="n.lora_A.weight", kind="A", shape=(R, OUT)),
        Factor(name="n.lora_B.weight", kind="B", shape=(IN, R)),
    ),
    r=R,
    lora_alpha=6.0,
    target_modules=("m", "n"),
)
PLAIN = make_plan(mode="none", rounds=1, population=10)
START = SPEC.flatten(initial_factors(SPEC, 3))


def central() -> PrivacyPlan:
    return make_plan(
        mode="client-central",
        unit="client",
        neighboring_relation="add-or-remove-one",
        delta=1e-3,
        noise_multiplier=1.0,
        clipping_norm=1.0,
        sampling_probability=0.5,
        rounds=1,
        population=10,
    )


def pairs(count: int, r: int, seed: int) -> list[tuple[np.ndarray, np.ndarray]]:
    rng = np.random.default_rng(seed)
    return [
        (
            rng.standard_normal((OUT, r)).astype(np.float32),
            rng.standard_normal((r, IN)).astype(np.float32),
        )
        for _ in range(count)
    ]


@settings(max_examples=25, deadline=None)
@given(count=st.integers(1, 60), r=st.integers(1, 4), seed=st.integers(0, 10**6))
def test_a_sum_of_products_is_exact_however_often_it_was_compressed(
    count: int, r: int, seed: int
) -> None:
    total = ProductSum(OUT, IN)
    dense = np.zeros((OUT, IN))
    for b, a in pairs(count, r, seed):
        total.add(b, a)
        dense += b.astype(np.float64) @ a.astype(np.float64)
    found = total.decomposed()
    again = (found.left * found.values) @ found.right
    assert np.abs(again - dense).max() <= 1e-10 * np.abs(dense).max()
    np.testing.assert_allclose(found.left.T @ found.left, np.eye(found.values.size), atol=1e-9)
    np.testing.assert_allclose(found.right @ found.right.T, np.eye(found.values.size), atol=1e-9)


def test_memory_does_not_grow_with_the_clients() -> None:
    """The stack never holds more than the first limit and one client, at rank 9."""
    total, most = ProductSum(OUT, IN), 0
    for b, a in pairs(500, 4, 1):
        total.add(b, a)
        most = max(most, total.rank)
    assert most <= 68


def test_factors_of_another_layer_are_refused() -> None:
    (b, a), *_ = pairs(1, 2, 0)
    with pytest.raises(SchemaMismatch):
        ProductSum(OUT, IN).add(b[:, :1], a)
    with pytest.raises(SchemaMismatch):
        ProductSum(OUT + 1, IN).add(b, a)


def changed(client: int, start: Vector = START) -> Vector:
    rng = np.random.default_rng(client)
    return (0.3 * rng.standard_normal(start.size)).astype(np.float32)


def products(vector: np.ndarray) -> dict[str, np.ndarray]:
    found = SPEC.unflatten(vector)
    return {
        layer: found[f"{layer}.lora_B.weight"].astype(np.float64)
        @ found[f"{layer}.lora_A.weight"].astype(np.float64)
        for layer in ("m", "n")
    }


def released(updates: list[Vector], start: Vector = START) -> Vector:
    aggregator = ProductMean(SPEC, start, plan=PLAIN)
    for update in updates:
        aggregator.add(update)
    found = aggregator.release()
    assert found is not None
    assert found.count == len(updates)
    return (start + found.vector).astype(np.float32)


@pytest.mark.parametrize("clients", [1, 2, 7, 40])
def test_the_adapter_is_the_best_rank_r_of_the_mean_product(clients: int) -> None:
    """Eckart and Young: the truncated dense singular value decomposition, to 1e-5."""
    updates = [changed(client) for client in range(clients)]
    after = products(released(updates))
    for layer in ("m", "n"):
        mean = np.mean([products(START + update)[layer] for update in updates], axis=0)
        u, s, vt = np.linalg.svd(mean)
        best = (u[:, :R] * s[:R]) @ vt[:R]
        assert np.abs(after[layer] - best).max() <= 1e-5 * np.abs(best).max()


def test_a_mean_product_of_rank_r_is_kept_whole() -> None:
    """Clients that share A, as in the first step from a B of zero: nothing is cut off."""
    updates = []
    for client in range(8):
        update = SPEC.unflatten(changed(client))
        update = {n: v * (0 if "lora_A" in n else 1) for n, v in update.items()}
        updates.append(SPEC.flatten(update))
    after = products(released(updates))
    for layer in ("m", "n"):
        mean = np.mean([products(START + update)[layer] for update in updates], axis=0)
        assert np.abs(after[layer] - mean).max() <= 1e-5 * np.abs(mean).max()


def test_what_is_released_does_not_depend_on_the_basis_of_a_client() -> None:
    """B G and G^-1 A are the same product, and so is what becomes of it."""
    rng = np.random.default_rng(0)
    updates, turned = [], []
    for client in range(5):
        update = changed(client)
        factors = SPEC.unflatten(START + update)
        for layer in ("m", "n"):
            g = np.eye(R) + 0.2 * rng.standard_normal((R, R))
            b, a = factors[f"{layer}.lora_B.weight"], factors[f"{layer}.lora_A.weight"]
            factors[f"{layer}.lora_B.weight"] = (b @ g).astype(np.float32)
            factors[f"{layer}.lora_A.weight"] = np.linalg.solve(g, a).astype(np.float32)
        updates.append(update)
        turned.append(SPEC.flatten(factors) - START)
    np.testing.assert_allclose(released(updates), released(turned), atol=2e-5)


def test_the_same_updates_give_the_same_adapter_bit_for_bit() -> None:
    updates = [changed(client) for client in range(6)]
    np.testing.assert_array_equal(released(updates), released(updates))


def test_a_has_orthonormal_rows_and_stays_where_nothing_was_learned() -> None:
    after = released([np.zeros_like(START)])
    np.testing.assert_allclose(after, START, atol=1e-6)
    for name, factor in SPEC.unflatten(released([changed(1)])).items():
        if "lora_A" in name:
            np.testing.assert_allclose(factor @ factor.T, np.eye(R), atol=1e-5)


def test_an_update_that_is_not_finite_counts_as_none() -> None:
    bad = np.full_like(START, np.nan)
    good = changed(1)
    aggregator = ProductMean(SPEC, START, plan=PLAIN)
    assert not np.isfinite(aggregator.add(bad))
    aggregator.add(good)
    found = aggregator.release()
    assert found is not None
    np.testing.assert_array_equal(
        (START + found.vector).astype(np.float32), released([np.zeros_like(START), good])
    )
    with pytest.raises(SchemaMismatch):
        aggregator.add(good[1:])


def test_nobody_answered_and_modes_that_it_cannot_serve() -> None:
    assert ProductMean(SPEC, START, plan=PLAIN).release() is None
    with pytest.raises(ConflictingSettings, match="client-central"):
        ProductMean(SPEC, START, plan=central())


@settings(max_examples=25, deadline=None)
@given(k=st.integers(0, 3), zero=st.booleans(), seed=st.integers(0, 10**6))
def test_missing_rows_are_orthonormal_and_come_from_the_a_before(
    k: int, zero: bool, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    rows = np.linalg.qr(rng.standard_normal((IN, 3)))[0].T[:k]
    before = rng.standard_normal((3, IN)) * (0 if zero else 1)
    found = completed(rows, before)
    np.testing.assert_allclose(found @ found.T, np.eye(3), atol=1e-12)
    np.testing.assert_array_equal(found[:k], rows)
    if not zero:
        outside = found @ (
            np.eye(IN) - np.linalg.pinv(np.vstack([rows, before])) @ np.vstack([rows, before])
        )
        assert np.abs(outside).max() < 1e-8


def test_one_step_of_sgd_is_one_centralised_step() -> None:
    """Linear layer, squared error, B = 0: clients of equal size against their pooled data."""
    rng = np.random.default_rng(2)
    a0 = SPEC.unflatten(START)["m.lora_A.weight"].astype(np.float64)
    s, rate, clients, size = SPEC.lora_alpha / SPEC.r, 0.1, 6, 4
    x = rng.standard_normal((clients, IN, size))
    y = rng.standard_normal((clients, OUT, size))

    def step(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Return B after a step from zero on the mean squared error of y = s B A x."""
        return np.asarray(rate * s * y @ (a0 @ x).T / x.shape[1], dtype=np.float64)

    updates = []
    for client in range(clients):
        factors = {f.name: np.zeros(f.shape, dtype=np.float32) for f in SPEC.factors}
        factors["m.lora_B.weight"] = step(x[client], y[client]).astype(np.float32)
        updates.append(SPEC.flatten(factors))
    pooled = step(np.hstack(list(x)), np.hstack(list(y))) @ a0
    # Under fedavg, ffa and rolora the mean of B is the pooled B; under flexlora the product is.
    mean = SPEC.unflatten(np.mean(updates, axis=0))["m.lora_B.weight"] @ a0
    assert np.abs(mean - pooled).max() <= 1e-5 * np.abs(pooled).max()
    assert np.abs(products(released(updates))["m"] - pooled).max() <= 1e-5 * np.abs(pooled).max()


def test_rank_larger_than_a_layer_allows_is_cut_by_the_sum() -> None:
    total = ProductSum(OUT, IN)
    for b, a in pairs(1, 2, 5):
        total.add(b, a)
    b, a = balanced_at_a(total.decomposed(), 0.5, np.eye(4, IN))
    assert not b[:, 2:].any()
    (first_b, first_a), *_ = pairs(1, 2, 5)
    np.testing.assert_allclose(b @ a, 0.5 * (first_b @ first_a), atol=1e-6)
