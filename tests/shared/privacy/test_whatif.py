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
    assert choices["half the cohort"].epsilon < own < choices["twice the cohort"].epsilon
    assert choices["half the cohort"].cohort == pytest.approx(100)
    assert choices["25 % more noise"].epsilon < own < choices["20 % less noise"].epsilon
    twice = replace(planned, rounds=24).epsilon()
    assert twice <= choices["twice the rounds"].epsilon <= twice + 0.01


def test_what_cannot_be_changed_is_left_out() -> None:
    names = {choice.change for choice in alternatives(plan(rounds=1, probability=1.0))}
    assert "half the rounds" not in names
    assert "twice the cohort" not in names


def test_mode_example_changes_the_sampling_of_examples() -> None:
    planned = make_plan(
        mode="example",
        unit="example",
        neighboring_relation="add-or-remove-one",
        noise_multiplier=1.0,
        delta=1e-5,
        max_grad_norm=1.0,
        sampling_probability=0.05,
        rounds=4,
        population=10,
    )
    choices = {choice.change: choice for choice in alternatives(planned)}
    assert choices["half the sampling"].sampling_probability == 0.025
    assert choices["half the sampling"].cohort is None
    assert "half the cohort" not in choices


def distributed() -> PrivacyPlan:
    return make_plan(
        mode="client-distributed",
        unit="client",
        neighboring_relation="add-or-remove-one",
        noise_multiplier=1.0,
        delta=1e-5,
        clipping_norm=1.0,
        sampling_probability=0.02,
        rounds=50,
        population=5000,
        honest_fraction=0.9,
        survivor_fraction=0.8,
        min_cohort=20,
    )


def test_distributed_noise_is_counted_like_the_plan() -> None:
    planned = distributed()
    figures = by_round(planned, points=4)
    assert planned.accountant == "pld"
    assert all(figure.epsilon < figure.epsilon_rdp for figure in figures)
    assert figures[-1].epsilon == pytest.approx(planned.epsilon(), rel=0.01)
    choices = {choice.change: choice for choice in alternatives(planned)}
    assert choices["half the cohort"].epsilon < planned.epsilon()


def correlated(*, rounds: int, separation: int) -> PrivacyPlan:
    return make_plan(
        mode="client-central",
        unit="client",
        neighboring_relation="add-or-remove-one",
        noise_multiplier=2.0,
        delta=1e-5,
        clipping_norm=1.0,
        rounds=rounds,
        population=1000,
        mechanism="correlated",
        min_separation=separation,
    )


def test_a_correlated_run_is_paid_for_at_once() -> None:
    planned = correlated(rounds=40, separation=10)
    assert {figure.epsilon for figure in by_round(planned)} == {planned.epsilon()}


def test_correlated_choices_keep_the_noise_of_a_round() -> None:
    planned = correlated(rounds=40, separation=10)
    choices = {choice.change: choice for choice in alternatives(planned)}
    own = planned.epsilon()
    assert choices["half the rounds"].epsilon < own < choices["twice the rounds"].epsilon
    assert choices["half the cohort"].epsilon < own < choices["twice the cohort"].epsilon
    assert choices["half the cohort"].cohort == 50
    # By hand: 10 bands and 10 rounds apart, so columns do not overlap and none is cut off. Eight
    # participations instead of four move the run by sqrt(2) more.
    assert choices["twice the rounds"].noise_multiplier == pytest.approx(2.0 / 2**0.5)


def test_separation_that_cannot_change_is_left_out() -> None:
    names = {choice.change for choice in alternatives(correlated(rounds=1, separation=1))}
    assert names == {"as planned", "twice the rounds", "25 % more noise", "20 % less noise"}


def test_mode_none_has_no_finite_figure() -> None:
    (figure,) = by_round(make_plan(mode="none", rounds=1, population=2))
    assert figure.epsilon == figure.epsilon_rdp == float("inf")
