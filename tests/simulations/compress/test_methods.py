"""Each method on tiny models of every family, and in order of quality on the demo model."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

from client.families import FAMILIES
from client.int4 import dequantize_int4
from client.model import BaseModel, load_base
from shared.errors import InvalidValue, NotResumable, UnsupportedModel
from simulations.compress import distilling
from simulations.compress.blocks import blocks_of, inputs_of_block, linears_of, matrix_of
from simulations.compress.catalog import METHODS, method
from simulations.compress.depth import blocks_to_keep, influences, keep_blocks
from simulations.compress.folding import PAIRS, fold, pairs_of
from simulations.compress.probe import perplexity
from simulations.compress.protocol import Settings, Work
from simulations.compress.running import Order, compress, folder_of
from simulations.compress.text import generated_text
from simulations.pretrain import DEMO_FOLDER
from tests.client.conftest import save_model

TEXT = generated_text(0)


def ids(seed: int = 0, rows: int = 6, length: int = 12) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, 60, (rows, length), generator=generator)


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(input_ids=ids(9)).logits
    return found


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> dict[str, BaseModel]:
    root = tmp_path_factory.mktemp("tiny")
    return {name: load_base(str(save_model(root / name, name))) for name in FAMILIES}


def settings(**changes: Any) -> Settings:
    return Settings(**{"rows": 4, "length": 16, "steps": 2, **changes})


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_moving_a_scale_changes_nothing(tiny: dict[str, BaseModel], family: str) -> None:
    """AWQ and SmoothQuant rest on it: in float32 the folded model is the same function."""
    if family not in PAIRS:
        with pytest.raises(UnsupportedModel, match="no norm before"):
            pairs_of(family)
        return
    model: Any = copy.deepcopy(tiny[family].model)
    before = logits(model)
    for index, block in enumerate(blocks_of(model)[1]):
        for place, pair in enumerate(pairs_of(family)):
            width = matrix_of(block.get_submodule(pair.users[0])).shape[1]
            generator = torch.Generator().manual_seed(10 * index + place)
            fold(block, pair, 0.5 + torch.rand(width, generator=generator))
    assert torch.allclose(logits(model), before, rtol=1e-4, atol=1e-5)
    assert not torch.equal(logits(model), before)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3_text", "phi"])
def test_statistics_are_those_of_the_inputs(tiny: dict[str, BaseModel], family: str) -> None:
    """Against hooks on a run of the whole model."""
    model = tiny[family].model
    last = len(blocks_of(model)[1]) - 1
    found = inputs_of_block(model, last, ids(rows=10))
    kept: dict[str, torch.Tensor] = {}
    handles = [
        module.register_forward_pre_hook(lambda _, args, n=name: kept.update({n: args[0]}))
        for name, module in linears_of(model, last).items()
    ]
    with torch.no_grad():
        model(input_ids=ids(rows=10))
    for handle in handles:
        handle.remove()
    assert set(kept) == set(found)
    for name, x in kept.items():
        rows = x.reshape(-1, x.shape[-1]).double()
        seen = found[name]
        assert seen.count == rows.shape[0] == 120
        assert torch.allclose(seen.gram, rows.t() @ rows, rtol=1e-5, atol=1e-8)
        assert torch.allclose(seen.peak, rows.abs().amax(dim=0), rtol=1e-5)
        assert torch.allclose(seen.total, rows.abs().sum(dim=0), rtol=1e-5)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3_text"])
def test_a_block_that_adds_nothing_can_be_dropped(tiny: dict[str, BaseModel], family: str) -> None:
    model: Any = copy.deepcopy(tiny[family].model)
    name, _ = blocks_of(model)
    for full, module in linears_of(model, 0).items():
        if full.endswith(("o_proj", "down_proj", "c_proj")):
            matrix_of(module).zero_()
            if getattr(module, "bias", None) is not None:
                module.bias.data.zero_()  # type: ignore[operator]
    before = logits(model)
    scores = influences(model, ids())
    assert scores[0] == pytest.approx(0, abs=1e-6)
    assert scores[1] > 1e-4
    kept = blocks_to_keep(scores, 1)
    assert kept == [1]
    keep_blocks(model, kept)
    assert torch.allclose(logits(model), before, rtol=1e-5, atol=1e-6)
    assert len(model.get_submodule(name)) == model.config.num_hidden_layers == 1


@pytest.mark.parametrize("layers", [0, 4, 9])
def test_some_block_stays_and_some_goes(layers: int) -> None:
    with pytest.raises(InvalidValue, match="expected 1 to 3"):
        blocks_to_keep([0.4, 0.1, 0.2, 0.3], layers)
    assert blocks_to_keep([0.4, 0.1, 0.2, 0.3], None) == [0, 2, 3]


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3_text"])
def test_every_method_writes_a_base_that_loads(tmp_path: Path, family: str) -> None:
    base = save_model(tmp_path / family, family)
    conv1d = family == "gpt2"
    # torchao's own format has no codes for GPT-2's layers (tests/client/test_torchaoint8.py).
    names = [name for name in METHODS if not (conv1d and name == "torchao-int8")]
    assert len(names) == len(METHODS) - conv1d
    order = Order(
        base=str(base), methods=names, text=TEXT, settings=settings(layers=1), out=tmp_path / "out"
    )
    manifests = compress(order)
    assert [said["method"] for said in manifests] == names
    for said in manifests:
        storage = said["result"]["quantization"]
        again = load_base(str(folder_of(order.out, said["method"])), quantization=storage)
        assert again.digest == said["result"]["digest"] != said["source"]["digest"]
        assert bool(torch.isfinite(logits(again.model)).all())
        assert (said["text"] is None) == (not METHODS[said["method"]].calibrates)


def test_what_is_read_back_is_what_was_made(tmp_path: Path) -> None:
    """GPTQ's codes are no nearest codes, so a folder that rounded again would differ."""
    base = load_base(str(DEMO_FOLDER))
    work = Work(base=base, text=TEXT, settings=settings(length=64), scratch=tmp_path)
    made = METHODS["gptq"].compress(work)
    expected = logits(made.model)
    order = Order(
        base=str(DEMO_FOLDER),
        methods=["gptq"],
        text=TEXT,
        settings=settings(length=64),
        out=tmp_path / "out",
    )
    compress(order)
    again = load_base(str(tmp_path / "out" / "gptq"), quantization="int4")
    assert torch.equal(logits(again.model), expected)


