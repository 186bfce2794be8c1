"""The installed mechanism on made-up updates: its noise, its clip, its behaviour on rubbish.

Nothing of the run's data is touched. The aggregator (or the shares and the sum) of the run's plan
is built by the same functions that a run calls, and fed with updates that no client made. That
shows what the code does that is installed where the audit runs, not what ran elsewhere; the
releases show that.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from server.audit.conformance import Check, Test, exact, two_sided
from server.audit.declared import declared_noise, noise_factors
from server.audit.evidence import boolean, integer, mapping, number, text
from server.audit.noisetests import noise_statistics, noise_tests
from server.audit.protocol import Floats
from shared.errors import AuditError, FedSLMError
from shared.privacy.correlated import CorrelatedNoise
from shared.privacy.distributed import encode_update
from shared.privacy.mechanism import AdapterDelta, Vector, clip_update
from shared.privacy.noise import OS_ENTROPY, SEEDED, NoiseSource
from shared.privacy.noiserows import NoiseRows
from shared.privacy.plan import PrivacyPlan

if TYPE_CHECKING:
    from server.aggregation import Aggregate

NAME = "rehearsal"
DIMENSION = 32_768
ROUNDS = 4
COUNTS = 64
LONG = 1e4
"""Length of an update that must be clipped, in clips."""

_SHARES = 4
_MARGIN = 1e-6
ROUNDING = 1e-4
"""What float32 may do to the length of a sum, in noise standard deviations."""


class ServerRehearsal:
    """Rounds of a plan's server mechanism, on made-up updates.

    Args:
        plan: a plan of a client mode.
        dimension: coordinates of an update.
        seed: of noise where it may repeat; None draws it as the plan does in a real run.
    """

    def __init__(self, plan: PrivacyPlan, *, dimension: int, seed: int | None) -> None:
        declared = declared_noise(plan)
        if declared is None or plan.clipping_norm is None:
            msg = f"mode={plan.mode!r}: the server adds no noise that could be rehearsed."
            raise AuditError(msg)
        self._plan, self._dimension, self._seed = plan, dimension, seed
        self._declared, self._clip = declared, plan.clipping_norm
        self._rows = self._correlated()

    def noise(self, rounds: int) -> Floats:
        """Return the noise of rounds whose clients have nothing to say, as standard rows.

        The first round has no client at all.
        """
        zero = np.zeros(self._dimension, dtype=np.float32)
        found = [self.release(t, [zero] if t > 1 else []) for t in range(1, rounds + 1)]
        factors = noise_factors(self._plan, range(1, rounds + 1))[:, None]
        return self._declared.whitened(np.stack(found)) / (self._declared.over_clip * factors)

    def release(self, server_round: int, updates: Sequence[Vector]) -> Floats:
        """Return one round's release as a sum, in clips; rounds of correlated noise in order."""
        if self._plan.distributed is not None:
            return self._secure(server_round, updates)
        aggregate = self.aggregate(server_round, updates)
        return np.asarray(aggregate.vector * self._declared.divisor / self._clip, dtype=np.float64)

    def aggregate(self, server_round: int, updates: Sequence[Vector]) -> Aggregate:
        """Return what the aggregator of the plan releases for some updates.

        Raises:
            AuditError: if it releases nothing; an empty cohort must be noised like any other.
        """
        from server.aggregation import make_aggregator  # Flower comes with it

        aggregator = make_aggregator(
            self._dimension,
            plan=self._plan,
            source=self._source("round", server_round),
            server_round=server_round,
            clip=None if self._plan.quantile is None else self._plan.quantile.initial,
            noise=self._rows,
        )
        for update in updates:
            aggregator.add(update)
        found = aggregator.release()
        if found is None:
            msg = f"a rehearsed round of {len(updates)} updates released nothing."
            raise AuditError(msg)
        return found

    def _secure(self, server_round: int, updates: Sequence[Vector]) -> Floats:
        """Add up noised shares of four clients, one of whom drops out, and open the sum."""
        mechanism = self._plan.distributed_mechanism
        zero = np.zeros(self._dimension, dtype=np.float32)
        present = [*updates, *([zero] * _SHARES)][: _SHARES - 1]
        total = np.zeros(self._dimension, dtype=np.uint32)
        for index, update in enumerate(present):
            clipped = clip_update(AdapterDelta(vector=update), clipping_norm=self._clip)
            source = self._source("share", server_round, index)
            total += mechanism.share(clipped, cohort=_SHARES, source=source).words
        mean = mechanism.release(
            total,
            cohort=_SHARES,
            survivors=len(present),
            expected_count=self._declared.divisor,
            source=self._source("round", server_round),
        )
        values = mean.vector.astype(np.float64)
        return np.asarray(values * self._declared.divisor / self._clip, dtype=np.float64)

    def _source(self, *labels: str | int) -> NoiseSource:
        """Return a noise source: seeded, or made as the plan's kind is made."""
        if self._seed is not None:
            return NoiseSource.seeded(self._seed, "rehearsal", *labels)
        return NoiseSource.from_os()

    def _correlated(self) -> CorrelatedNoise | None:
        """Return the rows of a rehearsed run of correlated noise."""
        if self._plan.correlated is None:
            return None
        fresh = self._seed is None
        rows = (
            NoiseRows(secrets.token_bytes(32), kind=OS_ENTROPY)
            if fresh
            else NoiseRows.seeded(self._seed or 0)
        )
        return CorrelatedNoise(self._plan.correlated, dimension=self._dimension, rows=rows)


