"""From what a user says to a plan: noise is derived from epsilon, or epsilon from noise."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import get_args

from shared import validate
from shared.errors import ConflictingSettings, InvalidValue, PrivacyBudgetExhausted
from shared.privacy.accountant import relation_of
from shared.privacy.calibration import calibrate
from shared.privacy.correlated import CorrelatedTerms
from shared.privacy.encoding import choose_grid
from shared.privacy.events import PrivacyEvent
from shared.privacy.noise import OS_ENTROPY, NoiseKind
from shared.privacy.noiseschedule import NoiseSchedule
from shared.privacy.plan import PrivacyPlan
from shared.privacy.planform import (
    CLIENT_MODES,
    CLIP_OF_MODE,
    UNIT_OF_MODE,
    Mode,
    NoiseForm,
    choice,
    unit_of,
)
from shared.privacy.quantile import QuantileClipping
from shared.privacy.secagg.graph import parameters
from shared.privacy.terms import DistributedTerms
from shared.privacy.vote import VoteTerms

GAUSSIAN = "gaussian"
CORRELATED = "correlated"
_LARGE_COHORT = 2000


def make_plan(
    *,
    mode: str,
    rounds: int,
    population: int,
    unit: str | None = None,
    neighboring_relation: str | None = None,
    delta: float | None = None,
    epsilon: float | None = None,
    noise_multiplier: float | None = None,
    clipping_norm: float | None = None,
    max_grad_norm: float | None = None,
    sampling_probability: float | None = None,
    releases_per_round: int = 1,
    max_participations: int | None = None,
    dataset_size: int | None = None,
    noise_source: str = OS_ENTROPY,
    cap: float | None = None,
    mechanism: str = GAUSSIAN,
    bands: int | None = None,
    min_separation: int | None = None,
    quantile: QuantileClipping | None = None,
    honest_fraction: float | None = None,
    survivor_fraction: float | None = None,
    min_cohort: int | None = None,
    server_epsilon: float | None = None,
    example: PrivacyPlan | None = None,
    schedule: NoiseSchedule | None = None,
    vote: VoteTerms | None = None,
) -> PrivacyPlan:
    """Build a plan from what a user says, deriving noise from epsilon.

    Nothing about the guarantee has a default: a private mode needs unit, relation, delta, its own
    clip, and exactly one of ``epsilon`` and ``noise_multiplier``. Settings that belong to another
    mode are dropped, so that ``mode="none"`` alone turns a plan into its non-private twin.

    Args:
        mode: ``"none"``, ``"example"``, ``"client-central"`` or ``"client-distributed"``.
        rounds: server rounds, >= 1.
        population: number of clients, >= 1.
        unit: ``"example"`` or ``"client"``; must be the one that the mode protects.
        neighboring_relation: ``"add-or-remove-one"`` or ``"replace-one"``.
        delta: in ``(0, 1)``.
        epsilon: target of the whole plan, > 0.
        noise_multiplier: noise divided by the clip, > 0.
        clipping_norm: clip of a client update, for the client modes.
        max_grad_norm: clip of an example's gradient, for example.
        sampling_probability: of an example in a step, or of a client in a round; correlated noise
            uses none.
        releases_per_round: local steps, for example.
        max_participations: enforced cap on one client's rounds.
        dataset_size: public lower bound on the examples of a client, for the warning about delta.
        noise_source: ``"os-entropy"`` or ``"seeded-simulation"``.
        cap: epsilon the ledger may not pass; the target or planned epsilon if not given.
        mechanism: ``"gaussian"`` or ``"correlated"`` noise of the server (client-central).
        bands: of correlated noise; the separation if not given.
        min_separation: rounds between two participations of a client, for correlated noise.
        quantile: adaptive clipping (client-central); its ``initial`` is the clipping norm.
        honest_fraction: for client-distributed (:class:`~shared.privacy.terms.DistributedTerms`).
        survivor_fraction: for client-distributed.
        min_cohort: for client-distributed.
        server_epsilon: target against the server itself, for client-distributed; with a target
            epsilon the larger noise of the two counts, with given noise it is checked.
        example: plan of DP-SGD inside each client, beside a client mode.
        schedule: how noise changes over the rounds; a given noise multiplier is then the first
            round's, and a target epsilon that of the rounds together.
        vote: in which rounds clients vote (client-central); a target epsilon is then that of
            updates and votes together.

    Returns:
        The plan.

    Raises:
        InvalidValue: if something is missing or out of range.
        ConflictingSettings: if unit and mode disagree, both or neither of epsilon and noise
            multiplier are given, or a mechanism does not go with the mode.
        CalibrationError: if no noise reaches the target.
        PrivacyBudgetExhausted: if the plan's epsilon is above the cap.
    """
    chosen = choice("mode", mode, get_args(Mode))
    base = PrivacyPlan(
        mode="none",
        unit=None,
        neighboring_relation=None,
        delta=None,
        noise_multiplier=None,
        clipping_norm=None,
        max_grad_norm=None,
        sampling_probability=1.0,
        releases_per_round=1,
        rounds=rounds,
        max_participations=max_participations,
        population=population,
        dataset_size=dataset_size,
        noise_source=choice("noise_source", noise_source, get_args(NoiseKind)),
        cap=None,
    )
    if chosen == "none":
        return base
    noise = _noise_of(chosen, mechanism)
    of_clients = chosen in CLIENT_MODES
    probability = 1.0 if noise == "correlated" else sampling_probability
    needed = {
        "privacy_unit": unit,
        "neighboring_relation": neighboring_relation,
        "delta": delta,
        "sampling_probability": probability,
        CLIP_OF_MODE[chosen]: clipping_norm if of_clients else max_grad_norm,
    }
    if noise == "correlated":
        needed["min_separation"] = min_separation
    if noise == "skellam":
        fractions = {"honest_fraction": honest_fraction, "survivor_fraction": survivor_fraction}
        needed |= {**fractions, "min_cohort": min_cohort}
    _require_said(chosen, needed, unit=str(unit), epsilon=epsilon, noise=noise_multiplier)
    draft = replace(
        base,
        mode=chosen,
        unit=UNIT_OF_MODE[chosen],
        neighboring_relation=relation_of(str(neighboring_relation)),
        delta=delta,
        # A draft needs some noise; with a target epsilon it is replaced below.
        noise_multiplier=_float(1.0 if noise_multiplier is None else noise_multiplier),
        clipping_norm=_float(clipping_norm) if of_clients else None,
        max_grad_norm=None if of_clients else _float(max_grad_norm),
        sampling_probability=_float(probability) or 0.0,
        releases_per_round=1 if of_clients else releases_per_round,
        cap=_float(next((c for c in (cap, epsilon) if c is not None), 1.0)),
        noise=noise,
        example=example if of_clients else None,
        quantile=quantile if chosen == "client-central" else None,
        correlated=_correlated(rounds, min_separation, bands) if noise == "correlated" else None,
        distributed=_distributed(honest_fraction, survivor_fraction, min_cohort)
        if noise == "skellam"
        else None,
        schedule=schedule,
        vote=vote,
    )
    if draft.distributed is not None:
        _require_possible(draft, draft.distributed)
    plan = _calibrated(draft, epsilon)
    if server_epsilon is not None:
        plan = _bounded_at_server(plan, server_epsilon, may_change=epsilon is not None)
    if plan.quantile is not None and plan.noise_multiplier is not None:
        plan.quantile.split(plan.noise_multiplier)
    return _within_cap(plan, keep_cap=cap is not None or epsilon is not None)


def _noise_of(mode: Mode, mechanism: str) -> NoiseForm:
    """Return the form of noise of a mode and a mechanism."""
    correlated = choice("mechanism", mechanism, (GAUSSIAN, CORRELATED)) == CORRELATED
    if correlated and mode != "client-central":
        msg = f"mechanism={mechanism!r} in mode={mode!r}: correlated noise is added by the server."
        raise ConflictingSettings(msg, hint='It goes with mode "client-central".')
    if correlated:
        return "correlated"
    return "skellam" if mode == "client-distributed" else "gaussian"


def _require_said(
    mode: Mode,
    needed: Mapping[str, object],
    *,
    unit: str,
    epsilon: float | None,
    noise: float | None,
) -> None:
    """Require everything that has no default, the unit of the mode, and one of noise or epsilon."""
    missing = ", ".join(name for name, value in needed.items() if value is None)
    if missing:
        msg = f"mode={mode!r} needs {missing}, which has no default."
        raise InvalidValue(msg)
    if unit_of(unit) is not UNIT_OF_MODE[mode]:
        msg = f"mode={mode!r} protects the unit {str(UNIT_OF_MODE[mode])!r}, not {unit!r}."
        raise ConflictingSettings(msg)
    if (epsilon is None) == (noise is None):
        msg = f"epsilon={epsilon!r} and noise_multiplier={noise!r}, expected one."
        raise ConflictingSettings(msg, hint="Give one of the two; the other is derived.")


def _correlated(rounds: int, separation: int | None, bands: int | None) -> CorrelatedTerms:
    """Return the terms of correlated noise: as many bands as rounds between participations."""
    apart = min(separation or 1, rounds)
    return CorrelatedTerms(
        bands=apart if bands is None else bands, min_separation=apart, rounds=rounds
    )


def _distributed(
    honest: float | None, survivors: float | None, cohort: int | None
) -> DistributedTerms:
    """Return the terms of distributed noise, with a grid that is chosen later."""
    return DistributedTerms(
        grid=1,
        honest_fraction=_float(honest) or 0.0,
        survivor_fraction=_float(survivors) or 0.0,
        min_cohort=cohort or 0,
    )


def _require_possible(plan: PrivacyPlan, terms: DistributedTerms) -> None:
    """Refuse cohorts, the smallest and the expected one, that could never be summed securely.

    From some size on rounding plays no part any more, so nothing larger is looked at.
    """
    for cohort in (terms.min_cohort, max(terms.min_cohort, round(plan.expected_cohort))):
        parameters(min(cohort, _LARGE_COHORT), terms.honest_fraction, terms.survivor_fraction)


def _calibrated(
    draft: PrivacyPlan, epsilon: float | None, *, at_server: bool = False
) -> PrivacyPlan:
    """Give a draft its grid, and the noise that a target epsilon asks for, if there is one.

    More noise may need a coarser grid, which changes epsilon in the tenth digit, so the noise is
    sought again on the grid that it needs.
    """
    draft = _on_grid(draft)
    if epsilon is None or draft.delta is None or draft.neighboring_relation is None:
        return draft
    while True:
        noise = calibrate(
            lambda z, plan=draft: _events(replace(plan, noise_multiplier=z), at_server=at_server),  # type: ignore[misc]
            epsilon=epsilon,
            delta=draft.delta,
            relation=draft.neighboring_relation,
        )
        plan = replace(draft, noise_multiplier=noise)
        draft = _on_grid(plan)
        if draft == plan:
            return plan


def _events(plan: PrivacyPlan, *, at_server: bool) -> PrivacyEvent:
    """Return what a plan costs, against whoever sees adapters or against the server."""
    return plan.server_events() if at_server else plan.total_events()


def _bounded_at_server(plan: PrivacyPlan, target: float, *, may_change: bool) -> PrivacyPlan:
    """Give a plan at least the noise that bounds it at the server, colluders and dropouts included.

    Raises:
        ConflictingSettings: in a mode whose server is trusted, or adds no noise of its own.
        PrivacyBudgetExhausted: if the noise is given and is too little.
    """
    if plan.distributed is None:
        msg = f"server_epsilon={target!r} in mode={plan.mode!r}, expected client-distributed."
        raise ConflictingSettings(msg)
    validate.positive(server_epsilon=target)
    spends = plan.server_epsilon()
    if spends <= target:
        return plan
    if not may_change:
        msg = f"the plan spends epsilon={spends:.4g} at the server, server_epsilon={target!r}."
        hint = "Plan more noise or fewer rounds, or trust a larger part of each cohort."
        raise PrivacyBudgetExhausted(msg, hint=hint, spent=0.0, requested=spends, cap=target)
    return _calibrated(plan, target, at_server=True)


def _on_grid(plan: PrivacyPlan) -> PrivacyPlan:
    """Choose the finest grid on which the sum of a cohort does not wrap around."""
    if plan.distributed is None or plan.noise_multiplier is None:
        return plan
    mean = plan.expected_cohort
    spread = 10.0 * math.sqrt(mean * (1.0 - plan.sampling_probability))
    largest = min(plan.population, math.ceil(mean + spread) + plan.distributed.min_cohort)
    grid = choose_grid(plan.noise_multiplier, largest)
    return replace(plan, distributed=replace(plan.distributed, grid=grid))


def _within_cap(plan: PrivacyPlan, *, keep_cap: bool) -> PrivacyPlan:
    """Refuse a plan above its cap; without a stated cap the planned epsilon becomes it."""
    spends = plan.epsilon()
    if not keep_cap:
        if not math.isfinite(spends):
            msg = f"noise_multiplier={plan.noise_multiplier!r} gives no finite epsilon."
            raise InvalidValue(msg, hint="Use more noise or a larger delta.")
        return replace(plan, cap=spends)
    if plan.cap is not None and not spends <= plan.cap:
        msg = f"the plan spends epsilon={spends:.4g} at delta={plan.delta!r}, cap={plan.cap!r}."
        hint = "Plan more noise or fewer rounds, or agree on a higher cap."
        raise PrivacyBudgetExhausted(msg, hint=hint, spent=0.0, requested=spends, cap=plan.cap)
    return plan


def _float(value: float | None) -> float | None:
    """Store whole numbers as floats, so that 1 and 1.0 give one digest; leave the rest alone."""
    given: object = value
    return float(given) if isinstance(given, int) and not isinstance(given, bool) else value
