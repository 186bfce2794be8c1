"""Sentences of a privacy statement that depend on the mechanism: how, against whom, which noise."""

from __future__ import annotations

import math
from dataclasses import dataclass

from shared.privacy.noise import SEEDED
from shared.privacy.plan import PrivacyPlan
from shared.privacy.terms import DistributedTerms


@dataclass(frozen=True, slots=True, kw_only=True)
class Clause:
    """One sentence of a statement.

    Attributes:
        topic: what it is about, a stable word for programs ("unit", "not-protected", ...).
        text: the sentence, in plain words.
        alarm: whether it must be shown in red.
    """

    topic: str
    text: str
    alarm: bool = False


def figure(value: float | None) -> str:
    """Write an epsilon rounded up at the fourth digit: a bound may grow, never shrink.

    >>> figure(1.23451), figure(None)
    ('1.235', 'infinite')
    """
    if value is None or not math.isfinite(value):
        return "infinite"
    if value == 0.0:
        return "0"
    step = 10.0 ** (math.floor(math.log10(value)) - 3)
    return f"{math.ceil(value / step - 1e-9) * step:.4g}"


def counted(number: int, noun: str) -> str:
    """Return a number with its noun.

    >>> counted(1, "step"), counted(2, "step")
    ('1 step', '2 steps')
    """
    return f"{number} {noun}{'' if number == 1 else 's'}"


def how(plan: PrivacyPlan) -> tuple[Clause, Clause, Clause]:
    """Say mechanism, sampling and composition of a private plan."""
    return (
        Clause(topic="mechanism", text=_mechanism(plan) + _votes(plan)),
        Clause(topic="sampling", text=_sampling(plan)),
        Clause(topic="composition", text=_composition(plan)),
    )


def observers(plan: PrivacyPlan, delta: float) -> tuple[Clause, Clause]:
    """Say against whom which figure holds, and who sees what."""
    outside = figure(plan.epsilon())
    if plan.mode == "example":
        against = (
            f"For the whole plan: against whoever sees only adapters, epsilon = {outside}; against "
            f"whoever also knows which clients took part, the server and the network included, "
            f"epsilon = {figure(plan.observer_epsilon())}, both at delta = {delta:.3g}."
        )
    else:
        capped = _cap_on_participations(plan)
        against = (
            f"For the whole plan: against whoever sees only adapters, epsilon = {outside}; against "
            f"whoever also knows in which rounds a client took part, epsilon = "
            f"{figure(plan.observer_epsilon())} "
            f"({capped} {counted(plan.participations, 'participation')}), "
            f"both at delta = {delta:.3g}.{_against_server(plan)}"
        )
    return (
        Clause(topic="observers", text=against),
        Clause(topic="who-sees-what", text=_who_sees_what(plan)),
    )


def noise_source(plan: PrivacyPlan) -> Clause:
    """Say where the noise comes from."""
    if plan.noise_source == SEEDED:
        return Clause(
            topic="noise-source",
            text=(
                "SIMULATION: the noise is derived from the run's seed, and whoever knows the seed "
                "can recompute and subtract it. This run therefore protects nobody; its epsilon "
                "is what the same run would give with noise from the operating system."
            ),
            alarm=True,
        )
    form = (
        "it consists of integers from an exact sampler, on the grid of what is released."
        if plan.distributed is not None
        else "it is floating-point noise, not noise on a grid."
    )
    return Clause(
        topic="noise-source",
        text=(
            "The noise comes from a ChaCha20 key stream keyed with 256 bits from the operating "
            f"system; {form}"
        ),
    )


def _mechanism(plan: PrivacyPlan) -> str:
    """Say what is clipped, who adds which noise, and by what the sum is divided."""
    if plan.mode == "example":
        return (
            f"Each client clips every example's gradient to L2 norm {plan.max_grad_norm:g} and "
            f"adds normal noise of {_noise(plan)} times that norm in every step."
        )
    if plan.distributed is not None:
        return _distributed_mechanism(plan, plan.distributed)
    mean = (
        f"divides by the public expected cohort of {plan.expected_cohort:g}; every client weighs "
        "the same."
    )
    clips = f"The server clips each client's whole update to L2 norm {plan.clipping_norm:g}, sums,"
    if plan.correlated is not None:
        terms = plan.correlated
        return (
            f"{clips} adds normal noise that is correlated over {terms.bands} rounds, so that "
            "later rounds take back a part of it (banded square-root factorisation), and "
            f"{mean} The whole run is one Gaussian release of noise multiplier "
            f"{plan.noise_multiplier:g}; each round draws normal noise of that times "
            f"{terms.sensitivity:.4g} clips."
        )
    if plan.quantile is not None and plan.noise_multiplier is not None:
        terms_of_clip = plan.quantile
        of_update = terms_of_clip.split(plan.noise_multiplier)
        return (
            f"The server clips each client's whole update to an L2 norm that starts at "
            f"{plan.clipping_norm:g} and follows the {terms_of_clip.target:g} quantile of the "
            f"updates, sums, adds normal noise of {of_update:.4g} times the clip, and {mean} The "
            "number of updates within the clip moves it, noised with standard deviation "
            f"{terms_of_clip.count_noise_stddev:g}. Sum and number together are one release of "
            f"noise multiplier {plan.noise_multiplier:g}: following the quantile is paid for."
        )
    return f"{clips} adds normal noise of {_noise(plan)} times that norm, and {mean}"


