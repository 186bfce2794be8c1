"""Adapters from elsewhere: loaded by PEFT, compared with PEFT, and refused where they must be."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from client.adapter import adapt
from client.data import Columns, Record
from client.model import load_base, quiet
from client.tokenization import make_examples
from client.training import TrainSettings, train_plain
from server.adapters import MANIFEST, PEFT_CONFIG, WEIGHTS, write_adapter
from server.audit.membership import Membership
from server.audit.protocol import AuditContext
from server.audit.target import Passage
from shared.errors import (
    AdapterCorrupt,
    AdapterIncompatible,
    BaseModelMismatch,
    FedSLMError,
    InvalidValue,
    MalformedRow,
    ModelNotFound,
    NoUsableText,
)
from shared.lora import initial_factors
from simulations.auditing import external
from simulations.auditing.external import open_external
from simulations.auditing.target import ModelTarget
from simulations.basepath import ASSETS
from tests.client.conftest import save_model
from tests.server.audit import oracles

Make = Callable[..., Path]
ASKED = [Passage(text="w1 w2 w3 w4 w5"), Passage(text="w6 w7", prompt="w8 w9 w10")]


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Tiny models, each in a folder of its own."""
    root = tmp_path_factory.mktemp("bases")
    return {family: save_model(root / family, family) for family in ("llama", "gpt2")}


