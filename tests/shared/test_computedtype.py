"""Which precision a scenario names, and that its digest names it too."""

from __future__ import annotations

import pytest

from shared.configfile import resolve
from shared.errors import ConfigError
from simulations.catalog import open_scenario
from tests.integration.scenario import TABLES


@pytest.mark.parametrize(
    ("said", "products"),
    [
        ([], "float32"),
        (["model.quantization=int8"], "float32"),
        (["model.quantization=nf4"], "bfloat16"),
        (["model.quantization=nf4", "model.compute_dtype=float32"], "float32"),
        (["model.quantization=int4", "model.compute_dtype=bfloat16"], "bfloat16"),
        (["model.quantization=none", "model.compute_dtype=float32"], "float32"),
    ],
)
def test_the_default_goes_by_the_storage_alone(said: list[str], products: str) -> None:
    tables = {**TABLES, "model": {"base": "demo"}}
    assert resolve(tables, said, source="test").config.model.products == products


def test_it_is_part_of_the_digest() -> None:
    digests = {
        open_scenario("quickstart", [f"model.compute_dtype={name}"]).config.digest()
        for name in ("float32", "bfloat16")
    }
    assert len(digests) == 2


def test_a_base_in_float32_has_no_products_in_bfloat16() -> None:
    with pytest.raises(ConfigError, match=r"compute_dtype.*not quantised"):
        open_scenario("shakespeare", ["model.compute_dtype=bfloat16"])


def test_examples_are_planned_one_by_one_where_steps_are_private() -> None:
    from shared.devicesettings import setup_of

    for mode, passes in (("example", 16), ("none", 1)):
        said = ["model.compute_dtype=bfloat16", f"privacy.mode={mode}", "clients.batch_size=16"]
        setup = setup_of(open_scenario("fleet", said).config)
        assert (setup.half, setup.passes) == (True, passes)
