"""What distributed noise costs: in noise, beside Gaussian noise, and in time.

The noise multipliers meet the same epsilon and delta, each kind of noise by PLD and by Renyi
divergence. Skellam noise by PLD is what a plan asks for on a fine grid; by Renyi divergence it is
what a plan would ask for where the grid is too coarse.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import partial

import numpy as np

from shared.privacy.accountant import AccountantName
from shared.privacy.calibration import calibrate
from shared.privacy.distributed import DistributedSkellam, choose_grid, encode_update, noise_share
from shared.privacy.events import GaussianEvent, NeighboringRelation, SkellamEvent
from shared.privacy.mechanism import AdapterDelta, clip_update
from shared.privacy.noise import NoiseSource
from simulations.benchmarks.protocol import BenchResult, Check, Scalar

SUMMARY = (
    "Skellam noise in shares: noise needed beside Gaussian noise, and time per million values."
)

# clients, sampling probability, rounds, epsilon, delta
_SETTINGS = (
    (20, 1.0, 20, 8.0, 1e-5),
    (100, 0.5, 50, 8.0, 1e-5),
    (1_000, 0.1, 200, 8.0, 1e-6),
    (10_000, 0.01, 1_000, 4.0, 1e-6),
)
_COHORT = 100
_VALUES = 1_000_000
_MEANS = (1.0, 100.0, 1e4, 1e8, 1e12)


def run(*, quick: bool) -> BenchResult:
    """Calibrate both kinds of noise, then time sampling, encoding, noising and releasing."""
    settings = _SETTINGS[:2] if quick else _SETTINGS
    values = _VALUES // 10 if quick else _VALUES
    source = NoiseSource.from_os()
    rows: list[Mapping[str, Scalar]] = [_calibrated(*setting) for setting in settings]
    sampled = [_timed(partial(source.skellam, 2.0 * mean, values)) for mean in _MEANS]
    rows += [
        {"case": f"draw, Poisson mean {mean:g}", "values": values, "seconds": seconds}
        for mean, seconds in zip(_MEANS, sampled, strict=True)
    ]
    mechanism = DistributedSkellam(noise_multiplier=1.0, clipping_norm=1.0, grid=2**18)
    raw = AdapterDelta(vector=source.normal(values).astype(np.float32))
    delta = clip_update(raw, clipping_norm=1.0)
    encoded = encode_update(delta, grid=mechanism.grid, source=source)
    total = mechanism.share(delta, cohort=_COHORT, source=source).words
    variance = mechanism.variance
    steps: dict[str, Callable[[], object]] = {
        "client: encode": lambda: encode_update(delta, grid=mechanism.grid, source=source),
        "client: add its share of the noise": lambda: noise_share(
            encoded, variance=variance, cohort=_COHORT, source=source
        ),
        "server: complete the noise and decode": lambda: mechanism.release(
            total, cohort=_COHORT, survivors=_COHORT - 10, expected_count=90.0, source=source
        ),
    }
    timed = {name: _timed(step) for name, step in steps.items()}
    rows += [
        {"case": name, "values": values, "seconds": seconds} for name, seconds in timed.items()
    ]
    checks = (
        Check(name="draw a million", measured=max(sampled), limit=1.0, unit="s"),
        Check(name="client in all", measured=sum(list(timed.values())[:2]), limit=2.0, unit="s"),
        Check(name="server in all", measured=list(timed.values())[2], limit=5.0, unit="s"),
    )
    return BenchResult(
        name="skellam",
        parameters={"values": values, "cohort": _COHORT, "quick": quick},
        rows=tuple(rows),
        checks=checks,
    )


def _calibrated(
    clients: int, probability: float, rounds: int, epsilon: float, delta: float
) -> dict[str, Scalar]:
    """Return the noise multipliers that meet one target."""
    cohort = round(clients * probability)
    # Twice the expected cohort bounds a Poisson sample of this size but for once in 1e20 rounds.
    largest = min(clients, 2 * cohort + 30)

    def gaussian(z: float) -> GaussianEvent:
        return GaussianEvent(noise_multiplier=z, sampling_probability=probability, count=rounds)

    def skellam(z: float) -> SkellamEvent:
        return SkellamEvent(
            noise_multiplier=z,
            grid=choose_grid(z, largest),
            sampling_probability=probability,
            count=rounds,
        )

    def needs(
        event: Callable[[float], GaussianEvent | SkellamEvent], accountant: AccountantName | None
    ) -> float:
        relation = NeighboringRelation.ADD_OR_REMOVE_ONE
        terms = {"epsilon": epsilon, "delta": delta}
        return calibrate(event, relation=relation, accountant=accountant, **terms)

    ours, ours_by_rdp = needs(skellam, None), needs(skellam, "rdp")
    by_pld, by_rdp = needs(gaussian, "pld"), needs(gaussian, "rdp")
    return {
        "case": f"{clients} clients, q={probability:g}, {rounds} rounds",
        "epsilon": epsilon,
        "delta": delta,
        "grid": choose_grid(ours, largest),
        "gaussian_pld": by_pld,
        "gaussian_rdp": by_rdp,
        "skellam_reported": ours,
        "skellam_rdp": ours_by_rdp,
        "over_gaussian_pld": ours / by_pld,
        "rdp_over_gaussian_rdp": ours_by_rdp / by_rdp,
    }


def _timed(step: Callable[[], object]) -> float:
    """Return the CPU seconds of the quickest of three runs."""
    taken = []
    for _ in range(3):
        started = time.process_time()
        step()
        taken.append(time.process_time() - started)
    return min(taken)
