"""Answers by ONNX Runtime: transformers' own tokens, on a device without torch."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from client.answering.program import open_program
from client.answering.withonnx import OnnxEngine
from client.generation import Generator
from client.inference import LocalModel
from client.personalstore import PersonalFacts, PersonalStore
from shared.documents import utc_now
from shared.errors import (
    AdapterCorrupt,
    AdapterIncompatible,
    AdapterUntrusted,
    InvalidValue,
    UsageError,
)
from tests.adapterkit import SIGNER, STRANGER
from tests.client.answering.conftest import Field, enrolled
from tests.client.exports.conftest import IDS

ROOT = Path(__file__).parents[3]
PROMPT = "The king said to her"

pytestmark = pytest.mark.slow


def greedy(engine: OnnxEngine, count: int) -> list[int]:
    """Return the likeliest tokens after IDS, each fed alone."""
    turn = engine.turn()
    written, new = list[int](), IDS
    while len(written) < count:
        written.append(int(turn.feed(new).argmax()))
        new = written[-1:]
    return written


def test_greedy_tokens_are_transformers_own(field: Field) -> None:
    model = LocalModel.load(field.home, base=field.export("onnx"), runtime="onnx")
    assert (model.runtime, model.warnings) == ("onnx", ())
    assert model.adapter is not None
    assert isinstance(model.engine, OnnxEngine)
    assert greedy(model.engine, 24) == field.case.greedy(24)
    # With the tokenizers on both sides, and the pieces of a stream.
    truth = LocalModel.load(field.home).generate(PROMPT, max_tokens=20)
    answer = model.generate(PROMPT, max_tokens=20)
    assert answer == truth
    assert "".join(model.stream(PROMPT, max_tokens=20)) == answer.text
    drawn = {"max_tokens": 12, "temperature": 0.9, "seed": 3}
    options: dict[str, Any] = drawn
    assert model.generate(PROMPT, **options) == LocalModel.load(field.home).generate(
        PROMPT, **options
    )


def test_without_an_adapter_the_base_answers(field: Field) -> None:
    model = LocalModel.load(field.home, base=field.export("onnx"), base_only=True)
    truth = LocalModel.load(field.home, base_only=True)
    assert model.generate(PROMPT, max_tokens=12) == truth.generate(PROMPT, max_tokens=12)
    assert model.generate(PROMPT) != LocalModel.load(field.home).generate(PROMPT)


def test_the_owners_own_adapter_takes_the_place_of_the_shared_one(field: Field) -> None:
    shared = LocalModel.load(field.home, base=field.export("onnx"))
    assert shared.adapter is not None
    facts = PersonalFacts(
        adapter=shared.adapter.digest,
        steps=1,
        learning_rate=0.1,
        created=utc_now(),
        loss_before=None,
        loss_after=None,
    )
    store = PersonalStore(field.home.personal)
    signs = {name: -1.0 if ".lora_B." in name else 1.0 for name in field.case.factors}
    store.keep(facts, {n: np.float32(signs[n]) * v for n, v in field.case.factors.items()})
    own = LocalModel.load(field.home, base=field.export("onnx"), personal=True)
    assert own.personal == facts
    answer = own.generate(PROMPT)
    assert answer == LocalModel.load(field.home, personal=True).generate(PROMPT)
    assert answer != shared.generate(PROMPT)
    store.forget()


def test_a_process_without_torch_answers_with_its_fetched_adapter(field: Field) -> None:
    home, export = str(field.home.path), str(field.export("onnx"))
    done = subprocess.run(
        [sys.executable, "-m", "tests.client.answering.untorched", home, export, PROMPT],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    truth = LocalModel.load(field.home).generate(PROMPT, max_tokens=8)
    assert found == {"text": truth.text, "found": [], "runtime": "onnx"}


def test_the_adapter_that_travelled_with_the_export_answers_by_its_key(field: Field) -> None:
    export = field.export("onnx")
    model = LocalModel.load(base=export, public_key=SIGNER.public_key)
    assert model.generate(PROMPT) == LocalModel.load(field.home).generate(PROMPT)
    with pytest.raises(AdapterUntrusted, match="not of the trusted key"):
        LocalModel.load(base=export, public_key=STRANGER.public_key)
    with pytest.raises(UsageError, match="base is none"):
        LocalModel.load(base=field.case.folder, public_key=SIGNER.public_key)


@pytest.mark.parametrize("name", ["model.onnx", "model.onnx.data", "tokenizer.json", "export.json"])
def test_nothing_changed_is_opened(field: Field, name: str, tmp_path: Path) -> None:
    copy = copied(field.export("onnx"), tmp_path)
    data = bytearray((copy / name).read_bytes())
    data[len(data) // 2] ^= 1
    (copy / name).write_bytes(data)
    with pytest.raises((AdapterCorrupt, AdapterUntrusted)):
        LocalModel.load(field.home, base=copy)


def test_a_device_takes_no_export_without_the_signature_that_it_knows(
    field: Field, tmp_path: Path
) -> None:
    copy = copied(field.export("onnx"), tmp_path)
    (copy / "export.sig.json").unlink()
    with pytest.raises(AdapterUntrusted, match="is not signed"):
        LocalModel.load(field.home, base=copy)
    told: list[str] = []
    LocalModel.load(base=copy, base_only=True, warn=told.append)
    assert "nothing says that it is to be trusted" in told[0]


def test_eight_bits_for_keys_and_weights_stay_near_and_the_cache_is_small(field: Field) -> None:
    export = field.export("small", kv_cache="int8", quantization="int8")
    engine, exact = worn(field, export), worn(field, field.export("onnx"))
    turns = engine.turn(), exact.turn()
    for ids in (IDS, [5], [9], [33, 4, 8]):
        near, truth = (turn.feed(ids) for turn in turns)
        assert np.abs(near - truth).max() < 0.05 * np.abs(truth).max()
    sizes = [sum(part.nbytes for part in turn._past.values()) for turn in turns]
    assert sizes[0] * 8 == sizes[1] * 3  # heads of 8: 8 codes of a byte and a scale of 4
    assert b"MatMulNBits" in (export / "model.onnx").read_bytes()
    model = LocalModel.load(field.home, base=export, kv_cache="int8")
    assert model.kv_cache == "int8"
    assert model.generate(PROMPT, max_tokens=4).tokens > 0


def test_four_bits_for_weights_stay_near_and_are_small(field: Field) -> None:
    export = field.export("four", quantization="int4")
    near, truth = (worn(field, path).turn().feed(IDS) for path in (export, field.export("onnx")))
    assert np.linalg.norm(near - truth) < 0.5 * np.linalg.norm(truth)
    files = [path / "model.onnx.data" for path in (export, field.export("onnx"))]
    assert files[0].stat().st_size < files[1].stat().st_size
    model = LocalModel.load(field.home, base=export)
    assert model.generate(PROMPT, max_tokens=4).tokens > 0


def test_what_the_runtime_cannot_do_is_said(field: Field) -> None:
    export = field.export("onnx")
    for options, reason in (
        ({"kv_cache": "int8"}, "was made with none"),
        ({"quantization": "int4"}, "has its own"),
        ({"runtime": "llama"}, "not for llama"),
    ):
        asked: Any = options
        with pytest.raises(UsageError, match=reason):
            LocalModel.load(field.home, base=export, **asked)
    with pytest.raises(UsageError, match="optimum-quanto"):
        LocalModel.load(field.home, kv_cache="int8")
    with pytest.raises(InvalidValue, match="expected one of"):
        LocalModel.load(field.home, runtime="onxx")
    engine = worn(field, export)
    other = {name: values[:2] for name, values in field.case.factors.items()}
    with pytest.raises(AdapterIncompatible, match="another rank"):
        engine.wear(other, field.case.terms)


def test_an_exported_step_says_that_it_cannot_answer(field: Field, tmp_path: Path) -> None:
    (tmp_path / "step.json").write_text("{}")
    with pytest.raises(UsageError, match="cannot answer") as found:
        LocalModel.load(field.home, base=tmp_path)
    assert "--graph" in found.value.hint


def worn(field: Field, export: Path) -> OnnxEngine:
    engine = OnnxEngine(open_program(export, trusted=SIGNER.public_key))
    engine.wear(field.case.factors, field.case.terms)
    return engine


def copied(export: Path, to: Path) -> Path:
    """Return a copy of an export's files."""
    copy = to / "copy"
    copy.mkdir()
    for path in export.iterdir():
        if path.is_file():
            (copy / path.name).write_bytes(path.read_bytes())
    (copy / "adapter").mkdir()
    return copy


def test_texts_may_be_written_in_turn(field: Field) -> None:
    generator = Generator(engine=worn(field, field.export("onnx")))
    options: dict[str, Any] = {"max_tokens": 6, "temperature": 0.0, "top_k": 1, "seed": 0}
    alone = ["".join(generator.pieces(text, **options)) for text in ("The king", "A dog")]
    both = [generator.pieces(text, **options) for text in ("The king", "A dog")]
    said = ["", ""]
    for _ in range(6):
        for index, pieces in enumerate(both):
            said[index] += next(pieces, "")
    assert said == alone


def test_a_device_with_a_step_answers_by_the_export_that_its_owner_names(
    field: Field, tmp_path: Path
) -> None:
    """The adapters folder is that of a device that fetched; the step itself is not looked at."""
    home = enrolled(tmp_path / "home", tmp_path, "0" * 64, answers=str(field.export("onnx")))
    home.adapters.rmdir()
    field.home.adapters.rename(home.adapters)
    try:
        model = LocalModel.load(home)
        assert (model.runtime, model.warnings) == ("onnx", ())
        found = model.generate("The king", max_tokens=6)
    finally:
        home.adapters.rename(field.home.adapters)
    assert found == LocalModel.load(field.home).generate("The king", max_tokens=6)
