"""The second accountant against closed forms, published figures, Opacus and dp-accounting."""

from __future__ import annotations

import math
from typing import Any

import pytest

from server.audit.fourier import SMALLEST_DELTA, fourier_epsilon
from shared.errors import InvalidValue
from shared.privacy.accountant import epsilon_of
from shared.privacy.events import ComposedEvent, GaussianEvent, NeighboringRelation
from tests.server.audit.oracles import gaussian_epsilon

ADD = NeighboringRelation.ADD_OR_REMOVE_ONE
REPLACE = NeighboringRelation.REPLACE_ONE


def events(kinds: list[tuple[float, float, int]]) -> ComposedEvent:
    return ComposedEvent(
        events=tuple(
            GaussianEvent(noise_multiplier=z, sampling_probability=q, count=n) for q, z, n in kinds
        )
    )


@pytest.mark.parametrize(
    ("z", "n", "delta"), [(5.0, 100, 1e-5), (2.0, 1, 1e-6), (0.7, 3, 1e-3), (40.0, 25, 1e-9)]
)
def test_without_sampling_it_is_the_exact_gaussian(z: float, n: int, delta: float) -> None:
    """Dong, Roth and Su 2019: n releases are mu-GDP with mu = sqrt(n) / z; replacing doubles mu."""
    for replace_one, factor in ((False, 1.0), (True, 2.0)):
        exact = gaussian_epsilon(factor * math.sqrt(n) / z, delta)
        found = fourier_epsilon([(1.0, z, n)], delta=delta, replace_one=replace_one)
        assert found == pytest.approx(exact, abs=2e-4)


# q, releases, then epsilon at z = 1, delta = 1e-5: add or remove, replace, Renyi, Opacus' PRV
KNOWN = [
    (0.01, 200, 0.912, 1.228, 1.340, 0.9226),
    (0.1, 100, 7.047, 10.52, 7.904, 7.057),
    (0.5, 60, 28.82, 53.6, 31.41, 28.831),
]


@pytest.mark.parametrize(("q", "n", "add", "replace", "renyi", "prv"), KNOWN)
def test_known_values(
    q: float, n: int, add: float, replace: float, renyi: float, prv: float
) -> None:
    """To the last printed digit; both numerical accountants, and the Renyi bound above them."""
    kinds = [(q, 1.0, n)]
    for relation, due in ((ADD, add), (REPLACE, replace)):
        mine = fourier_epsilon(kinds, delta=1e-5, replace_one=relation is REPLACE)
        pld = epsilon_of(events(kinds), delta=1e-5, relation=relation)
        assert mine == pytest.approx(due, rel=1e-3)
        assert pld == pytest.approx(due, rel=1e-3)
        assert mine == pytest.approx(pld, abs=1e-3)
    found = epsilon_of(events(kinds), delta=1e-5, relation=ADD, accountant="rdp")
    assert found == pytest.approx(renyi, rel=1e-3)
    assert found > 1.05 * add
    assert abs(add - prv) <= 0.02 + 0.01 * add


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("q", "n", "add", "replace", "renyi", "prv"), KNOWN)
def test_opacus_agrees(
    q: float, n: int, add: float, replace: float, renyi: float, prv: float
) -> None:
    """Opacus reports an upper end, about 0.01 above its estimate."""
    accountants = pytest.importorskip("opacus.accountants", reason="opacus is an extra")
    theirs = accountants.PRVAccountant()
    theirs.history = [(1.0, q, n)]
    found = theirs.get_epsilon(delta=1e-5)
    assert found == pytest.approx(prv, abs=2e-3)
    mine = fourier_epsilon([(q, 1.0, n)], delta=1e-5)
    assert mine <= found <= mine + 0.02 + 0.01 * mine
    assert mine < min(replace, renyi)
    assert mine == pytest.approx(add, rel=1e-3)


@pytest.mark.parametrize("replace_one", [False, True])
@pytest.mark.parametrize(
    ("kinds", "delta"),
    [
        ([(0.02, 0.9, 30), (0.3, 3.0, 11), (1.0, 6.0, 4)], 1e-6),
        ([(0.001, 0.6, 10_000)], 1e-5),
        ([(0.01, 4.0, 1_000)], 1e-5),
        ([(1e-4, 1.0, 1)], 1e-5),
        ([(1.0, 0.3, 1)], 1e-5),
        ([(0.1, 1.0, 100)], 1e-9),
        ([(1.0, 20.0, 1)], 1e-3),
        ([(0.2, 0.3, 3)], 1e-5),
    ],
)
def test_it_agrees_with_dp_accounting(
    kinds: list[tuple[float, float, int]], delta: float, replace_one: bool
) -> None:
    relation = REPLACE if replace_one else ADD
    pld = epsilon_of(events(kinds), delta=delta, relation=relation)
    mine = fourier_epsilon(kinds, delta=delta, replace_one=replace_one)
    assert abs(mine - pld) <= 0.001 + 1e-4 * pld


def test_nothing_costs_nothing_and_so_does_next_to_nothing() -> None:
    assert fourier_epsilon([], delta=1e-5) == 0.0
    assert fourier_epsilon([(1e-6, 50.0, 1)], delta=1e-3) == 0.0


@pytest.mark.parametrize("delta", [0.0, SMALLEST_DELTA / 2, 1.0, math.nan])
def test_a_delta_out_of_reach_is_refused(delta: Any) -> None:
    with pytest.raises(InvalidValue, match="delta"):
        fourier_epsilon([(1.0, 1.0, 1)], delta=delta)


def test_more_releases_and_less_noise_cost_more() -> None:
    def cost(*kinds: tuple[float, float, int]) -> float:
        return fourier_epsilon(kinds, delta=1e-5)

    assert cost((0.1, 1.0, 10)) < cost((0.1, 1.0, 11)) < cost((0.1, 0.9, 11))
    assert cost((0.1, 1.0, 10)) < cost((0.1, 1.0, 10), (0.05, 2.0, 5))
