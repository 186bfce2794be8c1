"""A fixed clip against one that follows the median norm, where the first guess is ten times off.

The embedded model on the built-in notes of clinics, 200 clients, 40 rounds of 20 clients, epsilon
8, through the same path as ``fedslm simulate``. The noise grows with the clip, so a clip that is
too large drowns the updates; one that is too small shortens them, which momentum feels and Adam,
whose steps have a length of their own, hardly does. Moving the clip costs some noise, which is
counted.
"""

from __future__ import annotations

from collections.abc import Mapping

from simulations.benchmarks.protocol import BenchResult, Check, Scalar
from simulations.benchmarks.training import QUICK, SETTING, train

SUMMARY = "Held-out loss with a fixed and with an adaptive clip, from a first clip 10 times off."

# The clip of the quickstart, which was tuned by hand.
_TUNED = 0.5
_CLIPPINGS: Mapping[str, Mapping[str, object]] = {
    "fixed": {},
    "quantile": {"privacy.clipping_quantile": 0.5, "privacy.clipping_learning_rate": 0.2},
}
_OPTIMIZERS: Mapping[str, Mapping[str, object]] = {
    "momentum 0.3": {
        "server.optimizer": "momentum",
        "server.momentum": 0.9,
        "server.learning_rate": 0.3,
        "server.schedule": "constant",
    },
    "adam 0.06": {},
}


def run(*, quick: bool) -> BenchResult:
    """Train with each clipping from each first clip."""
    setting = {**QUICK, "privacy.count_noise_stddev": 1.0} if quick else SETTING
    factors = (10.0,) if quick else (0.1, 1.0, 10.0)
    optimizers = list(_OPTIMIZERS)[:1] if quick else list(_OPTIMIZERS)
    rows = [
        _row(setting, optimizer, clipping, factor)
        for optimizer in optimizers
        for factor in factors
        for clipping in _CLIPPINGS
    ]
    loss = {(row["optimizer"], row["first_clip"], row["clipping"]): row["loss"] for row in rows}
    large = _TUNED * 10.0
    return BenchResult(
        name="clipping",
        parameters={
            "population": int(str(setting["clients.population"])),
            "cohort": float(str(setting["clients.cohort"])),
            "rounds": int(str(setting["run.rounds"])),
            "epsilon": 8.0,
            "delta": float(str(setting["privacy.delta"])),
            "target": 0.5,
            "quick": quick,
        },
        rows=tuple(rows),
        checks=tuple(
            Check(
                name=f"{optimizer}, first clip 10 times too large: adaptive over fixed loss",
                measured=float(loss[optimizer, large, "quantile"] or 0.0)
                / float(loss[optimizer, large, "fixed"] or 1.0),
                limit=1.0,
                unit="x",
            )
            for optimizer in optimizers
        ),
    )


def _row(
    setting: Mapping[str, object], optimizer: str, clipping: str, factor: float
) -> dict[str, Scalar]:
    """Train once and return one line of the table."""
    chosen = {**_OPTIMIZERS[optimizer], **_CLIPPINGS[clipping]}
    found = train({**setting, **chosen, "privacy.clipping_norm": _TUNED * factor}, seed=1)
    return {
        "optimizer": optimizer,
        "clipping": clipping,
        "first_clip": _TUNED * factor,
        "last_clip": _TUNED * factor if found.last_clip is None else found.last_clip,
        "loss_before": found.loss_before,
        "loss": found.loss,
        "epsilon": found.epsilon,
        "noise_multiplier": found.noise_multiplier,
    }
