"""What is trained: variants of the adapter and tasks that are refused, each with its reason."""

from __future__ import annotations

import tomllib

import pytest

from shared.configfile import resolve
from shared.errors import ConfigError
from shared.taskrules import REFUSED_VARIANTS

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


@pytest.mark.parametrize("variant", sorted(REFUSED_VARIANTS))
def test_other_variants_are_refused_with_the_reason(variant: str) -> None:
    with pytest.raises(ConfigError) as caught:
        resolve(MINIMAL, [f"lora.variant={variant}"], source="test")
    assert REFUSED_VARIANTS[variant][:40] in str(caught.value)


def test_rslora_is_another_scenario_than_lora() -> None:
    plain = resolve(MINIMAL, [], source="test").config
    stabilised = resolve(MINIMAL, ["lora.variant=rslora"], source="test").config
    assert plain.lora.variant == "lora"
    assert plain.digest() != stabilised.digest()