def measure_rehearsal(plan: PrivacyPlan, *, seed: int) -> dict[str, Any]:
    """Rehearse the server's part of a plan.

    Noise is tested from the kind of source that the plan names. The effect of an update is the
    difference of two rounds with the same seeded noise.

    Raises:
        AuditError: if the mechanism refuses what a run would feed it.
    """
    declared = declared_noise(plan)
    if declared is None or plan.clipping_norm is None:
        return {"skipped": "The server adds no noise in this mode."}
    fresh = seed if plan.noise_source == SEEDED else None
    # Rows of correlated noise are calibrated for the rounds of the plan and no more.
    rounds = min(ROUNDS, plan.rounds) if plan.correlated is not None else ROUNDS
    try:
        rows = ServerRehearsal(plan, dimension=DIMENSION, seed=fresh).noise(rounds)
        found = {
            "noise": noise_statistics(rows, variance=declared.variance),
            "clip": _effects(plan, seed, declared.over_clip),
            "repeats": _repeats(plan, seed),
            "counts": _counts(plan, fresh),
            "halved": noise_statistics(0.5 * rows, variance=declared.variance),
            "reused": noise_statistics(
                np.repeat(rows[:1], ROUNDS, axis=0), variance=declared.variance
            ),
        }
    except FedSLMError as error:
        msg = f"the installed mechanism refused a rehearsal (code {error.code!r})."
        raise AuditError(msg) from error
    return found


def check_rehearsal(evidence: Mapping[str, Any]) -> Check:
    """Test the rehearsed noise and the effects of rehearsed updates.

    Raises:
        AuditError: if the evidence is malformed.
    """
    if "skipped" in evidence:
        return Check(name=NAME, skipped=text(evidence, "skipped"))
    noise = mapping(evidence, "noise")
    tests = (
        *noise_tests(noise, who="The server's noise"),
        *clip_tests(mapping(evidence, "clip")),
        exact(
            "repeats",
            holds=boolean(evidence, "repeats"),
            broken="A round with the same seeded noise did not release the same.",
        ),
        *_count_tests(mapping(evidence, "counts")),
    )
    fact = (
        f"{integer(noise, 'rounds')} rehearsed rounds of {integer(noise, 'dimension')} coordinates."
    )
    return Check(name=NAME, tests=tests, facts=(fact,))


def clip_tests(evidence: Mapping[str, Any]) -> tuple[Test, ...]:
    """Compare the effects of made-up updates with what clipping allows.

    Raises:
        AuditError: if the evidence is malformed.
    """
    noise = max(1.0, number(evidence, "over_clip", low=0.0))
    margin, rounding = 1.0 + _MARGIN * noise, ROUNDING * noise
    return (
        exact(
            "clip",
            holds=number(evidence, "long") <= margin,
            broken="An update that is far too long moves the sum by more than the clip.",
        ),
        exact(
            "clip of several",
            holds=number(evidence, "three") <= 3.0 * margin,
            broken="Three updates that are far too long move the sum by more than three clips.",
        ),
        exact(
            "not finite",
            holds=number(evidence, "not_finite") <= rounding,
            broken="An update that is not finite moves the sum.",
        ),
        exact(
            "within the clip",
            holds=number(evidence, "changed") <= number(evidence, "grain") + rounding,
            broken="An update within the clip is changed.",
        ),
    )


