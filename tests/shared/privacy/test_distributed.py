"""Encoding, shares and decoding. Oracles: Python's unbounded integers and fractions."""

from __future__ import annotations

import copy
import math
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.errors import ConflictingSettings, InvalidValue, SensitivityError
from shared.privacy.distributed import (
    DistributedSkellam,
    EncodedDelta,
    NoisedShare,
    choose_grid,
    encode_update,
    noise_share,
    to_signed,
    top_up,
    wire_words,
)
from shared.privacy.encoding import LARGEST_GRID, LARGEST_VARIANCE, _shrink
from shared.privacy.events import MAX_DIMENSION, SkellamEvent
from shared.privacy.mechanism import AdapterDelta, ClippedDelta, clip_update
from shared.privacy.noise import NoiseSource

FINE = DistributedSkellam(
    noise_multiplier=1.5, clipping_norm=0.5, grid=2**16, sampling_probability=0.1
)


class RecordingSource(NoiseSource):
    """A source that remembers the variances that it was asked for."""

    __slots__ = ("variances",)

    def skellam(self, variance: float, n: int) -> npt.NDArray[np.int64]:
        self.variances = [*getattr(self, "variances", []), variance]
        return super().skellam(variance, n)


class AllUpSource(NoiseSource):
    """A source whose coins always round up."""

    __slots__ = ()

    def uniform(self, n: int) -> npt.NDArray[np.float64]:
        return np.zeros(n)


def clipped(values: Any, bound: float = 1.0) -> ClippedDelta:
    delta = AdapterDelta(vector=np.asarray(values, dtype=np.float32))
    return clip_update(delta, clipping_norm=bound)


def squared_norm(values: npt.NDArray[np.int64]) -> int:
    return sum(int(v) ** 2 for v in values)


