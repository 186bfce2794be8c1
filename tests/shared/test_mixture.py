"""What is public about a mixture: read strictly, drawn from the seed, refused where unsound."""

from __future__ import annotations

import json
import math
import tomllib
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.adapterterms import adapter_terms
from shared.configfile import resolve
from shared.errors import AdapterIncompatible, ConfigError
from shared.lora import AdapterSpec, Factor, initial_factors
from shared.loraconfig import check_factors, read_lora_config
from shared.mixture import MOST_ADAPTERS, PEFT_TYPE, ROUTER, Mixture
from shared.tensorfile import Tensor

STEM = "base_model.model.q_proj.lora_"
ROUTER_NAME = f"base_model.model.{ROUTER}.weight"
MINIMAL = tomllib.loads("""
[run]
name = "t"
rounds = 1
[data]
path = "builtin:clinics"
text = "text"
[clients]
population = 3
local_steps = 1
[privacy]
mode = "none"
""")
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["adapters", "sharpness", "x"]), inner, max_size=3)
    ),
)


def spec(kind: str = "B", adapters: int = 3, r: int = 6) -> AdapterSpec:
    factors = (
        Factor(name=ROUTER_NAME, kind=kind, shape=(adapters, 12)),
        Factor(name=f"{STEM}A.weight", kind="A", shape=(r, 12)),
        Factor(name=f"{STEM}B.weight", kind="B", shape=(5, r)),
    )
    return AdapterSpec(
        factors=factors,
        r=r,
        lora_alpha=8.0,
        target_modules=("q_proj",),
        mixture=Mixture(adapters=3, sharpness=4.0),
    )


@given(JSON)
def test_only_two_numbers_within_limits_are_a_mixture(data: Any) -> None:
    try:
        found = Mixture.from_json(data)
    except AdapterIncompatible:
        return
    assert set(data) == {"adapters", "sharpness"}
    assert 2 <= found.adapters <= MOST_ADAPTERS
    assert 0 < found.sharpness <= 100
    assert Mixture.from_json(json.loads(json.dumps(found.to_json()))) == found


@pytest.mark.parametrize("adapters", [0, 1, MOST_ADAPTERS + 1, True, 2.0])
def test_other_numbers_of_adapters_are_refused(adapters: Any) -> None:
    with pytest.raises(AdapterIncompatible):
        Mixture.from_json({"adapters": adapters, "sharpness": 1.0})


@pytest.mark.parametrize("sharpness", [0.0, -1.0, math.nan, math.inf, 101.0, "1", True])
def test_other_sharpness_is_refused(sharpness: Any) -> None:
    with pytest.raises(AdapterIncompatible):
        Mixture.from_json({"adapters": 2, "sharpness": sharpness})


def test_adapters_start_orthogonal_and_the_router_is_drawn_from_the_seed() -> None:
    """The mean square of 36 standard normals has a deviation of 0.24; the seed is fixed."""
    one, other = initial_factors(spec(), 7), initial_factors(spec(), 8)
    a = one[f"{STEM}A.weight"]
    np.testing.assert_allclose(a @ a.T, np.eye(6), atol=1e-6)
    assert not one[f"{STEM}B.weight"].any()
    router = one[ROUTER_NAME]
    assert abs(np.square(router).mean() - 1) < 0.5
    assert not np.array_equal(router, other[ROUTER_NAME])
    assert np.array_equal(router, initial_factors(spec(), 7)[ROUTER_NAME])


def test_a_router_must_have_a_row_for_each_adapter() -> None:
    with pytest.raises(AdapterIncompatible, match="routers"):
        spec(adapters=2)
    with pytest.raises(AdapterIncompatible, match="rank 7"):
        spec(r=7)
    assert spec("A").of_kind("B")[0].low_rank
    assert spec().layers == ("base_model.model.q_proj",)


