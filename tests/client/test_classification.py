"""Classification: gradients of head and adapter by example, and the way through PEFT."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812

from client.adapter import AdaptedModel, adapt
from client.clipping import make_clipper
from client.data import Record
from client.evaluation import evaluate
from client.examples import IGNORED, Example
from client.labelled import class_counts, make_labelled_examples
from client.losses import collate, per_sequence_losses
from client.model import frozen_digest, load_base, quiet
from server.adapters import read_adapter, write_adapter
from shared.errors import ConflictingSettings, NoUsableText, UnsupportedModel
from shared.lora import AdapterSpec, initial_factors
from tests.encoders import CONFIGS, LABELS, save_encoder

FAMILIES = sorted(CONFIGS)
ENGINES = ["fused", "microbatch", "opacus"]
pytestmark = pytest.mark.slow

Make = Callable[..., AdaptedModel]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("encoders")
    return {family: save_encoder(root / family, family) for family in FAMILIES}


@pytest.fixture
def made(folders: dict[str, Path]) -> Make:
    def make(family: str = "distilbert", kinds: str = "AB") -> AdaptedModel:
        base = load_base(str(folders[family]), labels=len(LABELS))
        model = adapt(base, r=2, alpha=4, target_modules="all-linear")
        rng = np.random.default_rng(2)
        vector = 0.2 * rng.standard_normal(model.spec.size(), dtype=np.float32)
        model.load_vector(vector, "AB")
        model.set_trainable(kinds)
        return model

    return make


def examples(count: int, seed: int = 0) -> list[Example]:
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        ids = rng.integers(4, 24, size=int(rng.integers(3, 9)))
        labels = np.full(ids.shape, IGNORED)
        labels[0] = rng.integers(len(LABELS))
        found.append(Example(ids=ids, labels=labels))
    return found


def one_by_one(model: AdaptedModel, rows: list[Example]) -> torch.Tensor:
    """Each example's gradient by plain autograd, in a batch of its own, without our loss."""
    parameters = [parameter for _, parameter in model.trainable]
    found = []
    with model.plain_peft():
        for row in rows:
            ids = torch.from_numpy(row.ids).unsqueeze(0)
            logits = model.peft_model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
            loss = F.cross_entropy(logits, torch.from_numpy(row.labels[:1]))
            pieces = torch.autograd.grad(loss, parameters)
            found.append(torch.cat([piece.reshape(-1) for piece in pieces]).double())
    return torch.stack(found)


def summed(model: AdaptedModel, engine: str, rows: list[Example], bound: float) -> torch.Tensor:
    with model.training(), make_clipper(engine, model) as clipper:
        pieces = clipper.clipped_sum(collate(rows, 0), bound)
    return torch.cat([piece.reshape(-1) for piece in pieces])


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kinds", ["B", "AB"])
def test_clipped_sums_equal_autograd_one_by_one(
    made: Make, family: str, engine: str, kinds: str
) -> None:
    """The clip is over adapter and head together; its oracle is a sum in numpy's place."""
    model, rows = made(family, kinds), examples(5)
    truth = one_by_one(model, rows)
    norms = truth.norm(dim=1)
    bound = float(norms.median())
    expected = (truth * (bound / norms).clamp(max=1).unsqueeze(1)).sum(dim=0)
    found = summed(model, engine, rows, bound)
    assert float((found - expected).norm() / expected.norm()) <= 1e-6
    names = [name for name, _ in model.trainable]
    assert {"base_model.model.classifier.weight", "base_model.model.classifier.bias"} <= set(names)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("engine", ENGINES)
def test_one_example_changes_a_sum_by_the_clip_at_most(
    made: Make, family: str, engine: str
) -> None:
    model, rows, bound = made(family), examples(6), 0.05
    whole = summed(model, engine, rows, bound)
    for left_out in range(3):
        rest = [row for number, row in enumerate(rows) if number != left_out]
        change = (whole - summed(model, engine, rest, bound)).norm()
        assert 0 < float(change) <= bound * (1 + 1e-6)


@pytest.mark.parametrize("family", FAMILIES)
def test_an_example_does_not_see_the_rest_of_its_batch(made: Make, family: str) -> None:
    model, first = made(family), examples(1, seed=9)
    parameters = [parameter for _, parameter in model.trainable]

    def gradient(rest: list[Example]) -> torch.Tensor:
        losses = per_sequence_losses(model.peft_model, collate([*first, *rest], 0))
        return torch.cat([g.reshape(-1) for g in torch.autograd.grad(losses[0], parameters)])

    alone = gradient([])
    for seed in (1, 2):
        assert float((gradient(examples(4, seed=seed)) - alone).norm() / alone.norm()) <= 2e-6