class TestEncoding:
    @given(
        values=st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=60),
        grid=st.integers(1, LARGEST_GRID),
        bound=st.floats(1e-3, 1e3),
        seed=st.integers(0, 2**32),
    )
    @settings(max_examples=300, deadline=None)
    def test_the_norm_never_exceeds_the_grid(
        self, values: list[float], grid: int, bound: float, seed: int
    ) -> None:
        delta = clipped(values, bound)
        encoded = encode_update(delta, grid=grid, source=NoiseSource.seeded(seed))
        assert squared_norm(encoded.integers) <= grid**2
        assert encoded.integers.dtype == np.int64
        scale = _shrink(delta.vector.astype(np.float64) * (grid / bound), grid) * grid / bound
        assert np.abs(encoded.integers - delta.vector * scale).max() < 1.0 + 1e-6

    @pytest.mark.parametrize("dimension", [1, 2, 100, 5_000])
    @pytest.mark.parametrize("grid", [1, 3, 64, 2**18])
    def test_an_update_at_the_bound_keeps_within_it(self, dimension: int, grid: int) -> None:
        delta = clipped(100 * NoiseSource.seeded(1).normal(dimension))
        for seed in range(20):
            encoded = encode_update(delta, grid=grid, source=NoiseSource.seeded(seed))
            assert squared_norm(encoded.integers) <= grid**2

    def test_on_a_fine_grid_little_is_lost(self) -> None:
        delta = clipped(NoiseSource.seeded(1).normal(200_000))
        encoded = encode_update(delta, grid=2**18, source=NoiseSource.seeded(2))
        kept = encoded.integers / 2**18
        assert float(np.linalg.norm(kept)) > 1 - 2e-5
        assert np.abs(kept - delta.vector).max() < 1.1 / 2**18

    def test_well_inside_the_bound_nothing_is_shrunk(self) -> None:
        values = np.array([0.25, -0.125, 0.0, 0.5])
        encoded = encode_update(clipped(values), grid=2**10, source=NoiseSource.seeded(1))
        assert encoded.integers.tolist() == [256, -128, 0, 512]

    def test_rounding_has_no_bias(self) -> None:
        """Rounding to nearest would give 0, 0, 1 and 0 instead; 5 deviations over 40,000 coins."""
        fractions = np.array([0.3, -0.3, 0.9, 0.01])
        values = np.tile(fractions, 10_000) / 2**12
        encoded = encode_update(clipped(values), grid=2**12, source=NoiseSource.seeded(5))
        means = encoded.integers.reshape(-1, 4).mean(axis=0)
        spread = np.sqrt(np.abs(fractions) * (1 - np.abs(fractions)) / 10_000)
        assert (np.abs(means - fractions) < 5 * spread).all()
        nearest = np.round(fractions)
        assert (np.abs(nearest - fractions) > 5 * spread).all()

    def test_repeating_the_rounding_leaves_no_visible_bias(self) -> None:
        """At the bound, where a rounding may be repeated: mean of 4,000 encodings, 5 deviations."""
        delta = clipped(NoiseSource.seeded(3).normal(40) + 2.0)
        grid, source = 64, NoiseSource.seeded(4)
        exact = delta.vector.astype(np.float64) * grid
        exact *= _shrink(exact, grid)
        drawn = [encode_update(delta, grid=grid, source=source).integers for _ in range(4_000)]
        below = exact - np.floor(exact)
        spread = np.sqrt(below * (1 - below) / 4_000)
        assert (np.abs(np.mean(drawn, axis=0) - exact) < 5 * spread + 1e-12).all()

    def test_bad_luck_ends_in_truncation(self) -> None:
        """Coins that always round up break the bound four times; then all goes towards zero."""
        delta = clipped(np.full(300, 1.0))
        source = AllUpSource(bytes(32), kind="seeded-simulation")
        encoded = encode_update(delta, grid=100, source=source)
        exact = delta.vector.astype(np.float64) * 100
        expected = np.trunc(exact * _shrink(exact, 100)).astype(np.int64)
        assert encoded.integers.tolist() == expected.tolist() == [5] * 300

    def test_zero_and_what_is_not_finite_give_zero(self) -> None:
        source = NoiseSource.seeded(1)
        assert not encode_update(clipped([0.0, 0.0]), grid=8, source=source).integers.any()
        for bad in (math.nan, math.inf, -math.inf):
            delta = clipped([0.5, 0.5])
            delta.vector.setflags(write=True)
            delta.vector[0] = bad
            assert not encode_update(delta, grid=8, source=source).integers.any()

    def test_an_update_changed_after_clipping_is_bounded_again(self) -> None:
        delta = clipped([0.5, 0.5])
        delta.vector.setflags(write=True)
        delta.vector[:] = 1e30
        encoded = encode_update(delta, grid=1000, source=NoiseSource.seeded(1))
        assert 900**2 < squared_norm(encoded.integers) <= 1000**2

    @pytest.mark.parametrize("grid", [0, -1, 1.0, True, "8", LARGEST_GRID + 1])
    def test_a_grid_is_an_integer_in_range(self, grid: Any) -> None:
        with pytest.raises(InvalidValue, match="grid"):
            encode_update(clipped([0.5]), grid=grid, source=NoiseSource.seeded(1))

    def test_the_type_is_the_proof(self) -> None:
        good = np.array([3, 4], dtype=np.int64)
        assert EncodedDelta(integers=good, grid=5, bound=1.0).grid == 5
        assert not good.flags.writeable
        for bad in ([3, 5], [6, 0], [-6, 0], [2**62, 2**62]):
            with pytest.raises(SensitivityError, match="grid"):
                EncodedDelta(integers=np.array(bad, dtype=np.int64), grid=5, bound=1.0)
        for shape in (np.zeros((2, 2), np.int64), np.zeros(2, np.int32), [1, 2]):
            with pytest.raises(SensitivityError, match="int64"):
                EncodedDelta(integers=shape, grid=5, bound=1.0)  # type: ignore[arg-type]
        with pytest.raises(InvalidValue, match="bound"):
            EncodedDelta(integers=good, grid=5, bound=0.0)

    def test_norms_beyond_64_bits_do_not_wrap_into_the_bound(self) -> None:
        """2**28 coordinates of 2**18 have squares that sum to 2**64, which int64 takes for 0.

        The array is one number seen from everywhere, so that the test needs no memory.
        """
        many = np.lib.stride_tricks.as_strided(np.array([2**18]), shape=(2**28,), strides=(0,))
        with pytest.raises(SensitivityError):
            EncodedDelta(integers=many, grid=2**18, bound=1.0)