@pytest.mark.parametrize("variant", ["lora", "rslora"])
def test_each_adapter_keeps_the_scale_of_one(variant: str) -> None:
    said = ["lora.r=4", "lora.alpha=8.0", f"lora.variant={variant}", "mixture.adapters=3"]
    terms = adapter_terms(resolve(MINIMAL, said, source="test").config)
    assert terms.r == 12
    divisor = math.sqrt(terms.r) if terms.rslora else terms.r
    expected = 8 / (2 if variant == "rslora" else 4)
    assert terms.alpha / divisor == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        (["aggregation.policy=flexlora"], "mixture.adapters"),
        (["aggregation.policy=rolora"], "mixture.adapters"),
        (["mixture.router=frozen"], "mixture.router"),
        (["aggregation.policy=fedavg", "aggregation.share=A"], "chooses for all"),
        (
            ["lora.r=4", "devices.mix={pi5 = 0.5, laptop = 0.5}", "devices.ranks={pi5 = 2}"],
            "lack whole adapters",
        ),
        (
            ["aggregation.policy=ffa", "aggregation.refactor_every=2"],
            "aggregation.refactor_every",
        ),
        (["performance.clipper=opacus"], "performance.clipper"),
        (["task.kind=classification", 'task.labels=["a","b"]'], "mixture.adapters"),
    ],
)
def test_what_a_mixture_excludes_says_why(settings: list[str], key: str) -> None:
    with pytest.raises(ConfigError) as caught:
        resolve(MINIMAL, ["mixture.adapters=2", *settings], source="test")
    assert key in str(caught.value)


def test_what_goes_with_a_mixture_is_allowed() -> None:
    for settings in (["aggregation.policy=ffa", "mixture.router=frozen"], ["lora.dropout=0.1"]):
        resolve(MINIMAL, ["mixture.adapters=8", *settings], source="test")
    with pytest.raises(ConfigError, match="one adapter has no router"):
        resolve(MINIMAL, ["aggregation.policy=ffa", "mixture.router=frozen"], source="test")


def config(**changes: object) -> bytes:
    said: dict[str, object] = {
        "peft_type": PEFT_TYPE,
        "task_type": "CAUSAL_LM",
        "r": 6,
        "lora_alpha": 8.0,
        "target_modules": ["q_proj"],
        "mixture": {"adapters": 3, "sharpness": 4.0},
    }
    return json.dumps({**said, **changes}).encode()


def tensors(shapes: dict[str, tuple[int, ...]]) -> list[Tensor]:
    return [Tensor(name=n, dtype="F32", shape=s, start=0, stop=0) for n, s in shapes.items()]


FACTORS: dict[str, tuple[int, ...]] = {f"{STEM}A.weight": (6, 12), f"{STEM}B.weight": (5, 6)}


def test_a_mixture_is_read_and_its_router_required() -> None:
    terms = read_lora_config(config())
    assert terms.mixture == Mixture(adapters=3, sharpness=4.0)
    check_factors(tensors({**FACTORS, ROUTER_NAME: (3, 12)}), terms)
    wrong: list[dict[str, tuple[int, ...]]] = [
        FACTORS,
        {**FACTORS, ROUTER_NAME: (2, 12)},
        {**FACTORS, ROUTER_NAME: (3,)},
        {**FACTORS, ROUTER_NAME: (3, 12), f"x.{ROUTER}.weight": (3, 12)},
    ]
    for shapes in wrong:
        with pytest.raises(AdapterIncompatible, match="router"):
            check_factors(tensors(shapes), terms)


def test_a_plain_lora_with_gates_is_refused() -> None:
    with pytest.raises(AdapterIncompatible):
        read_lora_config(config(peft_type="LORA"))
    with pytest.raises(AdapterIncompatible):
        read_lora_config(config(mixture=None))
    with pytest.raises(AdapterIncompatible):
        read_lora_config(config(mixture={"adapters": 3, "sharpness": 4.0, "more": 1}))
    plain = read_lora_config(config(peft_type="LORA", mixture=None))
    with pytest.raises(AdapterIncompatible, match="router"):
        check_factors(tensors({**FACTORS, ROUTER_NAME: (3, 12)}), plain)
