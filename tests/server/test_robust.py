"""Robust rules against other people's arithmetic: numpy, scipy, and the papers' definitions."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import optimize, stats

from server import robust
from server.aggregation import LONGEST_UPDATE, RobustUpdates, UniformMean, make_aggregator
from server.robust import RULES, BoundedRows, RobustRule
from shared.configrobust import RobustName, attackers_among, fewest_updates
from shared.errors import ConflictingSettings, QuorumNotReached, SchemaMismatch
from shared.privacy.noise import NoiseSource
from shared.privacy.planning import make_plan

NAMES: tuple[RobustName, ...] = ("median", "trimmed-mean", "krum", "multi-krum", "geometric-median")
Matrix = NDArray[np.float32]


def rows_of(count: int, size: int, seed: int) -> Matrix:
    return np.random.default_rng(seed).standard_normal((count, size)).astype(np.float32)


def combine(name: RobustName, rows: Matrix, attackers: float | None) -> NDArray[np.float64]:
    return RobustRule(name=name, attackers=attackers).combine(list(rows))


def direct_krum_order(rows: Matrix, attackers: int) -> list[int]:
    """Return the rows from best to worst, by the definition of Blanchard et al."""
    wide = rows.astype(np.float64)
    scores = []
    for i, row in enumerate(wide):
        away = sorted(float(np.sum((row - o) ** 2)) for j, o in enumerate(wide) if j != i)
        scores.append(sum(away[: len(rows) - attackers - 2]))
    return sorted(range(len(rows)), key=scores.__getitem__)


class TestOracles:
    @given(count=st.integers(1, 9), size=st.integers(1, 40), seed=st.integers(0, 2**31))
    def test_median(self, count: int, size: int, seed: int) -> None:
        rows = rows_of(count, size, seed)
        by_hand = [float(np.median(np.sort(rows[:, k].astype(np.float64)))) for k in range(size)]
        assert np.allclose(combine("median", rows, None), by_hand, rtol=1e-12)

    @given(attackers=st.integers(0, 4), more=st.integers(1, 5), seed=st.integers(0, 2**31))
    def test_trimmed_mean(self, attackers: int, more: int, seed: int) -> None:
        rows = rows_of(2 * attackers + more, 7, seed)
        cut = (attackers + 0.5) / len(rows)
        expected = stats.trim_mean(rows.astype(np.float64), cut, axis=0)
        assert np.allclose(combine("trimmed-mean", rows, attackers), expected, rtol=1e-12)

    @given(attackers=st.integers(0, 3), more=st.integers(1, 4), seed=st.integers(0, 2**31))
    def test_krum_and_multi_krum(self, attackers: int, more: int, seed: int) -> None:
        rows = rows_of(2 * attackers + 3 + more, 11, seed)
        order = direct_krum_order(rows, attackers)
        assert np.array_equal(combine("krum", rows, attackers), rows[order[0]])
        chosen = rows[order[: len(rows) - attackers - 2]].astype(np.float64)
        assert np.allclose(combine("multi-krum", rows, attackers), chosen.mean(axis=0), rtol=1e-10)

    @pytest.mark.parametrize("seed", range(6))
    @pytest.mark.parametrize("far", [1.0, 1e5])
    def test_geometric_median(self, seed: int, far: float) -> None:
        """Its summed distance is that of scipy's minimum, with rows as far away as they like."""
        rows = rows_of(9, 3, seed)
        rows[:3] *= far
        wide = rows.astype(np.float64)

        def total(point: NDArray[np.float64]) -> float:
            return float(np.linalg.norm(wide - point, axis=1).sum())

        start = np.median(wide, axis=0)
        options = {"xatol": 1e-10, "fatol": 1e-12, "maxiter": 20_000, "maxfev": 20_000}
        best = optimize.minimize(total, start, method="Nelder-Mead", options=options)
        found = combine("geometric-median", rows, None)
        assert total(found) <= best.fun + 1e-6
        assert np.linalg.norm(found - best.x) < 1e-3

    def test_a_majority_at_one_point_is_the_geometric_median(self) -> None:
        rows = rows_of(7, 5, 1)
        rows[:4] = rows[0]
        assert np.array_equal(combine("geometric-median", rows, None), rows[0])

    @pytest.mark.parametrize("name", NAMES)
    def test_blocks_of_columns_change_nothing(
        self, name: RobustName, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        rows = rows_of(9, 101, 4)
        whole = combine(name, rows, 2)
        monkeypatch.setattr(robust, "_AT_ONCE", 63)
        assert np.allclose(combine(name, rows, 2), whole, rtol=1e-9, atol=1e-12)


class TestWhatAttackersCanDo:
    @settings(max_examples=50)
    @given(
        attackers=st.integers(1, 3),
        far=st.sampled_from([0.0, 1.0, -1e3, 1e6]),
        seed=st.integers(0, 2**31),
        name=st.sampled_from(["median", "trimmed-mean"]),
    )
    def test_no_coordinate_leaves_the_range_of_the_honest(
        self, attackers: int, far: float, seed: int, name: RobustName
    ) -> None:
        rows = rows_of(2 * attackers + 2, 6, seed)
        rows[:attackers] = far * np.random.default_rng(seed + 1).choice([-1.0, 1.0], size=6)
        honest = rows[attackers:].astype(np.float64)
        found = combine(name, rows, attackers)
        assert (found >= honest.min(axis=0) - 1e-12).all()
        assert (found <= honest.max(axis=0) + 1e-12).all()

    @given(seed=st.integers(0, 2**31), attackers=st.integers(1, 3))
    def test_far_rows_are_never_krums_choice(self, seed: int, attackers: int) -> None:
        rows = rows_of(2 * attackers + 3, 6, seed)
        rows[:attackers] += 1e4
        assert np.abs(combine("krum", rows, attackers)).max() < 100
        assert np.abs(combine("multi-krum", rows, attackers)).max() < 100

    def test_the_geometric_median_stays_near_the_honest_rows_and_the_mean_does_not(self) -> None:
        """Bound of Lopuhaa and Rousseeuw: 2 (1 - a) / (1 - 2 a) times the honest radius."""
        rows = rows_of(10, 20, 3)
        rows[:3] = 1e6
        radius = float(np.linalg.norm(rows[3:], axis=1).max())
        found = combine("geometric-median", rows, None)
        assert np.linalg.norm(found) <= 2 * 0.7 / 0.4 * radius
        assert np.linalg.norm(rows.mean(axis=0)) > 1e5

    @pytest.mark.parametrize("name", NAMES)
    def test_the_order_of_arrival_changes_no_bit(self, name: RobustName) -> None:
        rows = rows_of(7, 50, 8)
        first = combine(name, rows, 1)
        for seed in range(5):
            order = np.random.default_rng(seed).permutation(7)
            assert np.array_equal(combine(name, rows[order], 1), first)

    @pytest.mark.parametrize("name", NAMES)
    @pytest.mark.parametrize("bad", [np.nan, np.inf])
    def test_an_update_that_is_not_finite_counts_as_zero(
        self, name: RobustName, bad: float
    ) -> None:
        rows = rows_of(7, 30, 2)
        zeroed, broken = rows.copy(), rows.copy()
        zeroed[2], broken[2, 4] = 0.0, bad
        found = []
        for given_rows in (zeroed, broken):
            updates = RobustUpdates(30, rule=RobustRule(name=name, attackers=1))
            norms = [updates.add(row) for row in given_rows]
            released = updates.release()
            assert released is not None
            assert released.count == 7
            found.append(released.vector)
        assert np.array_equal(found[0], found[1])
        assert not np.isfinite(norms[2])


class TestBounds:
    def test_longer_updates_are_scaled_down_and_counted(self) -> None:
        rows = BoundedRows(2, bound=1.0)
        assert rows.add(np.array([3.0, 4.0], dtype=np.float32)) == pytest.approx(5.0)
        rows.add(np.array([0.3, 0.4], dtype=np.float32))
        rows.add(np.array([3e37, 4e37], dtype=np.float32))
        assert np.allclose(rows.rows, [[0.6, 0.8], [0.3, 0.4], [0.6, 0.8]], rtol=1e-6)
        assert rows.shortened == 2
        mean = UniformMean(2, bound=1.0)
        for vector in ([3.0, 4.0], [0.3, 0.4]):
            mean.add(np.array(vector, dtype=np.float32))
        released = mean.release()
        assert released is not None
        assert released.vector == pytest.approx([0.45, 0.6], rel=1e-6)
        assert released.shortened == 1

    def test_without_a_bound_an_update_is_kept_as_it_came(self) -> None:
        rows = BoundedRows(3, bound=LONGEST_UPDATE)
        vector = np.array([1e-30, 2.0, -7e4], dtype=np.float32)
        rows.add(vector)
        vector[:] = 0.0
        assert rows.rows[0].tolist() == np.array([1e-30, 2.0, -7e4], dtype=np.float32).tolist()
        with pytest.raises(SchemaMismatch):
            rows.add(np.zeros(4, dtype=np.float32))


class TestTooFew:
    @pytest.mark.parametrize("attackers", [0, 1, 2, 0.2])
    @pytest.mark.parametrize("name", NAMES)
    def test_a_rule_refuses_fewer_updates_than_it_needs(
        self, name: RobustName, attackers: float
    ) -> None:
        for count in range(1, 9):
            assumed = attackers_among(attackers, count)
            rows = rows_of(count, 3, 0)
            if count < fewest_updates(name, assumed):
                with pytest.raises(QuorumNotReached, match=f"{name} needs "):
                    combine(name, rows, attackers)
            else:
                assert combine(name, rows, attackers).shape == (3,)

    def test_what_is_needed(self) -> None:
        assert [fewest_updates(name, 2) for name in NAMES] == [5, 5, 7, 7, 5]
        assert [attackers_among(0.2, n) for n in (1, 5, 6, 10)] == [1, 1, 2, 2]
        assert attackers_among(0.07, 100) == 7
        assert (attackers_among(3, 5), attackers_among(None, 5)) == (3, 0)
        assert set(RULES) == set(NAMES)

    def test_nobody_is_no_round(self) -> None:
        assert RobustUpdates(3, rule=RobustRule(name="krum", attackers=1)).release() is None


@pytest.mark.parametrize(
    "asked", [{"robust": RobustRule(name="median")}, {"norm_bound": 1.0}], ids=["rule", "bound"]
)
def test_calibrated_noise_takes_no_other_rule_than_the_mean(asked: dict[str, object]) -> None:
    plan = make_plan(
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
    with pytest.raises(ConflictingSettings, match="calibrated"):
        make_aggregator(3, plan=plan, source=NoiseSource.seeded(0), **asked)  # type: ignore[arg-type]
