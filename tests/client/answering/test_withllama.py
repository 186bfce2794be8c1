"""Answers by llama.cpp; oracle: greedy tokens of transformers.

Everything is run with a stand-in of the library that computes the files in numpy, and with the
library itself where llama-cpp-python is installed; it is built from source, so that continuous
integration does not have it.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from client.answering.program import open_program
from client.generation import Generator
from client.inference import LocalModel
from shared.errors import AdapterIncompatible, MissingDependency, UsageError
from tests.adapterkit import SIGNER
from tests.client.answering import standin
from tests.client.answering.conftest import Field, make_field
from tests.client.exports.conftest import IDS, MakeAdaptedFolder
from tests.client.exports.test_gguf import write
from tests.client.exports.test_ggufvocab import TEXTS

PROMPT = "The king said to her"

pytestmark = pytest.mark.slow


@pytest.fixture(params=["stand-in", "llama.cpp"])
def library(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Answer with the stand-in, or with the library itself."""
    if request.param == "stand-in":
        monkeypatch.setitem(sys.modules, "llama_cpp", standin)
    else:
        pytest.importorskip("llama_cpp")
    return str(request.param)


@pytest.fixture(scope="module")
def wide(adapted_base: MakeAdaptedFolder, tmp_path_factory: pytest.TempPathFactory) -> Field:
    """Heads of 32, which quantised caches need, and a base whose rows are reordered."""
    case = adapted_base("llama", hidden_size=128, tie_word_embeddings=False)
    return make_field(tmp_path_factory.mktemp("wide"), case)


@pytest.mark.usefixtures("library")
def test_f16_greedy_tokens_are_transformers_own(wide: Field) -> None:
    model = LocalModel.load(wide.home, base=wide.export("f16", base_type="f16"))
    assert (model.runtime, model.warnings) == ("llama", ())
    turn, new, written = model.engine.turn(), IDS, list[int]()
    while len(written) < 24:
        written.append(int(turn.feed(new).argmax()))
        new = written[-1:]
    assert written == wide.case.greedy(24)
    truth = LocalModel.load(wide.home)
    answer = model.generate(PROMPT, max_tokens=16)
    assert answer == truth.generate(PROMPT, max_tokens=16)
    assert "".join(model.stream(PROMPT, max_tokens=16)) == answer.text
    base = LocalModel.load(wide.home, base=wide.export("f16"), base_only=True)
    bare = LocalModel.load(wide.home, base_only=True).generate(PROMPT, max_tokens=8)
    assert base.generate(PROMPT, max_tokens=8) == bare


def test_llama_cpp_cuts_text_as_transformers_does(wide: Field) -> None:
    pytest.importorskip("llama_cpp")
    engine = LocalModel.load(wide.home, base=wide.export("f16", base_type="f16")).engine
    truth = LocalModel.load(wide.home).engine
    for text in (*TEXTS, "".join(map(chr, range(32, 0x250))), "日本語 🙂 ٣٤٥", " \r\n a\u2003b"):
        assert engine.encode(text) == truth.encode(text)


@pytest.mark.usefixtures("library")
def test_texts_may_be_written_in_turn_on_one_cache(wide: Field) -> None:
    model = LocalModel.load(wide.home, base=wide.export("f16", base_type="f16"))
    options: dict[str, Any] = {"max_tokens": 6, "temperature": 0.0, "top_k": 1, "seed": 0}
    generator = Generator(engine=model.engine)
    alone = ["".join(generator.pieces(text, **options)) for text in ("The king", "A dog")]
    both = [generator.pieces(text, **options) for text in ("The king", "A dog")]
    said = ["", ""]
    for _ in range(6):
        for index, pieces in enumerate(both):
            said[index] += next(pieces, "")
    assert said == alone


@pytest.mark.usefixtures("library")
@pytest.mark.parametrize(("kv_cache", "bound"), [("q8_0", 0.02), ("q4_0", 0.2)])
def test_a_quantised_cache_stays_near(wide: Field, kv_cache: str, bound: float) -> None:
    """The base alone: the adapter's huge random factors make attention as sharp as no model's."""
    export = wide.export("f16", base_type="f16")
    model = LocalModel.load(wide.home, base=export, kv_cache=kv_cache, base_only=True)
    assert model.kv_cache == kv_cache
    found = model.engine.turn().feed(IDS)
    truth = LocalModel.load(wide.home, base_only=True).engine.turn().feed(IDS)
    assert np.linalg.norm(found - truth) < bound * np.linalg.norm(truth)


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3"])
def test_llama_cpp_applies_our_adapter_as_peft_does(
    family: str, tmp_path: Path, adapted_base: MakeAdaptedFolder
) -> None:
    """Base and adapter in float32, keys and values too; rsLoRA, every linear layer."""
    library = pytest.importorskip("llama_cpp")
    case = adapted_base(family, rslora=True)
    write(case, tmp_path)
    kind = library.GGML_TYPE_F32
    model = library.Llama(
        str(tmp_path / "base.gguf"),
        lora_path=str(tmp_path / "adapter.gguf"),
        n_ctx=64,
        type_k=kind,
        type_v=kind,
        logits_all=True,
        verbose=False,
    )
    model.eval(IDS)
    found, truth = np.array(model.scores[: len(IDS)]), case.logits()
    model.close()
    assert np.abs(found - truth).max() < 1e-4 * np.abs(truth).max()


@pytest.mark.usefixtures("library")
def test_heads_that_blocks_do_not_divide_and_other_adapters_are_refused(
    field: Field, wide: Field
) -> None:
    with pytest.raises(UsageError, match="heads of 8"):
        LocalModel.load(
            field.home, base=field.export("f16", base_type="f16"), kv_cache="q8_0", base_only=True
        )
    model = LocalModel.load(wide.home, base=wide.export("f16", base_type="f16"))
    before = model.generate(PROMPT, max_tokens=4)
    with pytest.raises(AdapterIncompatible):
        model.engine.wear(field.case.factors, field.case.terms)
    assert model.generate(PROMPT, max_tokens=4) == before


def test_where_it_is_not_installed_the_line_that_installs_it_is_said(
    field: Field, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "llama_cpp", None)
    export = field.export("f16", base_type="f16")
    assert open_program(export, trusted=SIGNER.public_key).runtime == "llama"
    with pytest.raises(MissingDependency) as found:
        LocalModel.load(field.home, base=export, base_only=True)
    assert found.value.hint == "pip install 'fedslm[llama]'"
    with pytest.raises(UsageError, match="q8_0 and q4_0"):
        LocalModel.load(field.home, base=export, base_only=True, kv_cache="int8")
