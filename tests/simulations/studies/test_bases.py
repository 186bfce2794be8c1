from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from simulations.basepath import ASSETS
from simulations.studies.bases import make_base, recipe_of
from simulations.studies.protocol import Shape

SHAPE = Shape(hidden=16, layers=1, heads=2, intermediate=24, steps=2, sequences=1)


@pytest.mark.slow
def test_a_sibling_is_trained_once_and_shares_the_demo_models_tokenizer(tmp_path: Path) -> None:
    told: list[str] = []
    name = make_base(SHAPE, tmp_path, note=told.append)
    folder = tmp_path / name
    assert not Path(name).is_absolute()
    model = AutoModelForCausalLM.from_pretrained(folder)
    # Tied embeddings; q and o of 16 x 16, k and v of 16 x 8, three of 16 x 24, three norms.
    expected = 1280 * 16 + 2 * 16 * 16 + 2 * 16 * 8 + 3 * 16 * 24 + 3 * 16
    assert sum(p.numel() for p in model.parameters()) == expected
    text = "Pt seen at 10:45, 3 mg given."
    demo = AutoTokenizer.from_pretrained(ASSETS / "demo")
    assert AutoTokenizer.from_pretrained(folder)(text) == demo(text)
    assert str(expected) in (folder / "MODEL_CARD.md").read_text(encoding="utf-8")
    assert [path.name for path in (tmp_path / "bases").iterdir()] == [SHAPE.name]
    assert len(told) == 2

    weights = (folder / "model.safetensors").stat().st_mtime_ns
    assert make_base(SHAPE, tmp_path, note=told.append) == name
    assert (folder / "model.safetensors").stat().st_mtime_ns == weights
    assert len(told) == 2

    losses = json.loads((folder / "training_log.json").read_text(encoding="utf-8"))["losses"]
    (folder / "training_log.json").write_text("{damaged", encoding="utf-8")
    make_base(SHAPE, tmp_path, note=told.append)
    assert len(told) == 4
    again = json.loads((folder / "training_log.json").read_text(encoding="utf-8"))["losses"]
    assert again == losses


def test_shapes_have_names_of_their_own_and_recipes_differ_in_shape_and_length_alone() -> None:
    longer = Shape(hidden=16, layers=1, heads=2, intermediate=24, steps=3, sequences=1)
    assert longer.name != SHAPE.name
    ours, demo = recipe_of(SHAPE), recipe_of(longer)
    assert (ours.seed, ours.vocabulary, ours.learning_rate) == (
        demo.seed,
        demo.vocabulary,
        demo.learning_rate,
    )
    assert ours.key_value_heads == 1
