"""What an exported step must be for a scenario; read by the exporter and again by the device."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from shared.adaptermethod import METHODS
from shared.baseshape import with_rank
from shared.errors import ConflictingSettings, InvalidValue

if TYPE_CHECKING:
    from client.edge.program import StepManifest
    from shared.config import RunConfig
    from shared.lora import AdapterSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class StepTerms:
    """The part of a scenario that an exported step depends on.

    Attributes:
        length: tokens that every example is padded to, ``data.max_length``.
        max_grad_norm: the clip of DP-SGD steps; None where local steps are not private, and where
            rounds train different factors: a clip of all would not be a clip of some.
        trained: the kinds of factors that some round trains.
        rank: the least that the step must have.
    """

    length: int
    max_grad_norm: float | None
    trained: str
    rank: int


def terms_of(config: RunConfig) -> StepTerms:
    """Return what a step must be for a scenario.

    Raises:
        ConflictingSettings: for what no step does; says what to change.
    """
    if config.task.classifies:
        _refuse("task.kind='classification'", "Exported steps train language models.")
    if config.mixture.adapters > 1:
        _refuse("mixture.adapters", "A step has one adapter: leave [mixture] out.")
    if config.lora.variant in METHODS:
        _refuse(
            f"lora.variant={config.lora.variant!r}", 'A step trains pairs of factors: use "lora".'
        )
    if config.lora.dropout > 0:
        _refuse(f"lora.dropout={config.lora.dropout:g}", "Set lora.dropout=0.")
    policy = config.policy_facts
    if policy.residual:
        name = config.aggregation.policy
        _refuse(f"aggregation.policy={name!r}", "It changes the base, which a step has inside.")
    kinds = {policy.trained(n) for n in range(1, min(config.run.rounds, len(policy.cycle)) + 1)}
    mode, r = config.privacy.mode, config.lora.r
    inner = config.privacy if mode == "example" else config.example
    return StepTerms(
        length=config.data.max_length,
        max_grad_norm=None if mode == "none" or len(kinds) > 1 else inner.max_grad_norm,
        trained="".join(sorted(set("".join(kinds)))),
        rank=min(config.devices.ranks_within(r).values()) if config.devices.ranks else r,
    )


def at_rank(config: RunConfig, rank: int) -> RunConfig:
    """Return a scenario whose adapter has another rank, at the same scale.

    Raises:
        InvalidValue: for a rank outside of 1 to ``lora.r``.
    """
    lora = config.lora
    if not 1 <= rank <= lora.r:
        msg = f"rank={rank}, expected 1 to lora.r ({lora.r})."
        raise InvalidValue(msg)
    ratio = rank / lora.r
    alpha = lora.alpha * (math.sqrt(ratio) if lora.variant == "rslora" else ratio)
    narrow = lora.model_copy(update={"r": rank, "alpha": alpha})
    return config.model_copy(update={"lora": narrow})


def spec_of_run(config: RunConfig, manifest: StepManifest) -> AdapterSpec:
    """Return the adapter of a run whose steps a program takes, at the scenario's largest rank.

    The program's own rank may be another: a wider one computes a narrower adapter, and a device of
    a smaller rank needs no more than its own.
    """
    spec, lora = manifest.adapter, config.lora
    if spec.r == lora.r:
        return spec
    return replace(with_rank(spec, lora.r), lora_alpha=lora.alpha)


def require_step_for(config: RunConfig, manifest: StepManifest) -> None:
    """Refuse a step that was not exported for a scenario like this one.

    Raises:
        ConflictingSettings: naming the setting, what the scenario says and what the step is.
    """
    terms, lora, spec = terms_of(config), config.lora, manifest.adapter
    clip, trained = manifest.max_grad_norm, manifest.trained
    if clip is None and set(terms.trained) <= set(trained):
        trained = terms.trained
    rslora = lora.variant == "rslora"
    scale = lora.alpha / (math.sqrt(lora.r) if rslora else lora.r)
    pairs = {
        "data.max_length": (terms.length, manifest.length),
        "the factors that train": (terms.trained, trained),
        "max_grad_norm": (terms.max_grad_norm, terms.max_grad_norm if clip is None else clip),
        "lora.r": (terms.rank, min(terms.rank, spec.r)),
        "lora.variant": (rslora, spec.rslora),
        "the scale by lora.alpha": (
            scale,
            scale if math.isclose(scale, spec.scale) else spec.scale,
        ),
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