@pytest.mark.parametrize("family", FAMILIES)
def test_an_exported_folder_loads_with_plain_libraries(
    made: Make, folders: dict[str, Path], family: str, tmp_path: Path
) -> None:
    from peft import PeftModel
    from transformers import AutoModelForSequenceClassification

    model = made(family)
    write_adapter(
        tmp_path,
        spec=model.spec,
        factors=model.factors(),
        base_model="tiny",
        dropout=0.0,
        manifest={},
    )
    loader: Any = AutoModelForSequenceClassification
    with quiet(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(77)
        plain = loader.from_pretrained(folders[family], num_labels=len(LABELS))
        theirs: Any = PeftModel.from_pretrained(plain, tmp_path).eval()
    for row in examples(4):
        ids = torch.from_numpy(row.ids).unsqueeze(0)
        with torch.no_grad():
            ours, other = model.peft_model(input_ids=ids).logits, theirs(input_ids=ids).logits
        assert float((ours - other).abs().max()) <= 1e-6 * max(1.0, float(other.abs().max()))
    read = read_adapter(tmp_path, model.spec)
    assert all(np.array_equal(read[name], value) for name, value in model.factors().items())


def test_a_run_starts_from_public_values(folders: dict[str, Path]) -> None:
    models = []
    for seed in (0, 1):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            base = load_base(str(folders["distilbert"]), labels=len(LABELS))
            before = torch.get_rng_state()
            models.append(adapt(base, r=2, alpha=4, target_modules="all-linear"))
            assert torch.equal(torch.get_rng_state(), before)
    first, second = models
    assert frozen_digest(first.peft_model) == frozen_digest(second.peft_model)
    assert first.spec.identities == (("pre_classifier", 16),)
    assert AdapterSpec.from_json(first.spec.to_json()) == first.spec
    factors = initial_factors(first.spec, seed=3)
    first.load(factors)
    assert not factors["base_model.model.classifier.weight"].any()
    loss = evaluate(first, examples(7), batch_size=4)
    assert loss.loss == pytest.approx(np.log(len(LABELS)), rel=1e-6)
    assert loss.tokens == 7


def test_the_frozen_digest_leaves_the_head_out_and_nothing_else(made: Make) -> None:
    model = made()
    before = frozen_digest(model.peft_model)
    model.load_vector(np.ones(model.spec.size("B"), dtype=np.float32), "B")
    assert frozen_digest(model.peft_model) == before
    base: Any = model.base.model
    with torch.no_grad():
        base.pre_classifier.weight[0, 0] += 1
    assert frozen_digest(model.peft_model) != before


def test_counts_by_class_are_those_of_numpy(made: Make) -> None:
    model, rows = made(), examples(11)
    counts = np.reshape(class_counts(model, rows, labels=3, batch_size=4), (3, 3))
    guesses = []
    for row in rows:
        ids = torch.from_numpy(row.ids).unsqueeze(0)
        with torch.no_grad():
            guesses.append(int(model.peft_model(input_ids=ids).logits.argmax()))
    truth = [int(row.labels[0]) for row in rows]
    for label in range(3):
        both = sum(g == t == label for g, t in zip(guesses, truth, strict=True))
        assert counts[:, label].tolist() == [both, guesses.count(label), truth.count(label)]


def test_labels_are_the_public_ones_and_markers_in_a_text_stay_text(made: Make) -> None:
    tokenizer = made().base.tokenizer
    records = [
        Record(text="my card [SEP]", label="card"),
        Record(text="my loan", label="unheard of"),
        Record(text="the rate is the rate is the rate", label="rate"),
    ]
    found = make_labelled_examples(records, tokenizer, max_length=6, labels=LABELS)
    assert [int(example.labels[0]) for example in found] == [0, 2]
    assert [int((example.ids == tokenizer.sep_token_id).sum()) for example in found] == [1, 1]
    assert all(example.ids[0] == tokenizer.cls_token_id for example in found)
    assert found[1].ids.size == 6
    with pytest.raises(NoUsableText) as caught:
        make_labelled_examples(records[1:2], tokenizer, max_length=6, labels=LABELS)
    assert "unheard" not in str(caught.value)


def test_layers_that_mix_a_batch_are_refused(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import AutoModelForSequenceClassification

    loader: Any = AutoModelForSequenceClassification
    original = loader.from_pretrained

    def with_norm(*args: Any, **options: Any) -> Any:
        model, report = original(*args, **options)
        model.norm = torch.nn.BatchNorm1d(16)
        return model, report

    monkeypatch.setattr(loader, "from_pretrained", with_norm)
    with pytest.raises(UnsupportedModel, match="not separable"):
        load_base(str(folders["bert"]), labels=3)


def test_decoders_and_quantised_encoders_are_refused(folders: dict[str, Path]) -> None:
    with pytest.raises(ConflictingSettings):
        load_base(str(folders["bert"]), labels=3, quantization="int8")
    with pytest.raises(UnsupportedModel, match="encoder"):
        load_base(str(folders["bert"]))
