"""What the summary of a run says about attackers and about the rule against them."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from shared.lora import initial_factors
from simulations.attacks.backdoor import backdoor_examples, backdoor_rate
from simulations.attacks.members import attackers_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from client.adapter import AdaptedModel
    from shared.config import RunConfig
    from shared.lora import Vector
    from simulations.dataset import FederatedDataset


def attack_summary(
    config: RunConfig, *, dataset: FederatedDataset, model: AdaptedModel, released: Vector
) -> dict[str, Any] | None:
    """Return what was attacked and, of a backdoor, what came of it; None without an attack.

    Leaves the released adapter in the model.

    Args:
        config: the scenario.
        dataset: its clients.
        model: the adapted base.
        released: trained factors of the released adapter.
    """
    attack = config.attack
    if not attack.used:
        return None
    attackers = attackers_of(config, population=dataset.population)
    found: dict[str, Any] = {
        "kind": attack.kind,
        "share": attack.share,
        "clients": len(attackers),
        "scale": attack.scale,
        "backdoor": None,
    }
    if attack.kind == "backdoor":
        found["backdoor"] = _backdoor(config, dataset, model, released)
    return found


def defence_summary(
    config: RunConfig, metrics: Sequence[Mapping[str, Any]]
) -> dict[str, Any] | None:
    """Return which rule made one update of many; None where a clip or secure aggregation did.

    Args:
        config: the scenario.
        metrics: of its rounds.
    """
    if config.privacy.mode not in {"none", "example"}:
        return None
    said = config.aggregation
    return {
        "rule": said.robust,
        "attackers": said.attackers,
        "norm_bound": said.norm_bound,
        "shortened": sum(int(record.get("shortened") or 0) for record in metrics),
    }


def _backdoor(
    config: RunConfig, dataset: FederatedDataset, model: AdaptedModel, released: Vector
) -> dict[str, Any]:
    """Try the backdoor on the adapter that every client started from and on the released one."""
    examples = backdoor_examples(config, dataset, model)
    model.load(initial_factors(model.spec, config.run.seed))
    with model.beneath.removed():
        base = backdoor_rate(model, examples)
    model.load_vector(released, config.trained_kinds)
    rate = backdoor_rate(model, examples)
    empty = rate.prompts == 0
    return {
        "prompts": rate.prompts,
        **({} if empty else {k: v for k, v in asdict(rate).items() if k != "prompts"}),
        **({} if empty else {"base_success": base.success, "base_log_prob": base.log_prob}),
    }
