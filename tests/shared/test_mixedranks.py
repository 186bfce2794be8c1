"""Adapters of different ranks, nested: cut and widened against dense numpy."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.aggregation import CentralGaussian
from shared.configfile import resolve
from shared.deviceshares import assigned
from shared.errors import InvalidValue, SchemaMismatch
from shared.lora import AdapterSpec, Factor, Factors, Vector, initial_factors
from shared.mixedranks import MixedRanks, mixed_ranks
from shared.privacy.noise import NoiseSource
from shared.privacy.planning import make_plan
from tests.integration.scenario import TABLES

OUT, IN, R = 5, 7, 4
CLIP = 1.5
KINDS = ("A", "B", "AB")
ranks_of_clients = st.lists(st.integers(1, R), min_size=1, max_size=12)


def spec_of(*, head: bool = False) -> AdapterSpec:
    factors = [
        Factor(name="m.lora_A.weight", kind="A", shape=(R, IN)),
        Factor(name="m.lora_B.weight", kind="B", shape=(OUT, R)),
        Factor(name="n.lora_A.weight", kind="A", shape=(R, OUT)),
        Factor(name="n.lora_B.weight", kind="B", shape=(IN, R)),
    ]
    if head:
        factors.insert(0, Factor(name="classifier.weight", kind="B", shape=(2, OUT)))
    return AdapterSpec(
        factors=tuple(factors),
        r=R,
        lora_alpha=8.0,
        target_modules=("m", "n"),
        head="classifier" if head else "",
    )


def mixed(*ranks: int, head: bool = False) -> MixedRanks:
    return MixedRanks(spec_of(head=head), np.array(ranks, dtype=np.int64))


def vectors(size: int, seed: int, count: int = 1) -> list[Vector]:
    rng = np.random.default_rng(seed)
    return [rng.standard_normal(size).astype(np.float32) for _ in range(count)]


def cut(factors: Factors, r: int) -> Factors:
    """The first rows of A and columns of B; a head whole."""
    return {
        name: f if "lora" not in name else f[:r] if "lora_A" in name else f[:, :r]
        for name, f in factors.items()
    }


@pytest.mark.parametrize("head", [False, True])
@given(r=st.integers(1, R), kinds=st.sampled_from(KINDS), seed=st.integers(0, 999))
def test_narrow_is_slicing_and_widen_its_inverse(head: bool, r: int, kinds: str, seed: int) -> None:
    ranks, spec = mixed(r, R, head=head), spec_of(head=head)
    (whole,) = vectors(spec.size(kinds), seed)
    narrow = ranks.narrow(whole, r, kinds)
    expected = cut(spec.unflatten(whole, kinds), r)
    found = ranks.spec_at(r).unflatten(narrow, kinds)
    assert expected.keys() == found.keys()
    for name, factor in found.items():
        np.testing.assert_array_equal(factor, expected[name])
    wide = ranks.widen(narrow, r, kinds)
    np.testing.assert_array_equal(ranks.narrow(wide, r, kinds), narrow)
    assert np.count_nonzero(wide) == np.count_nonzero(narrow)
    assert np.linalg.norm(wide) == pytest.approx(np.linalg.norm(narrow), rel=1e-6)
    assert ranks.spec_at(r).scale == pytest.approx(spec.scale)
    assert ranks.spec_of(narrow, kinds).r == r
    if r == R:
        assert wide is narrow is whole


@given(of=ranks_of_clients, seed=st.integers(0, 999))
def test_the_mean_of_widened_updates_is_the_mean_of_products(of: list[int], seed: int) -> None:
    """The scale of the largest rank, outside of the mean; alpha / r_i inside of it is wrong."""
    ranks, spec = mixed(*of), spec_of()
    frozen = initial_factors(spec, 3)
    drawn = vectors(spec.size("B"), seed, len(of))
    own = [ranks.narrow(v, r, "B") for v, r in zip(drawn, of, strict=True)]
    mean = spec.unflatten(
        np.mean(
            [ranks.widen(v, r, "B").astype(np.float64) for v, r in zip(own, of, strict=True)], 0
        ),
        "B",
    )
    for stem in ("m", "n"):
        a, b = f"{stem}.lora_A.weight", f"{stem}.lora_B.weight"
        factors = [ranks.spec_at(r).unflatten(v, "B")[b] for v, r in zip(own, of, strict=True)]
        products = [f @ frozen[a][:r] for f, r in zip(factors, of, strict=True)]
        dense = spec.scale * np.mean(products, 0)
        np.testing.assert_allclose(spec.scale * mean[b] @ frozen[a], dense, atol=1e-5)
        trap = np.mean([spec.lora_alpha / r * p for p, r in zip(products, of, strict=True)], 0)
        if min(of) < R:
            assert np.abs(trap - dense).max() > 1e-3


@given(of=ranks_of_clients, data=st.data())
def test_one_client_moves_the_sum_by_no_more_than_the_clip(
    of: list[int], data: st.DataObject
) -> None:
    """Whatever it sends, and whatever its rank: added or removed, under the same noise."""
    ranks, size = mixed(*of), spec_of().size("B")
    plan = make_plan(
        mode="client-central",
        unit="client",
        neighboring_relation="add-or-remove-one",
        delta=1e-3,
        noise_multiplier=1.0,
        clipping_norm=CLIP,
        sampling_probability=0.5,
        rounds=1,
        population=10,
    )
    own = [ranks.narrow(v, r, "B") for v, r in zip(vectors(size, 1, len(of)), of, strict=True)]
    length = data.draw(st.floats(0, 1e30, allow_subnormal=False))
    direction = own[-1] / np.linalg.norm(own[-1])
    with np.errstate(over="ignore"):
        own[-1] = (length * direction).astype(np.float32)
    released = []
    for present in (len(of), len(of) - 1):
        aggregator = CentralGaussian(size, plan=plan, source=NoiseSource.seeded(0))
        for vector, r in list(zip(own, of, strict=True))[:present]:
            aggregator.add(ranks.widen(vector, r, "B"))
        found = aggregator.release()
        assert found is not None
        released.append(found.vector)
    moved = np.linalg.norm(released[0] - released[1]) * plan.expected_cohort
    assert moved <= CLIP * (1 + 1e-6)


def test_weights_before_the_noise_would_move_a_column_by_more_than_the_clip() -> None:
    """Why a mean over holders is taken of what was released: one client, all in the last column."""
    ranks, spec = mixed(1, 1, 1, R), spec_of()
    factors = {f.name: np.zeros(f.shape, np.float32) for f in spec.of_kind("B")}
    factors["m.lora_B.weight"][0, -1] = CLIP
    update = spec.flatten(factors, "B")
    assert np.linalg.norm(update) == CLIP
    assert np.linalg.norm(update * ranks.per_holder("B")) == pytest.approx(4 * CLIP)


@pytest.mark.parametrize("kinds", KINDS)
@given(of=ranks_of_clients)
def test_per_holder_divides_by_who_has_the_column(kinds: str, of: list[int]) -> None:
    ranks, spec = mixed(*of, head=True), spec_of(head=True)
    ones = [ranks.widen(np.ones(ranks.size(r, kinds), np.float32), r, kinds) for r in of]
    holders = np.sum(ones, axis=0)
    weights = ranks.per_holder(kinds)
    assert weights.shape == (spec.size(kinds),)
    held = holders > 0
    np.testing.assert_allclose(np.mean(ones, axis=0)[held] * weights[held], 1.0, rtol=1e-6)
    np.testing.assert_array_equal(weights[~held], 1.0)


def test_a_scenario_deals_ranks_by_its_shares() -> None:
    said = ["lora.r=4", "devices.mix={pi5 = 0.25, laptop = 0.75}", "devices.ranks={pi5 = 1}"]
    config = resolve(TABLES, said, source="test").config
    ranks = mixed_ranks(config, spec_of())
    assert ranks is not None
    assert ranks.counts == {1: 3, 4: 9}
    names = assigned({"pi5": 0.25, "laptop": 0.75}, population=12, seed=5)
    assert [ranks.of(i) for i in range(12)] == [1 if name == "pi5" else 4 for name in names]
    assert ranks.of(12) == 4
    assert mixed_ranks(resolve(TABLES, said[:2], source="test").config, spec_of()) is None


def test_what_is_no_clients_is_refused() -> None:
    ranks = mixed(2, 4)
    for call in (
        lambda: ranks.narrow(np.zeros(3, np.float32), 2, "B"),
        lambda: ranks.widen(np.zeros(3, np.float32), 2, "B"),
        lambda: ranks.spec_of(np.zeros(ranks.size(3, "B"), np.float32), "B"),
    ):
        with pytest.raises(SchemaMismatch):
            call()
    for wrong in ([], [0], [R + 1]):
        with pytest.raises(InvalidValue):
            mixed(*wrong)
