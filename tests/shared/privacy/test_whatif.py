"""Planning: the figures are those of the plan, and they move the right way."""

from __future__ import annotations

from dataclasses import replace

import pytest

from shared.privacy.plan import PrivacyPlan
from shared.privacy.planning import make_plan
from shared.privacy.whatif import alternatives, by_round


def plan(*, rounds: int = 12, probability: float = 0.2) -> PrivacyPlan:
    return make_plan(
        mode="client-central",
        unit="client",
        neighboring_relation="add-or-remove-one",
        noise_multiplier=1.0,
        delta=1e-4,
        clipping_norm=1.0,
        sampling_probability=probability,
        rounds=rounds,
        population=1000,
    )


def test_rounds_rise_from_one_to_the_plan() -> None:
    figures = by_round(plan(), points=5)
    assert [figure.rounds for figure in figures] == [1, 4, 6, 9, 12]
    epsilons = [figure.epsilon for figure in figures]
    assert epsilons == sorted(epsilons)
    assert epsilons[-1] == pytest.approx(plan().epsilon())
    assert all(figure.epsilon_rdp >= figure.epsilon for figure in figures)


def test_short_plans_have_each_round_once() -> None:
    assert [figure.rounds for figure in by_round(plan(rounds=1))] == [1]
    assert [figure.rounds for figure in by_round(plan(rounds=3))] == [1, 2, 3]


def test_alternatives_are_plans_of_their_own() -> None:
    planned = plan()
    choices = {choice.change: choice for choice in alternatives(planned)}
    own = planned.epsilon()
    assert choices["as planned"].epsilon == own
    assert choices["half the rounds"].epsilon < own < choices["twice the rounds"].epsilon
    assert choices["half the sampling"].epsilon < own < choices["twice the sampling"].epsilon
    assert choices["25 % more noise"].epsilon < own < choices["20 % less noise"].epsilon
    twice = replace(planned, rounds=24)
    assert choices["twice the rounds"].epsilon == pytest.approx(twice.epsilon())


def test_what_cannot_be_changed_is_left_out() -> None:
    names = {choice.change for choice in alternatives(plan(rounds=1, probability=1.0))}
    assert "half the rounds" not in names
    assert "twice the sampling" not in names