def _effects(plan: PrivacyPlan, seed: int, over_clip: float) -> dict[str, Any]:
    """Return how far made-up updates move a round, in clips."""
    direction = np.random.default_rng(seed).standard_normal(DIMENSION)
    direction /= np.linalg.norm(direction)
    clip = float(plan.clipping_norm or 0.0)
    long, half = ((length * clip * direction).astype(np.float32) for length in (LONG, 0.5))
    holes = [long.copy() for _ in range(2)]
    holes[0][7], holes[1][11] = np.nan, np.inf
    effect = _encoded if plan.distributed is not None else _difference
    grain = 0.0
    if plan.distributed is not None:
        # Rounding to the grid moves each coordinate by less than one unit.
        grain = math.sqrt(DIMENSION) / plan.distributed.grid
    return {
        "over_clip": over_clip,
        "long": _length(effect(plan, seed, [long])),
        "three": _length(effect(plan, seed, [long] * 3)),
        "not_finite": _length(effect(plan, seed, holes)),
        "changed": _length(effect(plan, seed, [half]) - 0.5 * direction),
        "grain": round(grain, 9),
    }


def _difference(plan: PrivacyPlan, seed: int, updates: Sequence[Vector]) -> Floats:
    """Return what updates add to a round, in clips: the same noise with and without them."""
    with_them, without = (
        ServerRehearsal(plan, dimension=DIMENSION, seed=seed).release(1, some)
        for some in (updates, [])
    )
    return with_them - without


def _encoded(plan: PrivacyPlan, seed: int, updates: Sequence[Vector]) -> Floats:
    """Return what updates add to a sum on the grid, in clips: their integers before the noise."""
    mechanism = plan.distributed_mechanism
    total = np.zeros(DIMENSION, dtype=np.float64)
    for index, update in enumerate(updates):
        clipped = clip_update(AdapterDelta(vector=update), clipping_norm=mechanism.clipping_norm)
        source = NoiseSource.seeded(seed, "rehearsal", "encode", index)
        total += encode_update(clipped, grid=mechanism.grid, source=source).integers
    return total / mechanism.grid


def _repeats(plan: PrivacyPlan, seed: int) -> bool:
    """Tell whether a round with the same seed releases the same."""
    first, second = (
        ServerRehearsal(plan, dimension=DIMENSION, seed=seed).release(1, []) for _ in range(2)
    )
    return bool(np.array_equal(first, second))


def _counts(plan: PrivacyPlan, seed: int | None) -> dict[str, Any]:
    """Return the squared noise on the count that moves the clip, in units of its variance."""
    if plan.quantile is None:
        return {}
    server = ServerRehearsal(plan, dimension=1, seed=seed)
    declared, quantile = declared_noise(plan), plan.quantile
    if declared is None:
        return {}
    squares = 0.0
    for server_round in range(1, COUNTS + 1):
        moved = server.aggregate(server_round, []).next_clip
        if moved is None:
            return {}
        step = -math.log(moved / quantile.initial) / quantile.learning_rate
        error = (step + quantile.target - 0.5) * declared.divisor
        squares += (error / quantile.count_noise_stddev) ** 2
    return {"rounds": COUNTS, "squares": round(squares, 6)}


def _count_tests(evidence: Mapping[str, Any]) -> tuple[Test, ...]:
    """Test the size of the noise on the count."""
    from scipy import special

    if not evidence:
        return ()
    rounds = integer(evidence, "rounds", low=1)
    squares = number(evidence, "squares", low=0.0)
    p = two_sided(float(special.chdtr(rounds, squares)), float(special.chdtrc(rounds, squares)))
    broken = "The noise on the count that moves the clip has another size than declared."
    return (Test(name="noise on the count", p=p, broken=broken),)


def _length(vector: Floats) -> float:
    """Return a length as evidence holds it; a length that is not finite counts as endless."""
    length = float(np.linalg.norm(vector))
    return round(length, 9) if math.isfinite(length) else 1e300
