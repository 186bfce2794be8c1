"""Likelihoods by hand, the harness against a direct computation, and the command whole."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import binomtest

from client.adapterspec import adapter_spec
from client.model import BaseModel, load_base
from server.adapters import write_adapter
from shared.lora import Factors
from simulations.basepath import ASSETS
from simulations.catalog import open_scenario
from simulations.cli import run
from simulations.evaluating.clients import held_out, measure_clients
from simulations.evaluating.harness import answer
from simulations.evaluating.questions import Question, Task, chosen, make_task, word_order
from simulations.evaluating.scoring import Row, loglikelihoods
from simulations.evaluating.subject import Named, find, load, tensor_bytes

DEMO = str(ASSETS / "demo")
SMALL_TYPES = {torch.uint8, torch.int8}


@pytest.fixture(scope="module")
def base() -> BaseModel:
    return load_base(DEMO)


@pytest.fixture(scope="module")
def adapter(base: BaseModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write an adapter of small random factors for the demo model."""
    spec = adapter_spec(base, r=2, alpha=4.0, target_modules=["q_proj", "v_proj"])
    rng = np.random.default_rng(5)
    factors: Factors = {
        f.name: (0.1 * rng.standard_normal(f.shape)).astype(np.float32) for f in spec.factors
    }
    folder = tmp_path_factory.mktemp("adapters") / "adapter"
    write_adapter(
        folder,
        spec=spec,
        factors=factors,
        base_model="demo",
        dropout=0.0,
        manifest={"base_digest": base.digest},
    )
    return folder


def by_hand(model: Any, ids: list[int], scored: int) -> tuple[float, bool]:
    """Score one row alone, one position at a time, in float64."""
    total, greedy = 0.0, True
    for place in range(len(ids) - scored, len(ids)):
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([ids[:place]])).logits[0, -1].double()
        total += float(logits.log_softmax(0)[ids[place]])
        greedy = greedy and int(logits.argmax()) == ids[place]
    return total, greedy


def test_log_likelihoods_are_those_of_each_row_alone(base: BaseModel) -> None:
    rng = np.random.default_rng(1)
    rows = [Row(tuple(map(int, rng.integers(5, 200, n))), k) for n, k in ((9, 4), (2, 1), (6, 5))]
    with torch.no_grad():
        likeliest = int(
            base.model(input_ids=torch.tensor([rows[0].ids[:5]])).logits[0, -1].argmax()
        )
    rows.append(Row((*rows[0].ids[:5], likeliest), 1))
    found = loglikelihoods(base.model, rows)
    for row, (value, greedy) in zip(rows, found, strict=True):
        expected = by_hand(base.model, list(row.ids), row.scored)
        assert value == pytest.approx(expected[0], abs=1e-4)
        assert greedy == expected[1]
    assert found[-1][1] is True


def direct(base: BaseModel, question: Question) -> list[float]:
    """Return each choice's log-likelihood without harness, batches or padding."""

    def encode(text: str) -> list[int]:
        return [int(token) for token in base.tokenizer(text, add_special_tokens=False)["input_ids"]]

    found = []
    for choice in question.choices:
        first = int(base.tokenizer.bos_token_id)
        before = [first, *encode(question.context)]
        ids = [first, *encode(question.context + choice)]
        found.append(by_hand(base.model, ids, len(ids) - len(before))[0])
    return found


def test_the_harness_gives_what_a_direct_computation_gives(base: BaseModel) -> None:
    told = (
        Question(context="The turtle is", choices=(" an animal", " a mirror"), gold=0),
        Question(context="She gives away four of them. Now", choices=(" he", " she has"), gold=1),
        *word_order(0).questions[:6],
    )
    task = make_task("mixed", told, about="made here")
    answers = answer(base.model, base.tokenizer, task, told)
    scores = [direct(base, question) for question in told]
    right = [int(np.argmax(s)) == q.gold for s, q in zip(scores, told, strict=True)]
    each = [
        int(np.argmax([v / len(c.strip()) for v, c in zip(s, q.choices, strict=True)])) == q.gold
        for s, q in zip(scores, told, strict=True)
    ]
    assert list(answers.right) == right
    assert list(answers.right_normalised) == each
    assert answers.reported["acc"] == pytest.approx(np.mean(right))
    deviation = np.std(right, ddof=1) / math.sqrt(len(right))
    assert answers.reported["acc_stderr"] == pytest.approx(deviation)
    assert answers.cut == 0


def test_equal_choices_are_no_preference(base: BaseModel) -> None:
    told = (Question(context="", choices=("Now.", "Now."), gold=0),)
    task = make_task("tie", told, about="made here")
    assert answer(base.model, base.tokenizer, task, told).right == (False,)