def _votes(plan: PrivacyPlan) -> str:
    """Say how clients vote, where they do."""
    if plan.vote is None:
        return ""
    return (
        f" After every {counted(plan.vote.every, 'round')} the clients of the next cohort say +1 "
        "or -1, whether the adapter got better on records that they hold out; the sum is released "
        f"with normal noise of standard deviation {plan.vote.noise_multiplier:g}. Update and vote "
        "of such a round are one release of noise multiplier "
        f"{plan.charged_noise_of(plan.vote.every + 1):.4g}."
    )


def _noise(plan: PrivacyPlan) -> str:
    """Say the noise multiplier, or how it goes over the rounds."""
    first = f"{plan.noise_multiplier:g}"
    last = plan.noise_multiplier_of(plan.rounds)
    if plan.schedule is None or last is None:
        return first
    return (
        f"{first} (first rounds) to {last:g} (last rounds; the stairs are fixed in advance and "
        "each round is accounted with its own)"
    )


def _distributed_mechanism(plan: PrivacyPlan, terms: DistributedTerms) -> str:
    """Say how clients add the noise together."""
    return (
        f"Each client clips its whole update to L2 norm {plan.clipping_norm:g}, rounds it at "
        f"random to a grid on which that norm is {terms.grid} steps (never more after rounding), "
        "and adds its share of Skellam noise; the shares of a cohort add up to "
        f"{plan.noise_multiplier:g} times the clip. Secure aggregation shows their sum alone. The "
        "server adds the shares of clients that dropped out, and divides by the public expected "
        f"cohort of {plan.expected_cohort:g}; every client weighs the same."
    )


def _sampling(plan: PrivacyPlan) -> str:
    """Say how those who take part are chosen."""
    if plan.mode == "example":
        return (
            "In every step each example is taken with its own secret coin of probability "
            f"{plan.sampling_probability:g} (Poisson sampling); an empty batch is a step too."
        )
    if plan.correlated is not None:
        return (
            f"No secret sampling is counted on: clients take part in turn, at most once in "
            f"{plan.correlated.min_separation} rounds and "
            f"{counted(plan.participations, 'time')} in all."
        )
    coins = (
        f"In every round each of {plan.population} clients is taken with its own secret coin of "
        f"probability {plan.sampling_probability:g} (Poisson sampling); an empty cohort is a round "
        "too."
    )
    if plan.distributed is None:
        return coins
    return (
        f"{coins} A sample of fewer than {plan.distributed.min_cohort} is filled up with clients "
        "that send an empty update."
    )


def _composition(plan: PrivacyPlan) -> str:
    """Say over what the loss is added up."""
    if plan.mode == "example":
        return (
            f"Accounted per client: {counted(plan.releases_per_round, 'step')} in each of at most "
            f"{counted(plan.participations, 'round')}; the sampling of clients is not counted on."
        )
    if plan.correlated is not None:
        return (
            f"Accounted for every client: the {plan.rounds} rounds of the run are one release, "
            "paid for before the first."
        )
    return f"Accounted for every client: {counted(plan.rounds, 'round')}, one release each."


def _cap_on_participations(plan: PrivacyPlan) -> str:
    """Say whether the number of participations is enforced."""
    enforced = plan.max_participations is not None or plan.correlated is not None
    return "enforced cap of" if enforced else "no cap below"


def _against_server(plan: PrivacyPlan) -> str:
    """Give the figure against the server, where there is one."""
    if plan.distributed is None:
        return ""
    return (
        f" Against the server, together with up to {1 - plan.distributed.honest_fraction:.4g} of "
        f"any cohort: epsilon = {figure(plan.server_epsilon())} at the same delta; it cannot tell "
        "a client's data from an empty update."
    )


def _who_sees_what(plan: PrivacyPlan) -> str:
    """Say what the server sees, and what that rests on."""
    if plan.mode == "example":
        return (
            "The server sees each client's noised update; examples, gradients without noise and "
            "batch sizes stay on the device."
        )
    if plan.distributed is None:
        return (
            "The server is trusted: it sees each client's clipped update before noise is added, "
            "and nothing here protects against it."
            if plan.example is None
            else "The server is trusted with each client's update before its own noise is added; "
            "what protects single examples from it is the noise inside each client."
        )
    terms = plan.distributed
    return (
        "No one, the server included, sees an update or a sum without noise. The server sees who "
        "takes part, who drops out, and the noised sum of each round. This rests on at least "
        f"{terms.honest_fraction:g} of every cohort not colluding with the server, and on at least "
        f"{terms.survivor_fraction:g} of it being in the sum; below that the round is not released."
    )