class TestNothingLeavesWithoutNoise:
    def test_an_encoded_update_has_no_other_form(self) -> None:
        encoded = encode_update(clipped([0.5, 0.1]), grid=64, source=NoiseSource.seeded(1))
        for convert in (np.asarray, bytes, copy.copy, copy.deepcopy):
            with pytest.raises(SensitivityError, match="no noise"):
                convert(encoded)
        assert "32" not in repr(encoded)
        assert "integers" not in repr(encoded)

    def test_only_a_noised_share_may_be_sent(self) -> None:
        encoded = encode_update(clipped([0.5, 0.1]), grid=64, source=NoiseSource.seeded(1))
        with pytest.raises(SensitivityError, match="EncodedDelta was to be sent"):
            wire_words(encoded)  # type: ignore[arg-type]
        share = noise_share(encoded, variance=100.0, cohort=4, source=NoiseSource.seeded(2))
        assert wire_words(share) is share.words
        assert not share.words.flags.writeable
        assert "words" not in repr(share)

    def test_stages_cannot_be_skipped(self) -> None:
        raw, source = AdapterDelta(vector=np.ones(2, np.float32)), NoiseSource.seeded(1)
        with pytest.raises(SensitivityError, match="AdapterDelta was to be encoded"):
            encode_update(raw, grid=8, source=source)  # type: ignore[arg-type]
        with pytest.raises(SensitivityError, match="ClippedDelta was to be noised"):
            noise_share(clipped([0.5]), variance=1.0, cohort=3, source=source)  # type: ignore[arg-type]
        with pytest.raises(SensitivityError, match="uint32"):
            NoisedShare(words=np.ones(2, np.int64), noise_source=source.kind)

    def test_a_vector_longer_than_the_accounting_covers_is_refused(self) -> None:
        """One word, repeated by a stride of zero: it needs no memory."""
        longest = np.broadcast_to(np.uint32(0), MAX_DIMENSION)
        NoisedShare(words=longest, noise_source="os-entropy")
        longer = np.broadcast_to(np.uint32(0), MAX_DIMENSION + 1)
        with pytest.raises(SensitivityError, match="2147483647"):
            NoisedShare(words=longer, noise_source="os-entropy")


class TestShares:
    def test_a_share_is_the_integers_and_noise_modulo_two_to_the_32(self) -> None:
        encoded = encode_update(clipped([0.5, -0.5, 0.0]), grid=64, source=NoiseSource.seeded(1))
        share = noise_share(encoded, variance=1e6, cohort=10, source=NoiseSource.seeded(2))
        noise = NoiseSource.seeded(2).skellam(1e5, 3)
        expected = [(int(e) + int(v)) % 2**32 for e, v in zip(encoded.integers, noise, strict=True)]
        assert share.words.tolist() == expected
        assert share.noise_source == "seeded-simulation"

    @pytest.mark.parametrize(("name", "bad"), [("variance", 0.0), ("variance", math.nan)])
    def test_a_variance_is_positive(self, name: str, bad: float) -> None:
        encoded = encode_update(clipped([0.5]), grid=64, source=NoiseSource.seeded(1))
        with pytest.raises(InvalidValue, match=name):
            noise_share(encoded, variance=bad, cohort=3, source=NoiseSource.seeded(1))
        with pytest.raises(InvalidValue, match=name):
            top_up(3, variance=bad, cohort=3, survivors=2, source=NoiseSource.seeded(1))

    @pytest.mark.parametrize("bad", [0, -1, 2.0, True, None])
    def test_a_cohort_is_a_positive_integer(self, bad: Any) -> None:
        encoded = encode_update(clipped([0.5]), grid=64, source=NoiseSource.seeded(1))
        with pytest.raises(InvalidValue, match="cohort"):
            noise_share(encoded, variance=1.0, cohort=bad, source=NoiseSource.seeded(1))
        for name in ("dimension", "cohort", "survivors"):
            sizes: dict[str, Any] = {"dimension": 3, "cohort": 5, "survivors": 2, name: bad}
            with pytest.raises(InvalidValue, match=name):
                top_up(**sizes, variance=1.0, source=NoiseSource.seeded(1))

    def test_no_more_survivors_than_were_announced(self) -> None:
        with pytest.raises(InvalidValue, match="survivors=4"):
            top_up(3, variance=1.0, cohort=3, survivors=4, source=NoiseSource.seeded(1))

    @pytest.mark.parametrize(("cohort", "survivors"), [(3, 3), (3, 1), (7, 5), (100, 67), (1, 1)])
    def test_dropouts_leave_the_whole_variance(self, cohort: int, survivors: int) -> None:
        """What was drawn by the survivors and by the server adds up to V, to 1e-14."""
        source = RecordingSource(bytes(32), kind="seeded-simulation")
        total = np.zeros(2, dtype=np.uint32)
        for _ in range(survivors):
            total += FINE.share(clipped([0.1, 0.1], 0.5), cohort=cohort, source=source).words
        FINE.release(total, cohort=cohort, survivors=survivors, expected_count=5.0, source=source)
        drawn = sum((Fraction(v) for v in source.variances), Fraction(0))
        exact = (Fraction(3, 2) * 2**16) ** 2
        assert abs(drawn / exact - 1) < Fraction(1, 10**14)
        assert len(source.variances) == survivors + (survivors < cohort)
        assert FINE.variance == float(exact)