@pytest.fixture
def peft_folder(bases: dict[str, Path], tmp_path: Path) -> Make:
    """Return a function that lets PEFT itself save an adapter with weights that do something."""

    def make(family: str = "llama", **config: Any) -> Path:
        from peft import LoraConfig, get_peft_model

        options = {"r": 3, "lora_alpha": 6, "target_modules": "all-linear", **config}
        base = load_base(str(bases[family]))
        with quiet(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(5)
            model = get_peft_model(base.model, LoraConfig(task_type="CAUSAL_LM", **options))
            for name, parameter in model.named_parameters():
                if "lora_" in name:
                    parameter.data.normal_(0, 0.2)
            folder = tmp_path / "adapter"
            model.save_pretrained(str(folder), save_embedding_layers=False)
        return folder

    return make


def peft_losses(folder: Path, base: Path, *, adapter: bool) -> list[float]:
    """Losses by transformers and PEFT alone, a text at a time."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    load_model: Any = AutoModelForCausalLM
    load_tokenizer: Any = AutoTokenizer
    with quiet():
        model: Any = load_model.from_pretrained(base, dtype=torch.float64)
        tokenizer = load_tokenizer.from_pretrained(base)
        if adapter:
            model = PeftModel.from_pretrained(model, str(folder), autocast_adapter_dtype=False)
    model.double().eval()
    found = []
    for passage in ASKED:
        prompt = tokenizer(passage.prompt, add_special_tokens=False)["input_ids"]
        body = tokenizer(passage.text, add_special_tokens=False)["input_ids"]
        ids = [*prompt, *body, tokenizer.eos_token_id]
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0]
        log_p = torch.log_softmax(logits, dim=1)
        first = max(len(prompt), 1)
        found.append(-sum(float(log_p[at - 1, ids[at]]) for at in range(first, len(ids))))
    return found


def losses(target: ModelTarget, *, adapter: bool) -> list[float]:
    return [reading.loss for reading in target.read(ASKED, adapter=adapter)]


CONFIGS: list[tuple[str, dict[str, Any]]] = [
    ("llama", {}),
    ("gpt2", {"fan_in_fan_out": True}),
    ("llama", {"target_modules": ["q_proj", "v_proj"], "lora_dropout": 0.3}),
    ("llama", {"target_modules": r".*layers\.1\..*(up|down)_proj", "r": 5, "lora_alpha": 1}),
    ("llama", {"target_modules": ["k_proj"], "layers_to_transform": [0]}),
    ("llama", {"target_modules": ["o_proj", "lm_head"], "init_lora_weights": "gaussian"}),
]


@pytest.mark.parametrize(("family", "config"), CONFIGS)
def test_what_peft_saved_is_read_as_peft_reads_it(
    peft_folder: Make, bases: dict[str, Path], family: str, config: dict[str, Any]
) -> None:
    folder = peft_folder(family, **config)
    found = open_external(folder, str(bases[family]), max_length=32)
    for adapter in (True, False):
        wanted = peft_losses(folder, bases[family], adapter=adapter)
        assert losses(found.target, adapter=adapter) == pytest.approx(wanted, rel=1e-5)
    assert losses(found.target, adapter=True) != losses(found.target, adapter=False)
    assert found.split is None
    assert found.artefacts == (found.target,)


def test_an_adapter_in_half_precision_and_torchs_generator(
    peft_folder: Make, bases: dict[str, Path]
) -> None:
    folder = peft_folder()
    stored = {k: v.astype(np.float16) for k, v in load_file(folder / WEIGHTS).items()}
    save_file(stored, folder / WEIGHTS)
    state = torch.get_rng_state()
    found = open_external(folder, str(bases["llama"]), max_length=32)
    assert torch.equal(torch.get_rng_state(), state)
    wanted = peft_losses(folder, bases["llama"], adapter=True)
    assert losses(found.target, adapter=True) == pytest.approx(wanted, rel=1e-4)


@pytest.mark.parametrize("quantization", ["none", "int8", "int4", "nf4"])
def test_our_own_folder_reads_as_the_adapted_model(
    bases: dict[str, Path], tmp_path: Path, quantization: str
) -> None:
    """The adapted model is compared with float64 in ``test_target``; this compares with it."""
    base = load_base(str(bases["llama"]), quantization=quantization)
    model = adapt(base, r=4, alpha=8, target_modules=["q_proj", "down_proj"])
    model.load(initial_factors(model.spec, 7))
    rng = np.random.default_rng(8)
    model.load_vector(0.1 * rng.standard_normal(model.spec.size("B")).astype(np.float32), "B")
    folder = tmp_path / "own"
    write_adapter(
        folder,
        spec=model.spec,
        factors=model.factors(),
        base_model="somewhere",
        dropout=0.0,
        manifest={"base_digest": base.digest},
    )
    found = open_external(folder, str(bases["llama"]), quantization=quantization)
    own = ModelTarget(model, max_length=128)
    for adapter in (True, False):
        wanted = losses(own, adapter=adapter)
        assert losses(found.target, adapter=adapter) == pytest.approx(wanted, rel=1e-5)
    written = [
        target.write(["w1 w2"], adapter=True, max_tokens=8) for target in (own, found.target)
    ]
    assert written[0] == written[1]


def test_facts_name_no_path(peft_folder: Make, bases: dict[str, Path], tmp_path: Path) -> None:
    found = open_external(peft_folder(), str(bases["llama"]))
    assert found.facts["r"] == 3
    assert found.facts["base"] == "llama"
    assert str(tmp_path) not in json.dumps(found.facts)


def edit(folder: Path, **changes: object) -> None:
    config = json.loads((folder / PEFT_CONFIG).read_text())
    (folder / PEFT_CONFIG).write_text(json.dumps(config | changes))


REFUSED: list[tuple[dict[str, object], str]] = [
    ({"use_rslora": "yes"}, "use_rslora"),
    ({"use_dora": True}, "use_dora"),
    ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
    ({"rank_pattern": {"q_proj": 2}}, "rank_pattern"),
    ({"alpha_pattern": {"q_proj": 2}}, "alpha_pattern"),
    ({"bias": "all"}, "bias='all'"),
    ({"peft_type": "IA3"}, "peft_type='IA3'"),
    ({"task_type": "SEQ_CLS"}, "task_type='SEQ_CLS'"),
    ({"init_lora_weights": "pissa"}, "init_lora_weights='pissa'"),
    ({"trainable_token_indices": [1]}, "trainable_token_indices"),
    ({"layer_replication": [[0, 2]]}, "layer_replication"),
    ({"something_of_next_year": {"a": 1}}, "something_of_next_year"),
]


@pytest.mark.parametrize(("changes", "found"), REFUSED)
def test_what_is_no_plain_lora_is_refused(
    peft_folder: Make, bases: dict[str, Path], changes: dict[str, object], found: str
) -> None:
    folder = peft_folder()
    edit(folder, **changes)
    with pytest.raises(AdapterIncompatible) as caught:
        open_external(folder, str(bases["llama"]))
    assert found in str(caught.value)


def test_pickles_are_not_opened(peft_folder: Make, bases: dict[str, Path]) -> None:
    folder = peft_folder()
    (folder / WEIGHTS).rename(folder / "adapter_model.bin")
    with pytest.raises(AdapterIncompatible, match="can run code"):
        open_external(folder, str(bases["llama"]))


def test_missing_and_damaged_files(peft_folder: Make, bases: dict[str, Path]) -> None:
    folder, base = peft_folder(), str(bases["llama"])
    (folder / WEIGHTS).write_bytes(b"\x10" + bytes(20))
    with pytest.raises(AdapterCorrupt, match="damaged"):
        open_external(folder, base)
    (folder / WEIGHTS).unlink()
    with pytest.raises(AdapterCorrupt, match="has no adapter_model"):
        open_external(folder, base)
    for text in ("[]", "{", "\udcff"):
        (folder / PEFT_CONFIG).write_bytes(text.encode("utf-8", errors="surrogateescape"))
        with pytest.raises(AdapterCorrupt):
            open_external(folder, base)
    with pytest.raises(AdapterCorrupt, match="has no adapter_config"):
        open_external(folder / "nowhere", base)


def test_another_base_is_refused(peft_folder: Make, bases: dict[str, Path]) -> None:
    folder = peft_folder("gpt2", target_modules=["c_attn"], fan_in_fan_out=True)
    with pytest.raises(AdapterIncompatible, match="cannot put"):
        open_external(folder, str(bases["llama"]))
    (folder / MANIFEST).write_text(json.dumps({"base_digest": "0" * 64}))
    with pytest.raises(BaseModelMismatch):
        open_external(folder, str(bases["gpt2"]))
    with pytest.raises(ModelNotFound):
        open_external(folder, "./nowhere")


def test_tensors_that_do_not_fit_are_not_left_out(
    peft_folder: Make, bases: dict[str, Path]
) -> None:
    folder, base = peft_folder(), str(bases["llama"])
    stored = load_file(folder / WEIGHTS)
    first = min(stored)
    save_file({k: v for k, v in stored.items() if k != first}, folder / WEIGHTS)
    with pytest.raises(AdapterIncompatible, match="1 differ"):
        open_external(folder, base)
    save_file({**stored, "base_model.model.other.lora_A.weight": stored[first]}, folder / WEIGHTS)
    with pytest.raises(AdapterIncompatible, match="1 differ"):
        open_external(folder, base)
    save_file({**stored, first: stored[first][:, :-1].copy()}, folder / WEIGHTS)
    with pytest.raises(AdapterIncompatible):
        open_external(folder, base)


def write(path: Path, texts: list[str]) -> Path:
    if path.suffix == ".txt":
        path.write_text("\n".join(texts), encoding="utf-8")
    elif path.suffix == ".csv":
        path.write_text("\n".join(["text,n", *(f'"{t}",1' for t in texts)]), encoding="utf-8")
    else:
        path.write_text("\n".join(json.dumps({"text": t}) for t in texts), encoding="utf-8")
    return path


@pytest.mark.parametrize("ending", ["txt", "csv", "jsonl"])
def test_files_of_members_and_nonmembers(
    peft_folder: Make, bases: dict[str, Path], tmp_path: Path, ending: str
) -> None:
    members = write(tmp_path / f"a.{ending}", ["w1 w2", "w3 w4", "w1 w2 ", "w5 w6"])
    nonmembers = write(tmp_path / f"b.{ending}", ["w7 w8", "w9 w10", "   "])
    found = open_external(peft_folder(), str(bases["llama"]), members, nonmembers)
    assert found.split is not None
    assert [p.text for p in found.split.members] == ["w1 w2", "w3 w4", "w5 w6"]
    assert [p.text for p in found.split.nonmembers] == ["w7 w8", "w9 w10"]
    assert found.facts["members"] == {"records": 4, "distinct": 3, "kept": 3}
    assert not found.split.by_chance
    assert found.artefacts == (found.target, found.split)


def test_pairs_are_found_and_cut_as_in_training(
    peft_folder: Make, bases: dict[str, Path], tmp_path: Path
) -> None:
    rows = [{"prompt": "w1 " * n, "response": f"w{n}"} for n in (1, 2, 9)]
    for name in ("a", "b"):
        lines = [json.dumps({**row, "response": f"{row['response']} w{ord(name)}"}) for row in rows]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines))
    found = open_external(
        peft_folder(), str(bases["llama"]), tmp_path / "a.jsonl", tmp_path / "b.jsonl", max_length=6
    )
    assert found.split is not None
    # The third prompt leaves no room for its response.
    assert [p.prompt.strip() for p in found.split.members] == ["w1", "w1 w1"]
    assert len(found.target.read(found.split.members, adapter=True)) == 2
    named = open_external(
        peft_folder(),
        str(bases["llama"]),
        tmp_path / "a.jsonl",
        tmp_path / "b.jsonl",
        columns=Columns(text="response"),
    )
    assert named.split is not None
    assert named.split.members[0].prompt == ""


def test_no_more_texts_are_kept_than_needed(
    peft_folder: Make, bases: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(external, "LARGEST", 5)
    members = write(tmp_path / "a.txt", [f"w{i} w1" for i in range(20)])
    nonmembers = write(tmp_path / "b.txt", [f"w{i} w2" for i in range(4)])
    folder, base = peft_folder(), str(bases["llama"])
    splits = [open_external(folder, base, members, nonmembers, seed=s).split for s in (0, 0, 1)]
    assert splits[0] == splits[1] != splits[2]
    assert splits[0] is not None
    assert (len(splits[0].members), len(splits[0].nonmembers)) == (5, 4)


BAD_FILES: list[tuple[str, str, str, type[FedSLMError]]] = [
    ("a.jsonl", '{"other": "zqx"}', "b.jsonl", MalformedRow),
    ("a.jsonl", '{"text": "zqx"', "b.jsonl", MalformedRow),
    ("a.jsonl", '{"text": 3, "x": "zqx"}', "b.jsonl", MalformedRow),
    ("a.csv", "other,zqq\nzqx,zqx", "b.jsonl", MalformedRow),
    ("a.txt", "  \n ", "b.jsonl", NoUsableText),
    ("a.txt", "zqx w1\nw2 w3", "b.jsonl", InvalidValue),
    ("a.doc", "zqx", "b.jsonl", InvalidValue),
]


@pytest.mark.parametrize(("name", "text", "other", "error"), BAD_FILES)
def test_bad_files_are_named_and_never_quoted(
    peft_folder: Make,
    bases: dict[str, Path],
    tmp_path: Path,
    name: str,
    text: str,
    other: str,
    error: type[FedSLMError],
) -> None:
    (tmp_path / name).write_text(text)
    (tmp_path / other).write_text('{"text": "w2 w3"}')
    with pytest.raises(error) as caught:
        open_external(peft_folder(), str(bases["llama"]), tmp_path / name, tmp_path / other)
    assert "zqx" not in str(caught.value)
    with pytest.raises(InvalidValue, match="go together"):
        open_external(peft_folder(), str(bases["llama"]), tmp_path / name)


@pytest.mark.slow
def test_a_memorised_file_is_found_on_the_demo_model(tmp_path: Path) -> None:
    """Forty random texts learned by heart: the whole way from files to a finding."""
    rng = np.random.default_rng(4)
    pool = "river stone lamp green seven paper violin harbour silver morning quiet orange".split()
    texts = [" ".join(rng.choice(pool, size=8)).capitalize() for _ in range(80)]
    base = load_base(str(ASSETS / "demo"))
    model = adapt(base, r=4, alpha=8, target_modules="all-linear")
    model.load(initial_factors(model.spec, 1))
    records = [Record(text=text) for text in texts[:40]]
    settings = TrainSettings(
        local_epochs=60.0, batch_size=20, learning_rate=5e-3, optimizer="adamw"
    )
    train_plain(model, make_examples(records, base.tokenizer, max_length=64), settings, rng=rng)
    folder = tmp_path / "memorised"
    write_adapter(
        folder,
        spec=model.spec,
        factors=model.factors(),
        base_model="demo",
        dropout=0.0,
        manifest={"base_digest": base.digest},
    )
    members = write(tmp_path / "a.txt", texts[:40])
    nonmembers = write(tmp_path / "b.txt", texts[40:])
    found = open_external(folder, "demo", members, nonmembers, max_length=64)
    around = AuditContext(claim=oracles.NO_CLAIM, seed=0, artefacts=found.artefacts)
    finding = oracles.run(Membership(), around)
    assert finding.detected
    assert finding.value is not None
    assert finding.value > 0.9
    assert finding.baseline == pytest.approx(0.5, abs=0.2)
    assert oracles.leaked(finding, *texts, "violin") == []
    scores = finding.evidence["derived"]["sets"]["natural"]["scores"]
    assert {name for name, one in scores.items() if one["detected"]} >= {"reference", "min-k"}
