"""What an exported step must be for a scenario; read by the exporter and again by the device."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from shared.errors import ConflictingSettings

if TYPE_CHECKING:
    from client.edge.program import StepManifest
    from shared.config import RunConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class StepTerms:
    """The part of a scenario that an exported step depends on.

    Attributes:
        length: tokens that every example is padded to, ``data.max_length``.
        max_grad_norm: the clip of DP-SGD steps; None where local steps are not private.
        trained: the kinds of factors that every round trains.
    """

    length: int
    max_grad_norm: float | None
    trained: str


def terms_of(config: RunConfig) -> StepTerms:
    """Return what a step must be for a scenario.

    Raises:
        ConflictingSettings: for what no step does; says what to change.
    """
    if config.task.classifies:
        _refuse("task.kind='classification'", "Exported steps train language models.")
    if config.mixture.adapters > 1:
        _refuse("mixture.adapters", "A step has one adapter: leave [mixture] out.")
    if config.devices.ranks:
        _refuse("devices.ranks", "A step has one rank: leave devices.ranks out.")
    if config.lora.dropout > 0:
        _refuse(f"lora.dropout={config.lora.dropout:g}", "Set lora.dropout=0.")
    policy = config.policy_facts
    if policy.kept:
        _refuse(f"aggregation.share={policy.kept!r}", "A step keeps no factors of its own.")
    kinds = {policy.trained(number) for number in range(1, min(config.run.rounds, 2) + 1)}
    if len(kinds) != 1:
        name = config.aggregation.policy
        _refuse(f"aggregation.policy={name!r}", 'Its rounds train different factors: use "ffa".')
    mode = config.privacy.mode
    inner = config.privacy if mode == "example" else config.example
    return StepTerms(
        length=config.data.max_length,
        max_grad_norm=None if mode == "none" else inner.max_grad_norm,
        trained=kinds.pop(),
    )


def require_step_for(config: RunConfig, manifest: StepManifest) -> None:
    """Refuse a step that was not exported for a scenario like this one.

    Raises:
        ConflictingSettings: naming the setting, what the scenario says and what the step is.
    """
    terms, lora, spec = terms_of(config), config.lora, manifest.adapter
    clip = manifest.max_grad_norm
    pairs = {
        "data.max_length": (terms.length, manifest.length),
        "the factors that train": (terms.trained, manifest.trained),
        "max_grad_norm": (terms.max_grad_norm, terms.max_grad_norm if clip is None else clip),
        "lora.r": (lora.r, spec.r),
        "lora.alpha": (lora.alpha, spec.lora_alpha),
        "lora.variant": (lora.variant == "rslora", spec.rslora),
    }
    if lora.target_modules != "all-linear":
        pairs["lora.target_modules"] = (
            sorted(set(lora.target_modules)),
            sorted(spec.target_modules),
        )
    for name, (wanted, found) in pairs.items():
        if wanted != found:
            _refuse(f"{name}: {wanted!r}", f"The exported step has {found!r}: export another.")


def _refuse(found: str, hint: str) -> None:
    """Raise the error of a scenario that a step does not fit."""
    msg = f"{found} and an exported step do not go together."
    raise ConflictingSettings(msg, hint=hint)