class TestRelease:
    @given(
        st.lists(st.integers(-(2**31), 2**31 - 1), min_size=1, max_size=20),
        st.lists(st.integers(-(2**40), 2**40), min_size=1, max_size=20),
    )
    @settings(deadline=None)
    def test_words_are_integers_modulo_two_to_the_32(
        self, small: list[int], large: list[int]
    ) -> None:
        words = np.array([v % 2**32 for v in small], dtype=np.uint32)
        assert to_signed(words).tolist() == small
        wrapped = np.array([v % 2**32 for v in large], dtype=np.uint32)
        centred = [(v + 2**31) % 2**32 - 2**31 for v in large]
        assert to_signed(wrapped).tolist() == centred

    def test_the_sum_of_shares_is_exact(self) -> None:
        """Five of seven clients, every integer recomputed by hand from the same seeds."""
        cohort, alive, dimension = 7, 5, 50
        total = np.zeros(dimension, dtype=np.uint32)
        exact = [0] * dimension
        for client in range(alive):
            delta = clipped(NoiseSource.seeded(client).normal(dimension), 0.5)
            share = FINE.share(delta, cohort=cohort, source=NoiseSource.seeded(9, client))
            total += share.words
            source = NoiseSource.seeded(9, client)
            integers = encode_update(delta, grid=FINE.grid, source=source).integers
            noise = source.skellam(FINE.variance / cohort, dimension)
            exact = [e + int(i) + int(v) for e, i, v in zip(exact, integers, noise, strict=True)]
        server = NoiseSource.seeded(10)
        extra = server.skellam(FINE.variance * (2 / 7), dimension)
        released = FINE.release(
            total, cohort=cohort, survivors=alive, expected_count=4.0, source=NoiseSource.seeded(10)
        )
        unit = Fraction(1, 2) / 2**16 / 4
        expected = [float((e + int(v)) * unit) for e, v in zip(exact, extra, strict=True)]
        assert released.vector == pytest.approx(np.array(expected, np.float32), rel=1e-6)
        assert released.vector.dtype == np.float32
        assert released.noise_stddev == 1.5 * 0.5 / 4.0
        assert released.noise_source == "seeded-simulation"
        assert released.event == SkellamEvent(
            noise_multiplier=1.5, grid=2**16, sampling_probability=0.1
        )

    def test_without_noise_in_the_way_the_mean_comes_back(self) -> None:
        quiet = DistributedSkellam(noise_multiplier=1e-4, clipping_norm=2.0, grid=2**18)
        deltas = [clipped(NoiseSource.seeded(c).normal(30), 2.0) for c in range(4)]
        total = np.zeros(30, dtype=np.uint32)
        for c, delta in enumerate(deltas):
            total += quiet.share(delta, cohort=4, source=NoiseSource.seeded(c, "n")).words
        released = quiet.release(
            total, cohort=4, survivors=4, expected_count=4.0, source=NoiseSource.seeded(1)
        )
        mean = np.mean([delta.vector for delta in deltas], axis=0)
        assert np.abs(released.vector - mean).max() < 1e-3

    def test_wrap_around_only_touches_what_already_carries_noise(self) -> None:
        """A noised sum beyond 31 bits gives the release of its residue: a function of the sum."""
        noised_sum = [2**31 + 5, -(2**31) - 1, 3 * 2**32 + 7, 12]
        total = np.array([v % 2**32 for v in noised_sum], dtype=np.uint32)
        released = FINE.release(
            total, cohort=3, survivors=3, expected_count=1.0, source=NoiseSource.seeded(1)
        )
        unit = 0.5 / 2**16
        expected = [unit * v for v in (5 - 2**31, 2**31 - 1, 7, 12)]
        assert released.vector == pytest.approx(np.array(expected, np.float32), rel=1e-6)

    def test_the_sum_itself_is_not_modified(self) -> None:
        total = np.arange(4, dtype=np.uint32)
        FINE.release(total, cohort=5, survivors=2, expected_count=1.0, source=NoiseSource.seeded(1))
        assert total.tolist() == [0, 1, 2, 3]

    def test_bad_sums_and_counts_are_refused(self) -> None:
        terms: dict[str, Any] = {"cohort": 3, "survivors": 3, "source": NoiseSource.seeded(1)}
        for bad in (np.ones(3), np.ones((1, 3), np.uint32), np.ones(0, np.uint32), [1, 2]):
            with pytest.raises(SensitivityError, match="uint32"):
                FINE.release(bad, expected_count=1.0, **terms)  # type: ignore[arg-type]
        for count in (0, -1.0, math.inf, math.nan):
            with pytest.raises(InvalidValue, match="expected_count"):
                FINE.release(np.ones(3, np.uint32), expected_count=count, **terms)

    def test_a_delta_of_another_bound_is_refused(self) -> None:
        with pytest.raises(SensitivityError, match=r"bound=1\.0"):
            FINE.share(clipped([0.1], 1.0), cohort=3, source=NoiseSource.seeded(1))

    @pytest.mark.parametrize(
        "change",
        [
            {"noise_multiplier": 0.0},
            {"noise_multiplier": math.nan},
            {"noise_multiplier": 1e6},
            {"clipping_norm": -1.0},
            {"grid": 2**19},
            {"grid": 0},
            {"sampling_probability": 0.0},
        ],
    )
    def test_settings_are_in_range(self, change: dict[str, Any]) -> None:
        good = {"noise_multiplier": 1.0, "clipping_norm": 1.0, "grid": 2**18}
        with pytest.raises(InvalidValue):
            DistributedSkellam(**{**good, **change})


