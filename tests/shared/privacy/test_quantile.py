"""Quantile clipping: it moves the right way, and its count is paid for exactly."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest
from dp_accounting.pld import privacy_loss_distribution as pld
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import integrate, stats

from shared.errors import ConflictingSettings, InvalidValue, SchemaMismatch, SensitivityError
from shared.privacy.events import GaussianEvent, NeighboringRelation
from shared.privacy.mechanism import AdapterDelta, clip_update
from shared.privacy.noise import NoiseSource
from shared.privacy.quantile import QuantileClipping, QuantileGaussian, QuantileSum

CLIPPING = QuantileClipping(target=0.5, learning_rate=0.2, count_noise_stddev=5.0, initial=1.0)
RELATIONS = (NeighboringRelation.ADD_OR_REMOVE_ONE, NeighboringRelation.REPLACE_ONE)


def hockey_stick(epsilon: float, shift: float) -> float:
    """Delta of a normal against itself moved by ``shift`` deviations (Balle & Wang 2018)."""
    upper = stats.norm.cdf(shift / 2 - epsilon / shift)
    return float(upper - math.exp(epsilon) * stats.norm.cdf(-shift / 2 - epsilon / shift))


def of_norm(norm: float, dimension: int = 8) -> npt.NDArray[np.float32]:
    return np.full(dimension, norm / math.sqrt(dimension), dtype=np.float32)


def summed(norms: list[float], *, clip: float = 1.0) -> QuantileSum:
    """Sum one clipped update of each norm."""
    total = QuantileSum(dimension=8, clipping_norm=clip)
    for norm in norms:
        total.add(clip_update(AdapterDelta(vector=of_norm(norm)), clipping_norm=clip))
    return total


def quiet(clipping: QuantileClipping = CLIPPING, clip: float = 1.0) -> QuantileGaussian:
    """Return a mechanism with so little noise that arithmetic can be checked."""
    exact = replace(clipping, count_noise_stddev=1e-9)
    return QuantileGaussian(noise_multiplier=1e-10, clipping=exact, clipping_norm=clip)


@pytest.mark.parametrize("z", [0.5, 1.0, 4.0])
@pytest.mark.parametrize("sigma_b", [2.1, 5.0, 100.0])
def test_the_parts_compose_to_the_whole(z: float, sigma_b: float) -> None:
    """Oracle: dp-accounting composes the parts; the whole is a closed form."""
    parts = [
        pld.from_gaussian_mechanism(noise, value_discretization_interval=1e-3)
        for noise in (replace(CLIPPING, count_noise_stddev=sigma_b).split(z), 2.0 * sigma_b)
    ]
    both = parts[0].compose(parts[1])
    for epsilon in (0.1 / z, 1.0 / z, 2.5 / z):
        exact = hockey_stick(epsilon, 1.0 / z)
        assert both.get_delta_for_epsilon(epsilon) == pytest.approx(exact, rel=5e-3)


@pytest.mark.parametrize("z", [0.4, 1.0])
def test_update_and_bit_in_the_plane_are_one_gaussian(z: float) -> None:
    """Oracle: the hockey stick of two normal coordinates, integrated without any accountant."""
    sigma_b, epsilon = 0.8, 0.8
    across = 1.0 / replace(CLIPPING, count_noise_stddev=sigma_b).split(z)
    along = 0.5 / sigma_b
    grid = np.linspace(-8.0, 11.0, 1501)
    x, y = grid[:, None], grid[None, :]
    near = stats.norm.pdf(x - across) * stats.norm.pdf(y - along)
    far = stats.norm.pdf(x) * stats.norm.pdf(y)
    excess = np.maximum(near - math.exp(epsilon) * far, 0.0)
    found = float(integrate.trapezoid(integrate.trapezoid(excess, grid), grid))
    assert found == pytest.approx(hockey_stick(epsilon, 1.0 / z), rel=1e-3)


@given(z=st.floats(1e-3, 1e3), factor=st.floats(1.000001, 1e6))
def test_the_split_is_exact(z: float, factor: float) -> None:
    """``1/z**2`` is what the parts cost together; noise on the update only grows."""
    clipping = replace(CLIPPING, count_noise_stddev=z * factor / 2)
    of_update = clipping.split(z)
    assert of_update >= z
    assert of_update**-2 + (2 * clipping.count_noise_stddev) ** -2 == pytest.approx(z**-2, rel=1e-9)


@pytest.mark.parametrize("sigma_b", [0.25, 0.5])
def test_a_count_that_costs_everything_is_refused(sigma_b: float) -> None:
    clipping = replace(CLIPPING, count_noise_stddev=sigma_b)
    with pytest.raises(ConflictingSettings, match=r"2 \* count_noise_stddev > noise_multiplier"):
        clipping.split(1.0)
    with pytest.raises(ConflictingSettings):
        QuantileGaussian(noise_multiplier=1.0, clipping=clipping, clipping_norm=1.0)


def test_peers_bug_sign_reversed() -> None:
    """With every update above the clip it grows; with every update below it shrinks."""
    clipping = replace(CLIPPING, target=0.3)
    source = NoiseSource.seeded(1)
    above = quiet(clipping).release(summed([5.0] * 40), expected_count=40.0, source=source)
    below = quiet(clipping).release(summed([0.5] * 40), expected_count=40.0, source=source)
    assert above.fraction_within == pytest.approx(0.0, abs=1e-6)
    assert above.next_clip == pytest.approx(math.exp(0.2 * 0.3), rel=1e-6)
    assert below.fraction_within == pytest.approx(1.0, abs=1e-6)
    assert below.next_clip == pytest.approx(math.exp(-0.2 * 0.7), rel=1e-6)


@pytest.mark.parametrize("start", [0.05, 20.0])
def test_the_clip_finds_the_quantile(start: float) -> None:
    """From 20 times too small or too large, with real noise; oracle: the exact quantile."""
    rng = np.random.default_rng(7)
    clipping = QuantileClipping(
        target=0.7, learning_rate=0.2, count_noise_stddev=5.0, initial=start
    )
    clip, source, late = start, NoiseSource.seeded(2), []
    for number in range(90):
        norms = list(np.exp(0.5 * rng.standard_normal(100)))
        mechanism = QuantileGaussian(noise_multiplier=1.0, clipping=clipping, clipping_norm=clip)
        total = summed(norms, clip=clip)
        clip = mechanism.release(total, expected_count=100.0, source=source).next_clip
        if number >= 50:
            late.append(math.log(clip))
    assert float(np.mean(late)) == pytest.approx(0.5 * stats.norm.ppf(0.7), abs=0.05)


@pytest.mark.parametrize("relation", RELATIONS)
@given(
    vectors=hnp.arrays(
        np.float32, (4, 5), elements=st.floats(width=32, allow_nan=True, allow_infinity=True)
    ),
    clip=st.floats(1e-3, 1e3),
)
def test_one_client_moves_the_joint_release_by_one_over_z(
    relation: NeighboringRelation, vectors: npt.NDArray[np.float32], clip: float
) -> None:
    """The distance of neighbours, each part over its own noise: 1/z, or 2/z for replace-one."""
    z = 1.0
    mechanism = QuantileGaussian(
        noise_multiplier=z, clipping=replace(CLIPPING, initial=clip), clipping_norm=clip
    )
    replaced = relation is NeighboringRelation.REPLACE_ONE
    sums = []
    for rows in (vectors[:3], vectors[1:] if replaced else vectors[:2]):
        total = QuantileSum(dimension=5, clipping_norm=clip)
        for row in rows:
            total.add(clip_update(AdapterDelta(vector=row.copy()), clipping_norm=clip))
        values, centred = total.take()
        sums.append(np.append(values / mechanism.noise_stddev, centred / 5.0))
    times = 2.0 if replaced else 1.0
    assert np.linalg.norm(sums[0] - sums[1]) <= times / z * (1 + 1e-9)
    assert mechanism.sensitivity(relation) == times * clip
    assert mechanism.sensitivity(relation) / mechanism.noise_stddev <= times / z


@given(
    vector=hnp.arrays(np.float32, 6, elements=st.floats(-(2.0**60), 2.0**60, width=32)),
    clip=st.floats(1e-3, 1e3),
)
def test_the_bit_is_read_off_the_clipped_update(
    vector: npt.NDArray[np.float32], clip: float
) -> None:
    """Cut down to the clip is outside it, shorter by a millionth is within it."""
    total = QuantileSum(dimension=6, clipping_norm=clip)
    total.add(clip_update(AdapterDelta(vector=vector), clipping_norm=clip))
    norm = math.sqrt(math.fsum(float(v) ** 2 for v in vector))
    _, centred = total.take()
    if not abs(norm / clip - 1) < 3e-6:
        assert centred == (0.5 if norm < clip else -0.5)
    assert abs(centred) == 0.5


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_failed_client_counts_as_within(bad: float) -> None:
    total = summed([5.0])
    total.add(clip_update(AdapterDelta(vector=of_norm(bad)), clipping_norm=1.0))
    assert total.count == 2
    assert total.take()[1] == 0.0


def test_denominators_are_public() -> None:
    """An empty cohort says one half; ten of an expected forty count for ten of forty."""
    source = NoiseSource.seeded(3)
    empty = quiet().release(summed([]), expected_count=40.0, source=source)
    assert empty.fraction_within == pytest.approx(0.5, abs=1e-6)
    assert empty.next_clip == pytest.approx(1.0, rel=1e-6)
    ten = quiet().release(summed([0.5] * 10), expected_count=40.0, source=source)
    assert ten.fraction_within == pytest.approx(0.5 + 5 / 40, abs=1e-6)
    np.testing.assert_allclose(ten.mean.vector, of_norm(0.5) * 10 / 40, rtol=1e-5)


@given(
    clip=st.floats(1e-3, 1e3),
    fraction=st.floats(-1e300, 1e300),
    rate=st.floats(1e-6, 1e300),
    initial=st.floats(1e-3, 1e3),
)
def test_the_clip_stays_within_a_million(
    clip: float, fraction: float, rate: float, initial: float
) -> None:
    clipping = replace(CLIPPING, learning_rate=rate, initial=initial)
    moved = clipping.next_clip(clip, fraction)
    assert initial * 1e-6 * (1 - 1e-12) <= moved <= initial * 1e6 * (1 + 1e-12)
    QuantileGaussian(noise_multiplier=1.0, clipping=clipping, clipping_norm=moved)


def test_the_release_says_what_it_cost() -> None:
    mechanism = QuantileGaussian(
        noise_multiplier=1.5, clipping=CLIPPING, clipping_norm=2.0, sampling_probability=0.1
    )
    release = mechanism.release(
        summed([1.0], clip=2.0), expected_count=10.0, source=NoiseSource.seeded(4)
    )
    assert release.mean.event == GaussianEvent(noise_multiplier=1.5, sampling_probability=0.1)
    assert release.mean.noise_source == "seeded-simulation"
    assert release.mean.noise_stddev == CLIPPING.split(1.5) * 2.0 / 10.0
    assert release.next_clip == CLIPPING.next_clip(2.0, release.fraction_within)


def test_a_sum_is_released_once_and_under_its_own_clip() -> None:
    mechanism = QuantileGaussian(noise_multiplier=1.0, clipping=CLIPPING, clipping_norm=1.0)
    source = NoiseSource.seeded(5)
    with pytest.raises(SensitivityError, match="bound"):
        mechanism.release(summed([], clip=2.0), expected_count=1.0, source=source)
    total = summed([1.0])
    mechanism.release(total, expected_count=1.0, source=source)
    with pytest.raises(SensitivityError, match="already released"):
        mechanism.release(total, expected_count=1.0, source=source)
    with pytest.raises(InvalidValue):
        mechanism.release(summed([]), expected_count=0.0, source=source)


@pytest.mark.parametrize("clip", [0.9e-6, 1.1e6])
def test_a_clip_that_this_plan_cannot_have_is_refused(clip: float) -> None:
    with pytest.raises(SensitivityError, match="expected a number in"):
        QuantileGaussian(noise_multiplier=1.0, clipping=CLIPPING, clipping_norm=clip)


@given(
    st.lists(
        st.one_of(st.floats(0.0, 5.0), st.sampled_from([math.nan, math.inf, 1e30])), max_size=9
    )
)
def test_a_bit_is_the_same_whichever_way_an_update_comes(norms: list[float]) -> None:
    """Oracle: the norm of what ``clip_update`` makes of it, as numpy takes it."""
    total, expected = QuantileSum(dimension=8, clipping_norm=1.0), 0.0
    for norm in norms:
        raw = AdapterDelta(vector=of_norm(norm))
        total.clip_and_add(raw)
        found = clip_update(raw, clipping_norm=1.0).vector.astype(np.float64)
        expected += 0.5 if np.linalg.norm(found) <= 1.0 - 1e-6 else -0.5
    assert total.count == len(norms)
    values, centred = total.take()
    assert centred == expected
    stepwise, bits = summed(norms).take()
    assert bits == expected
    np.testing.assert_allclose(values, stepwise, rtol=0, atol=2**-22 * 9)


def test_the_stored_form() -> None:
    whole = QuantileClipping(target=0.5, learning_rate=1, count_noise_stddev=5, initial=1)
    assert QuantileClipping.from_json(whole.to_json()) == whole
    assert all(type(value) is float for value in whole.to_json().values())
    for broken in (None, {}, {**whole.to_json(), "more": 1}):
        with pytest.raises(SchemaMismatch):
            QuantileClipping.from_json(broken)


@pytest.mark.parametrize(
    "bad",
    [
        {"target": 0.0},
        {"target": 1.0},
        {"learning_rate": 0.0},
        {"count_noise_stddev": math.inf},
        {"initial": math.nan},
        {"initial": 1e305},
        {"initial": True},
    ],
)
def test_values_out_of_range_are_refused(bad: dict[str, float]) -> None:
    with pytest.raises(InvalidValue):
        QuantileClipping.from_json({**CLIPPING.to_json(), **bad})
