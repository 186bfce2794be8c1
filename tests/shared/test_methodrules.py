"""What IA3 and prompts exclude is refused by its key, and what they allow is let through."""

from __future__ import annotations

import pytest

from shared.adaptermethod import METHODS, nearest_power_of_two
from shared.baseshape import with_rank
from shared.configfile import resolve
from shared.errors import ConfigError
from shared.lora import AdapterSpec, Factor
from shared.rankrules import may_mix_ranks
from tests.integration.scenario import TABLES

MEAN = "server.optimizer=mean"
DISTRIBUTED = (
    "privacy.mode=client-distributed",
    "privacy.honest_fraction=0.9",
    "privacy.survivor_fraction=0.7",
    "privacy.min_cohort=4",
)
NONE = "privacy.mode=none"
FEDAVG = "aggregation.policy=fedavg"
LABELS = ("task.kind=classification", 'task.labels=["a", "b"]')


def refused(method: str, *settings: str) -> list[str]:
    """Return the keys that are refused because of the method: not refused with plain LoRA."""
    found = []
    for variant in (method, "lora"):
        try:
            resolve(TABLES, [f"lora.variant={variant}", *settings], source="test")
        except ConfigError as error:
            found.append([problem.key for problem in error.problems])
        else:
            found.append([])
    return sorted(set(found[0]) - set(found[1]))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("settings", "key"),
    [
        (("aggregation.policy=rolora",), "aggregation.policy"),
        (("aggregation.policy=flexlora", NONE, MEAN), "aggregation.policy"),
        (("aggregation.policy=fedex", NONE, MEAN), "aggregation.policy"),
        ((FEDAVG, "aggregation.share=A", "audit.canaries=0"), "aggregation.share"),
        (("aggregation.refactor_every=2",), "aggregation.refactor_every"),
        (("devices.mix={pi5=0.5,pi4=0.5}", "devices.ranks={pi4=1}"), "devices.ranks"),
        (("mixture.adapters=2",), "mixture.adapters"),
        (LABELS, "lora.variant"),
        (("lora.dropout=0.1",), "lora.dropout"),
        (("performance.clipper=opacus",), "performance.clipper"),
    ],
)
def test_what_needs_pairs_is_refused(method: str, settings: tuple[str, ...], key: str) -> None:
    assert key in refused(method, *settings)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    "settings",
    [
        (),
        (FEDAVG,),
        (NONE,),
        ("privacy.mode=example",),
        DISTRIBUTED,
        (NONE, "aggregation.robust=median"),
        (NONE, "link.up=topk"),
        ("link.up=int8", "link.down=delta"),
        ("model.quantization=nf4",),
        ("performance.clipper=microbatch",),
        ("personal.steps=2",),
        (FEDAVG, NONE, "server.optimizer=adam"),
    ],
)
def test_what_is_linear_in_the_vectors_is_let_through(
    method: str, settings: tuple[str, ...]
) -> None:
    assert refused(method, *settings) == []


def test_rounding_near_one_is_refused_and_near_zero_is_not() -> None:
    assert refused("ia3", "link.down=fp16") == ["link.down"]
    assert refused("prompt", "link.down=fp16") == []


@pytest.mark.parametrize("method", METHODS)
def test_it_has_no_rank_to_mix_or_to_thin(method: str) -> None:
    config = resolve(TABLES, [f"lora.variant={method}"], source="test").config
    assert not may_mix_ranks(config)
    name = "prompt_embeddings" if method == "prompt" else "base_model.model.q.ia3_l"
    said = {"name": method, "feedforward": [], "spread": 1.0}
    spec = AdapterSpec.from_json(
        {
            "factors": [[name, "B", [8, 1]]],
            "r": 1,
            "lora_alpha": 1.0,
            "target_modules": [],
            "fan_in_fan_out": False,
            "method": said,
        }
    )
    assert with_rank(spec, 1) == spec == with_rank(spec, 4)
    assert spec.factors == (Factor(name=name, kind="B", shape=(8, 1)),)
    assert spec.prepended == (8 if method == "prompt" else 0)


@pytest.mark.parametrize(
    ("value", "power"), [(0.02, 2**-6), (1.0, 1.0), (0.7, 0.5), (0.71, 1.0), (0.0, 1.0)]
)
def test_spreads_are_powers_of_two(value: float, power: float) -> None:
    assert nearest_power_of_two(value) == power