@pytest.mark.slow
def test_methods_stand_in_the_order_of_the_literature(tmp_path: Path) -> None:
    """On the demo model and held-out text: how far each is from the whole model.

    Perplexity tells 4 bits from 8 and zeros from both; among 4-bit forms its differences are
    those of the text, so they are told apart by the mean KL divergence from the whole model.
    """
    base = load_base(str(DEMO_FOLDER))
    rows = TEXT.rows(base.tokenizer, "holdout", count=32, length=128)
    worse, apart = {}, {}
    for name in ("int4", "gptq", "awq", "wanda", "sparsegpt", "2:4"):
        work = Work(
            base=load_base(str(DEMO_FOLDER)), text=TEXT, settings=Settings(), scratch=tmp_path
        )
        made = METHODS[name].compress(work)
        for layer, codes in made.codes.items():
            matrix = matrix_of(made.model.get_submodule(layer))
            matrix.copy_(dequantize_int4(*codes, matrix.shape[1]))
        worse[name] = perplexity(made.model, rows) - perplexity(base.model, rows)
        apart[name] = divergence(base.model, made.model, rows)
    for storage in ("int8", "nf4"):
        stored = load_base(str(DEMO_FOLDER), quantization=storage).model
        worse[storage] = perplexity(stored, rows) - perplexity(base.model, rows)
    assert abs(worse["int8"]) < 0.005
    assert max(abs(worse[name]) for name in ("int4", "gptq", "awq", "nf4")) < 0.05
    assert 0.1 < worse["sparsegpt"] < worse["wanda"] < 0.5 * worse["2:4"] < 0.5
    assert apart["gptq"] < 0.8 * apart["int4"]
    assert apart["awq"] < 1.1 * apart["int4"]
    assert apart["sparsegpt"] < 0.95 * apart["wanda"]


