"""From a scenario to its privacy plan: the one place that reads privacy settings.

Server, simulation and device all call :func:`plan_of`; a device thereby checks that the plan it is
sent is the one that the scenario asks for.
"""

from __future__ import annotations

from shared.config import ExampleSection, PrivacySection, RunConfig
from shared.errors import InvalidValue
from shared.privacy.noiseschedule import NoiseSchedule
from shared.privacy.plan import PrivacyPlan
from shared.privacy.planform import UNIT_OF_MODE
from shared.privacy.planning import make_plan
from shared.privacy.quantile import QuantileClipping
from shared.privacy.vote import VoteTerms

# Andrew et al. 2021, section 3: the count's noise may be a twentieth of the cohort.
_COUNT_NOISE_SHARE = 20.0


def plan_of(config: RunConfig, *, population: int) -> PrivacyPlan:
    """Make the privacy plan of a scenario for a population.

    Args:
        config: the scenario.
        population: number of clients.

    Returns:
        The plan; in a client mode with an ``[example]`` section it holds a second one.

    Raises:
        PrivacyBudgetExhausted: if the planned epsilon is above the cap.
        CalibrationError: if no noise reaches the target.
        ConflictingSettings: if a mechanism does not go with the mode.
        InvalidValue: if a value is out of range.
    """
    privacy, clients = config.privacy, config.clients
    probability = privacy.sampling_probability
    if privacy.mode in {"client-central", "client-distributed"}:
        # Over-selection is sampling: who is asked is charged, whoever is late.
        asked = config.asked_cohort
        probability = 1.0 if asked is None else min(1.0, asked / population)
    unit = UNIT_OF_MODE.get(privacy.mode)
    return make_plan(
        mode=privacy.mode,
        unit=None if unit is None else str(unit),
        neighboring_relation=privacy.neighboring_relation,
        epsilon=privacy.epsilon,
        noise_multiplier=privacy.noise_multiplier,
        delta=privacy.delta,
        clipping_norm=privacy.clipping_norm,
        max_grad_norm=privacy.max_grad_norm,
        sampling_probability=probability,
        rounds=config.run.rounds,
        releases_per_round=clients.local_steps or 1,
        max_participations=clients.max_participations,
        population=population,
        noise_source=privacy.noise_source,
        cap=privacy.cap,
        mechanism=privacy.mechanism,
        bands=privacy.bands,
        min_separation=separation_of(config, population=population),
        quantile=_quantile(config, population=population),
        honest_fraction=privacy.honest_fraction,
        survivor_fraction=privacy.survivor_fraction,
        min_cohort=privacy.min_cohort,
        server_epsilon=None if privacy.mode == "none" else privacy.server_epsilon,
        example=_plan_of_steps(config, population=population),
        schedule=_schedule(privacy),
        vote=_vote(config),
    )


def separation_of(config: RunConfig, *, population: int) -> int:
    """Return how many cohorts a population is dealt into, where cohorts take turns.

    It is then also the number of rounds between two participations of a client.
    """
    cohort = config.clients.cohort
    return 1 if cohort is None else max(1, int(population // cohort))


def _schedule(said: PrivacySection | ExampleSection) -> NoiseSchedule | None:
    """Return how noise changes over the rounds, if it does."""
    if said.noise_schedule == "constant" or said.noise_final is None:
        return None
    return NoiseSchedule(form=said.noise_schedule, final=said.noise_final)


def _vote(config: RunConfig) -> VoteTerms | None:
    """Return in which rounds clients vote, if they do."""
    stopping = config.stopping
    if not stopping.used or stopping.on != "vote" or config.privacy.mode == "none":
        return None
    if stopping.vote_noise_multiplier is None:
        msg = "vote_noise_multiplier=None, expected the noise on the sum of votes."
        raise InvalidValue(msg)
    return VoteTerms(every=stopping.every, noise_multiplier=float(stopping.vote_noise_multiplier))


def _quantile(config: RunConfig, *, population: int) -> QuantileClipping | None:
    """Return the adaptive clipping of a scenario, if it asks for one."""
    privacy = config.privacy
    if privacy.clipping_quantile is None or privacy.mode == "none":
        return None
    if privacy.clipping_norm is None:
        msg = "clipping_norm=None, expected the first clip of quantile clipping."
        raise InvalidValue(msg)
    cohort = min(float(config.asked_cohort or population), float(population))
    noise = privacy.count_noise_stddev
    return QuantileClipping(
        target=privacy.clipping_quantile,
        learning_rate=privacy.clipping_learning_rate,
        count_noise_stddev=cohort / _COUNT_NOISE_SHARE if noise is None else noise,
        initial=privacy.clipping_norm,
    )


def _plan_of_steps(config: RunConfig, *, population: int) -> PrivacyPlan | None:
    """Return the plan of DP-SGD inside each client, if there is one beside a client mode."""
    said, privacy = config.example, config.privacy
    if not said.used or privacy.mode == "none":
        return None
    cohorts = separation_of(config, population=population)
    turns = -(-config.run.rounds // cohorts) if privacy.mechanism == "correlated" else None
    return make_plan(
        mode="example",
        unit="example",
        neighboring_relation=said.neighboring_relation,
        epsilon=said.epsilon,
        noise_multiplier=said.noise_multiplier,
        delta=said.delta,
        max_grad_norm=said.max_grad_norm,
        sampling_probability=said.sampling_probability,
        rounds=config.run.rounds,
        releases_per_round=config.clients.local_steps or 1,
        max_participations=turns,
        population=population,
        noise_source=privacy.noise_source,
        cap=said.cap,
        schedule=_schedule(said),
    )
