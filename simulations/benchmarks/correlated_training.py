"""Training with correlated, independent and sampled noise, at one epsilon, delta and population.

The embedded model on the built-in notes of clinics, 200 clients, 40 rounds of 20 clients, through
the same path as ``fedslm simulate``. Each way of noising gets the same learning rates: momentum at
a constant rate (sums over rounds are what correlated noise is made for), and Adam as in the
quickstart, whose steps are no sums. Rows give the held-out loss of all clients, averaged over
seeds. Choosing a learning rate by that loss is for the comparison alone; nobody is charged for it.
"""

from __future__ import annotations

from collections.abc import Mapping

from simulations.benchmarks.protocol import BenchResult, Check, Scalar
from simulations.benchmarks.training import QUICK, SETTING, Trained, train

SUMMARY = "Held-out loss under correlated, independent and sampled noise, at equal epsilon."

# One band is independent noise: the same cohorts, every participation a release of its own.
_NOISES: Mapping[str, Mapping[str, object]] = {
    "correlated": {"privacy.mechanism": "correlated"},
    "independent": {"privacy.mechanism": "correlated", "privacy.bands": 1},
    "sampled": {},
}
_MOMENTUM: Mapping[str, object] = {
    "server.optimizer": "momentum",
    "server.momentum": 0.9,
    "server.schedule": "constant",
}


def run(*, quick: bool) -> BenchResult:
    """Train with each noise and optimizer."""
    setting = QUICK if quick else SETTING
    optimizers = {"momentum 0.3": {**_MOMENTUM, "server.learning_rate": 0.3}}
    if not quick:
        optimizers["momentum 0.1"] = {**_MOMENTUM, "server.learning_rate": 0.1}
        optimizers["adam 0.06"] = {}
    seeds = {name: (1,) if quick or name != "momentum 0.3" else (1, 2) for name in optimizers}
    rows = [
        _row(noise, name, [train({**setting, **of_noise, **values}, seed=s) for s in seeds[name]])
        for name, values in optimizers.items()
        for noise, of_noise in _NOISES.items()
    ]
    best = {
        noise: min(float(row["loss"] or 0.0) for row in rows if row["noise"] == noise)
        for noise in _NOISES
    }
    return BenchResult(
        name="correlated_training",
        parameters={
            "population": int(str(setting["clients.population"])),
            "cohort": float(str(setting["clients.cohort"])),
            "rounds": int(str(setting["run.rounds"])),
            "epsilon": 8.0,
            "delta": float(str(setting["privacy.delta"])),
            "quick": quick,
        },
        rows=tuple(rows),
        checks=(
            _at_most("correlated over independent, best loss of each", best, "independent"),
            _at_most("correlated over sampled, best loss of each", best, "sampled"),
        ),
    )


def _row(noise: str, optimizer: str, runs: list[Trained]) -> dict[str, Scalar]:
    """Return one line of the table."""
    return {
        "noise": noise,
        "optimizer": optimizer,
        "seeds": len(runs),
        "loss_before": sum(run.loss_before for run in runs) / len(runs),
        "loss": sum(run.loss for run in runs) / len(runs),
        "worst_loss": max(run.loss for run in runs),
        "epsilon": runs[0].epsilon,
        "noise_multiplier": runs[0].noise_multiplier,
    }


def _at_most(name: str, best: Mapping[str, float], other: str) -> Check:
    """Return the check that correlated noise does not train worse than another."""
    return Check(name=name, measured=best["correlated"] / best[other], limit=1.0, unit="x")