class TestChoiceOfGrid:
    @given(st.floats(1e-3, 1e6), st.integers(1, 10**7))
    def test_it_is_the_finest_that_does_not_wrap(self, z: float, cohort: int) -> None:
        def fits(grid: int) -> bool:
            room = cohort * grid + 10 * Fraction(z) * grid < 2**31
            return room and (Fraction(z) * grid) ** 2 <= Fraction(LARGEST_VARIANCE)

        grid = choose_grid(z, cohort)
        assert grid.bit_count() == 1
        assert fits(grid)
        assert grid == 2**18 or not fits(2 * grid)
        DistributedSkellam(noise_multiplier=z, clipping_norm=1.0, grid=grid)

    @pytest.mark.parametrize(
        ("z", "cohort", "grid"),
        [(1.0, 100, 2**18), (1.0, 8_000, 2**18), (1.0, 8_192, 2**17), (1.0, 10**6, 2**11)],
    )
    def test_known_choices(self, z: float, cohort: int, grid: int) -> None:
        assert choose_grid(z, cohort) == grid

    @pytest.mark.parametrize(("z", "cohort"), [(1.0, 2**31), (1e9, 10)])
    def test_no_grid_is_an_error(self, z: float, cohort: int) -> None:
        with pytest.raises(ConflictingSettings, match="no integer grid"):
            choose_grid(z, cohort)

    @pytest.mark.parametrize(("z", "cohort"), [(0.0, 3), (math.nan, 3), (1.0, 0), (1.0, 2.5)])
    def test_numbers_out_of_range_are_refused(self, z: float, cohort: Any) -> None:
        with pytest.raises(InvalidValue):
            choose_grid(z, cohort)