def test_what_is_longer_than_the_window_is_cut_at_its_beginning(base: BaseModel) -> None:
    long = "word " * 600
    told = (Question(context=long, choices=(" end", " stop"), gold=0),)
    task = make_task("long", told, about="made here")
    assert answer(base.model, base.tokenizer, task, told).cut == 2


def test_the_base_beneath_an_adapter_answers_as_if_alone(base: BaseModel, adapter: Path) -> None:
    subject = load(find("demo", adapter=adapter, quantization=None, public_key=None))
    assert subject.views == ("before", "after")
    assert subject.memory_bytes == tensor_bytes(base.model)
    rows = [Row((1, 20, 30, 40, 50), 3)]
    with subject.view("before") as model:
        before = loglikelihoods(model, rows)
    with subject.view("after") as model:
        after = loglikelihoods(model, rows)
    assert before == loglikelihoods(base.model, rows)
    assert abs(after[0][0] - before[0][0]) > 1e-3


def evaluate(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    code = run(["eval", *arguments])
    said = capsys.readouterr()
    return code, said.out, said.err


SMALL = ["--limit", "12", "--clients", "quickstart", "--most-clients", "3"]


@pytest.mark.slow
def test_the_command_whole_and_what_it_keeps(
    adapter: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "eval"
    (tmp_path / "crows_pairs").mkdir()
    rows = [f"{n},She is {word},He is {word},stereo,gender" for n, word in enumerate("abc")]
    rows += ["9,Old men rest.,Young men rest.,antistereo,age"]
    head = ",sent_more,sent_less,stereo_antistereo,bias_type"
    pairs = tmp_path / "crows_pairs" / "crows_pairs_anonymized.csv"
    pairs.write_text("\n".join([head, *rows]) + "\n", encoding="utf-8")
    tasks = ["--tasks", "size,perplexity,word-order,crows_pairs", "--data", str(tmp_path)]
    told = ["demo", "--adapter", str(adapter), "--out", str(out), *SMALL]
    code, said, err = evaluate([*told, *tasks, "--json"], capsys)
    assert code == 0
    result = json.loads(said)
    assert result["adapter"]["r"] == 2
    assert {"eval.json", "eval.md", "eval.svg", "perplexity.svg"} <= {p.name for p in out.iterdir()}
    sizes = result["tasks"]["size"]
    assert sizes["before"]["memory_compression"] == pytest.approx(1.0, abs=0.02)
    assert (
        sizes["after"]["memory_bytes"] - sizes["before"]["memory_bytes"] == sizes["adapter_bytes"]
    )
    asked = result["tasks"]["word-order"]
    assert asked["questions"] == 12
    assert asked["before"]["se"] == pytest.approx(asked["harness"]["before"]["acc_stderr"])
    bias = result["tasks"]["crows_pairs"]
    assert {name: found["questions"] for name, found in bias["groups"].items()} == {
        "age": 1,
        "gender": 3,
    }
    assert all(found["p_holm"] >= found["p"] for found in bias["groups"].values())
    lost = bias["only_before"]
    assert bias["p"] == pytest.approx(
        binomtest(lost, n).pvalue if (n := lost + bias["only_after"]) else 1.0
    )
    perplexity = result["tasks"]["perplexity"]
    assert perplexity["clients"] == 3
    assert len(perplexity["by_client"]["after"]) == 3
    sentence = chosen(word_order(0), limit=12, seed=0)[0].choices[0]
    assert sentence not in said + err + (out / "eval.json").read_text(encoding="utf-8")

    assert evaluate([*told, *tasks], capsys)[0] == 82  # it is there already
    stamp = (out / "parts" / "perplexity.json").stat().st_mtime_ns
    more = ["--tasks", "size,perplexity,word-order,clinic-endings", "--resume", "--json"]
    code, said, err = evaluate([*told, *more], capsys)
    assert code == 0
    assert (out / "parts" / "perplexity.json").stat().st_mtime_ns == stamp
    assert "measuring perplexity" not in err
    assert json.loads(said)["tasks"]["word-order"] == asked
    assert evaluate([*told, *tasks, "--resume", "--seed", "1"], capsys)[0] == 83  # another one


@pytest.mark.slow
def test_speed_is_measured_in_a_process_of_its_own(
    adapter: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = ["--out", str(tmp_path / "eval"), "--watts", "4"]
    told = ["demo", "--adapter", str(adapter), "--tasks", "speed", "--quantization", "int4"]
    code, said, _ = evaluate([*told, *out, "--json"], capsys)
    assert code == 0
    for view in ("before", "after"):
        found = json.loads(said)["tasks"]["speed"][view]
        assert 0 < found["first_token_seconds"] < 60
        assert found["tokens_per_second"] > 0
        assert found["peak_rss_bytes"] > found["peak_bytes"] >= found["load_peak_bytes"] > 0
        assert found["energy"]["method"] in {"counter", "battery", "estimate"}
        assert found["joules_per_token"] > 0


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["--tasks", "crowspairs"], 2),
        (["--tasks", ""], 2),
        (["--tasks", "crows_pairs", "--data", "nowhere"], 61),
        (["--tasks", "perplexity", "--clients", "no-such-scenario"], 15),
        (["--quantization", "int3", "--tasks", "size"], 12),
        (["--adapter", "nowhere", "--tasks", "size"], 40),
        (["--task-file", "nowhere.json"], 61),
    ],
)
def test_what_cannot_be_evaluated_has_its_own_exit_code(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], code: int
) -> None:
    found, _, err = evaluate(["demo", "--out", str(tmp_path / "eval"), *arguments], capsys)
    assert found == code, err


