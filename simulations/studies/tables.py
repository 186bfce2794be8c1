"""From the runs of an arm to its row: the estimates that most studies share."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from simulations.studies.numbers import Estimate
from simulations.studies.protocol import Arm, Column, Row, Run

LOSS_BEFORE = Column(key="loss_before", title="held-out loss before, nats a token", digits=3)
LOSS_AFTER = Column(key="loss_after", title="held-out loss after, nats a token", digits=3)
SECRET_BITS = Column(key="secret_bits", title="exposure of secrets, bits")
HELD_OUT_BITS = Column(key="secret_bits_held_out", title="the same, never trained on")
SECRET_AUC = Column(key="secret_auc", title="membership AUC, secrets", digits=3)
TOKEN_AUC = Column(key="token_auc", title="membership AUC, rare tokens", digits=3)
EXTRACTED = Column(key="secret_extracted", title="share of secrets extracted", digits=3)

_GENERAL = (
    "base_parameters",
    "trainable_parameters",
    "loss_before",
    "loss_after",
    "epsilon",
    "epsilon_applicable",
    "noise_multiplier",
    "epsilon_lower_bound",
    "epsilon_ceiling",
)
_KINDS = {
    "secret_bits": ("secret", "exposure_bits"),
    "secret_bits_held_out": ("secret", "exposure_bits_held_out"),
    "secret_auc": ("secret", "auc"),
    "secret_extracted": ("secret", "extracted"),
    "token_bits": ("rare-token", "exposure_bits"),
    "token_auc": ("rare-token", "auc"),
    "token_extracted": ("rare-token", "extracted"),
}


def rows_by_arm(arms: Sequence[Arm], runs: Sequence[Run]) -> list[Row]:
    """Return one row per arm, in the order of the arms, with every estimate there is."""
    return [
        Row(name=arm.name, label=arm.label, estimates=estimates(of_arm(arm, runs))) for arm in arms
    ]


def of_arm(arm: Arm, runs: Sequence[Run]) -> list[Run]:
    """Return the runs of one arm."""
    return [run for run in runs if run["arm"] == arm.name]


def estimates(runs: Sequence[Run]) -> dict[str, Estimate]:
    """Summarise what was measured of the runs of one arm."""
    found = {key: Estimate.of(_value(run, key) for run in runs) for key in _GENERAL}
    for key, (kind, measured) in _KINDS.items():
        found[key] = Estimate.of(_of_kind(run, kind, measured) for run in runs)
    return found


def over_seeds(runs: Sequence[Run], value: Callable[[Run], float | None]) -> Estimate:
    """Summarise a number that each run has, or has not."""
    return Estimate.of(value(run) for run in runs)


def _of_kind(run: Run, kind: str, key: str) -> float | None:
    """Return a number about one kind of canary."""
    kinds: Mapping[str, Any] = run["kinds"]
    return _value(kinds.get(kind, {}), key)


def _value(values: Mapping[str, Any], key: str) -> float | None:
    """Return a number, or None."""
    found = values.get(key)
    return None if found is None else float(found)