def divergence(one: Any, two: Any, rows: torch.Tensor) -> float:
    """Return the mean KL divergence of the second model's predictions from the first's."""
    with torch.no_grad():
        first, second = (m(input_ids=rows).logits.log_softmax(-1) for m in (one, two))
    return float((first.exp() * (first - second)).sum(-1).mean())


def test_a_distillation_goes_on_to_the_same_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(distilling, "_CHECKPOINT", 2)
    base = str(save_model(tmp_path / "llama", "llama"))

    def order(name: str, **changes: Any) -> Order:
        return Order(
            base=base,
            methods=["distill"],
            text=TEXT,
            settings=settings(steps=5, layers=1),
            out=tmp_path / name,
            **changes,
        )

    def stop(_: str, done: int, of: int) -> None:
        if done == 3:
            raise KeyboardInterrupt

    whole = compress(order("whole"))[0]
    with pytest.raises(KeyboardInterrupt):
        compress(order("parts", step=stop))
    assert not folder_of(tmp_path / "parts", "distill").exists()
    steps: list[int] = []
    parts = compress(order("parts", resume=True, step=lambda _, done, of: steps.append(done)))[0]
    assert steps == [3, 4, 5]
    assert parts["result"]["digest"] == whole["result"]["digest"]


def test_a_distillation_goes_on_with_its_own_checkpoint_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(distilling, "_CHECKPOINT", 1)
    base = load_base(str(save_model(tmp_path / "llama", "llama")))
    for steps in (2, 3):
        work = Work(
            base=base, text=TEXT, settings=settings(steps=steps, layers=1), scratch=tmp_path
        )
        if steps == 2:
            distilling.Distil().compress(work)
        else:
            with pytest.raises(NotResumable, match="another distillation"):
                distilling.Distil().compress(work)


def test_the_distillation_loss_is_the_formula() -> None:
    """Worked out by numpy on small tables of logits."""
    import numpy as np

    class Table:
        def __init__(self, seed: int) -> None:
            self._logits = torch.randn(2, 4, 5, generator=torch.Generator().manual_seed(seed))

        def __call__(self, input_ids: torch.Tensor) -> Any:
            return type("Output", (), {"logits": self._logits})

        def log_probabilities(self) -> Any:
            x = self._logits.double().numpy()[:, :-1].reshape(-1, 5)
            return x - np.log(np.exp(x).sum(axis=1, keepdims=True))

    student, teacher = Table(1), Table(2)
    rows = torch.tensor([[0, 1, 2, 3], [4, 3, 2, 1]])
    found = distilling.distillation_loss(student, teacher, rows)
    said, wanted = student.log_probabilities(), teacher.log_probabilities()
    truth = -said[np.arange(6), rows[:, 1:].reshape(-1).numpy()].mean()
    apart = (np.exp(wanted) * (wanted - said)).sum(axis=1).mean()
    assert float(found) == pytest.approx(0.5 * truth + 0.5 * apart, rel=1e-6)


def test_an_unknown_method_gets_a_suggestion() -> None:
    with pytest.raises(InvalidValue, match="Did you mean 'wanda'"):
        method("wandda")


@pytest.mark.parametrize(
    "changes",
    [{"sparsity": 0.0}, {"sparsity": 1.0}, {"sparsity": float("nan")}, {"length": 1}, {"rows": 0}],
)
def test_settings_out_of_range_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(InvalidValue, match=next(iter(changes))):
        Settings(**changes)