def test_questions_without_the_harness_are_refused_before_anything_is_loaded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("simulations.evaluating.harness.find_spec", lambda name: None)
    out = ["--out", str(tmp_path / "eval")]
    code, _, err = evaluate(["demo", "--tasks", "word-order", *out], capsys)
    assert code == 3
    assert "pip install 'fedslm[eval]'" in err
    assert "loading" not in err
    assert evaluate(["demo", "--tasks", "size", *out], capsys)[0] == 0


def test_an_unknown_task_is_answered_with_the_known(capsys: pytest.CaptureFixture[str]) -> None:
    _, _, err = evaluate(["demo", "--tasks", "crowspairs"], capsys)
    assert "crows_pairs" in err
    assert "word-order" in err
    code, said, _ = evaluate(["--list"], capsys)
    assert code == 0
    assert "blimp" in said


def test_without_an_adapter_there_is_no_after(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told = ["demo", "--tasks", "size", "--out", str(tmp_path / "eval")]
    code, said, _ = evaluate(told, capsys)
    assert code == 0
    assert "1.00" in said


def test_every_tensor_of_a_quantised_base_is_counted_once(base: BaseModel) -> None:
    for quantization in ("nf4", "int8"):
        model = load_base(DEMO, quantization=quantization).model
        weights = {name: p for name, p in model.named_parameters() if p.dtype in SMALL_TYPES}
        stored = sum(p.numel() for p in weights.values())
        rest = sum(4 * p.numel() for n, p in model.named_parameters() if n not in weights)
        rest += sum(b.numel() * b.element_size() for b in model.buffers())
        # Scales for each block or row, and for each layer two codebooks of 16 and 256 numbers.
        scales = tensor_bytes(model) - stored - rest
        assert 0 < scales < 0.05 * stored + 2000 * len(weights)
        assert scales >= len(weights) * (16 * 4 if quantization == "nf4" else 4)
        assert tensor_bytes(model) == tensor_bytes(model) < tensor_bytes(base.model)


def test_perplexity_is_the_exponential_of_the_mean_loss(base: BaseModel) -> None:
    config = open_scenario("quickstart").config
    held = held_out(config, base.tokenizer, base_dir=Path.cwd(), most=2, seed=0)
    subject = load(
        Named(compute_dtype="float32", base=DEMO, quantization="none", source=None, config=None)
    )
    found = measure_clients(subject, held, seed=0)
    sums, counts = [], []
    for texts in held.texts.values():
        losses, tokens = 0.0, 0
        for example in texts:
            ids = torch.from_numpy(example.ids).long()
            with torch.no_grad():
                logits = base.model(input_ids=ids.unsqueeze(0)).logits[0, :-1].double()
            wanted = torch.from_numpy(example.labels).long()[1:]
            losses += float(torch.nn.functional.cross_entropy(logits, wanted, reduction="sum"))
            tokens += int((wanted != -100).sum())
        sums.append(losses)
        counts.append(tokens)
    each = [math.exp(total / count) for total, count in zip(sums, counts, strict=True)]
    assert list(found["by_client"]["before"].values()) == pytest.approx(each, rel=1e-5)
    assert found["before"]["mean"] == pytest.approx(np.mean(each), rel=1e-5)
    assert found["before"]["pooled"] == pytest.approx(math.exp(sum(sums) / sum(counts)), rel=1e-5)
    assert found["before"]["worst_decile"] == pytest.approx(max(each), rel=1e-5)
    assert found["tokens"] == sum(counts)
    assert "after" not in found


def test_a_run_without_an_adapter_is_not_taken_for_its_base(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.toml").write_text(open_scenario("quickstart").to_toml(), encoding="utf-8")
    code, _, err = evaluate([str(tmp_path), "--tasks", "size"], capsys)
    assert code == 2
    assert "holds no adapter" in err


def test_tasks_are_hashable_by_what_they_ask() -> None:
    one: Task = make_task("a", [Question(context="", choices=("x", "y"), gold=0)], about="b")
    other = make_task("a", [Question(context="", choices=("x", "y"), gold=1)], about="b")
    assert one.digest != other.digest
