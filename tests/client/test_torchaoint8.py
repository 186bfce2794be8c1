"""torchao's int8 weight-only: the library's own codes, and folders that go both ways."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from client.model import frozen_digest, load_base
from client.quantization import dequantize, finish_quantized, linear_modules, loading_options
from client.torchaoint8 import TorchaoInt8Linear, quantize_rows
from client.torchaostore import SETTINGS, save_torchao_int8
from shared.errors import ConflictingSettings, UnsupportedModel
from tests.client.conftest import MakeFolder

STORAGE = "torchao-int8"
LIBRARY = textwrap.dedent(
    """
    import sys, torch
    from safetensors.torch import save_file
    from torchao.quantization import Int8Tensor, Int8WeightOnlyConfig, PerRow
    from transformers import AutoModelForCausalLM, TorchAoConfig

    plain, ours, out = sys.argv[1:]
    make = lambda folder, **more: AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, device_map={"": "cpu"}, **more
    )
    theirs = make(plain, quantization_config=TorchAoConfig(Int8WeightOnlyConfig()))
    theirs.save_pretrained(out)
    read = dict(make(ours).named_parameters())
    count = 0
    for name, one in theirs.named_parameters():
        two = read[name]
        if isinstance(one, Int8Tensor):
            count += 1
            assert torch.equal(one.qdata, two.qdata) and torch.equal(one.scale, two.scale), name
            assert one.block_size == two.block_size and not two.zero_point.any(), name
        else:
            assert torch.equal(one, two), name
    hard = torch.randn(7, 50, generator=torch.Generator().manual_seed(3))
    hard *= torch.logspace(-9, 9, 7)[:, None]
    hard[0] = 0
    code = Int8Tensor.from_hp(hard, granularity=PerRow())
    tensors = {"hard": hard, "qdata": code.qdata, "scale": code.scale}
    save_file(tensors, out + "/hard.safetensors")
    print(count)
    """
)


@pytest.fixture(scope="module")
def stored(model_folder: MakeFolder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model in this storage, as fedslm writes it."""
    return write(model_folder(), tmp_path_factory.mktemp("stored") / "llama")


def write(source: Path, folder: Path) -> Path:
    base = load_base(str(source), quantization=STORAGE)
    folder.mkdir()
    save_torchao_int8(base.model, base.tokenizer, folder)
    return folder


@settings(max_examples=50, deadline=None)
@given(data=st.data())
def test_a_weight_is_off_by_at_most_half_a_scale(data: st.DataObject) -> None:
    rows, columns = data.draw(st.integers(1, 5)), data.draw(st.integers(1, 80))
    size = 10.0 ** data.draw(st.integers(-3, 6))
    seed = data.draw(st.integers(0, 2**32))
    weight = size * torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))
    codes, scales = quantize_rows(weight)
    assert (codes.dtype, scales.shape) == (torch.int8, (rows, 1))
    found = TorchaoInt8Linear.of_codes(codes, scales, None).dequantized()
    assert bool(((found - weight).abs() <= 0.5001 * scales).all())


def test_codes_follow_the_rule() -> None:
    """Worked by hand, at a scale of 1: halves go to even, and +128 does not exist."""
    codes, scales = quantize_rows(torch.tensor([[127.5, -127.5, 64.2, 2.5, -0.6]]))
    assert scales.item() == 1.0
    assert codes.tolist() == [[127, -128, 64, 2, -1]]
    zero, least = quantize_rows(torch.zeros(1, 3))
    assert (zero.tolist(), least.item()) == ([[0, 0, 0]], torch.finfo(torch.float32).eps)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_refused(value: float) -> None:
    with pytest.raises(UnsupportedModel, match="not finite"):
        quantize_rows(torch.tensor([[0.0, value]]))


@pytest.mark.slow
def test_the_library_reads_ours_and_writes_the_same(
    model_folder: MakeFolder, stored: Path, tmp_path: Path
) -> None:
    """torchao's own codes are ours bit for bit, and its folder is read as ours is.

    In a process of its own: the library changes torch's settings while it quantises.
    """
    theirs = tmp_path / "theirs"
    command = [sys.executable, "-c", LIBRARY, str(model_folder()), str(stored), str(theirs)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert run.returncode == 0, run.stderr[-2000:]
    assert run.stdout.split()[-1] == "14"
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(stored / name, theirs / name)
    ours = load_base(str(stored), quantization=STORAGE)
    found = load_base(str(theirs), quantization=STORAGE)
    assert frozen_digest(found.model) == frozen_digest(ours.model)
    said = json.loads((theirs / "config.json").read_text())["quantization_config"]
    assert said == dict(SETTINGS)
    hard = load_file(theirs / "hard.safetensors")
    codes, scales = quantize_rows(hard["hard"])
    assert torch.equal(codes, hard["qdata"])
    assert torch.equal(scales, hard["scale"])


def test_a_folder_comes_back_bit_for_bit(model_folder: MakeFolder, stored: Path) -> None:
    first = load_base(str(model_folder()), quantization=STORAGE)
    again = load_base(str(stored), quantization=STORAGE)
    assert frozen_digest(first.model) == frozen_digest(again.model)
    ids = torch.arange(3, 9)[None]
    with torch.no_grad():
        assert torch.equal(first.model(ids).logits, again.model(ids).logits)
    assert not hasattr(again.model.config, "quantization_config")
    with pytest.raises(ConflictingSettings, match="stored as torchao-int8"):
        load_base(str(stored), quantization="int8")


@pytest.mark.parametrize("family", ["qwen2", "phi", "gpt_neox"])
def test_biases_and_tied_embeddings_come_back(
    model_folder: MakeFolder, tmp_path: Path, family: str
) -> None:
    first = load_base(str(model_folder(family)), quantization=STORAGE)
    again = load_base(str(write(model_folder(family), tmp_path / family)), quantization=STORAGE)
    assert frozen_digest(first.model) == frozen_digest(again.model)


def test_conv1d_is_quantised_in_memory_and_not_stored(
    model_folder: MakeFolder, tmp_path: Path
) -> None:
    """torchao leaves Conv1D in full precision without a word: nobody could read such a folder."""
    base = load_base(str(model_folder("gpt2")), quantization=STORAGE)
    assert all(isinstance(m, TorchaoInt8Linear) for _, m in linear_modules(base.model))
    with pytest.raises(UnsupportedModel, match="Conv1D"):
        save_torchao_int8(base.model, base.tokenizer, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_conv1d_folder_of_the_library_is_refused(
    model_folder: MakeFolder, tmp_path: Path
) -> None:
    folder = tmp_path / "gpt2"
    shutil.copytree(model_folder("gpt2"), folder)
    config = json.loads((folder / "config.json").read_text())
    text = json.dumps({**config, "quantization_config": dict(SETTINGS)})
    (folder / "config.json").write_text(text)
    with pytest.raises(UnsupportedModel, match="Conv1D"):
        load_base(str(folder), quantization=STORAGE)


def test_a_layer_of_another_storage_is_found(model_folder: MakeFolder) -> None:
    model: Any = load_base(str(model_folder()), quantization="int4").model
    for layer in (m for _, m in linear_modules(model)):
        assert dequantize(layer).dtype == torch.float32
    with pytest.raises(UnsupportedModel, match="left 14 of 14"):
        finish_quantized(model, "nf4")
    assert loading_options(STORAGE, "cpu") == {}


Change = Callable[[dict[str, torch.Tensor]], None]
LAYER = "model.layers.0.mlp.up_proj"


def asymmetric(tensors: dict[str, torch.Tensor]) -> None:
    tensors[f"{LAYER}._weight_zero_point"][0] = 1


def grouped(tensors: dict[str, torch.Tensor]) -> None:
    tensors[f"{LAYER}._weight_scale"] = torch.ones(48, 2)


def halved(tensors: dict[str, torch.Tensor]) -> None:
    tensors[f"{LAYER}._weight_scale"] = tensors[f"{LAYER}._weight_scale"].half()


def unscaled(tensors: dict[str, torch.Tensor]) -> None:
    del tensors[f"{LAYER}._weight_scale"]


@pytest.mark.parametrize("change", [asymmetric, grouped, halved, unscaled])
def test_another_layout_is_refused(stored: Path, tmp_path: Path, change: Change) -> None:
    folder = tmp_path / "changed"
    shutil.copytree(stored, folder)
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UnsupportedModel, match="up_proj"):
        load_base(str(folder), quantization=STORAGE)


def test_a_layer_left_out_is_found(stored: Path, tmp_path: Path) -> None:
    """As the library does it for a layer named in ``modules_to_not_convert``."""
    folder = tmp_path / "skipped"
    shutil.copytree(stored, folder)
    tensors = load_file(folder / "model.safetensors")
    codes, scales = (tensors.pop(f"{LAYER}._weight_{part}") for part in ("qdata", "scale"))
    tensors[f"{LAYER}.weight"] = codes.float() * scales
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UnsupportedModel, match=r"full precision|lacks"):
        load_base(str(folder), quantization=STORAGE)


@pytest.mark.parametrize(
    "said",
    [
        {"default": {"_type": "Int4WeightOnlyConfig", "_data": {}}},
        {"default": {"_type": "Int8DynamicActivationInt8WeightConfig", "_data": {}}},
        {"default": {"_type": "Int8WeightOnlyConfig", "_data": {"granularity": "PerTensor"}}},
        "int8_weight_only",
        None,
    ],
)
def test_torchaos_other_types_are_refused(stored: Path, tmp_path: Path, said: object) -> None:
    folder = tmp_path / "other"
    shutil.copytree(stored, folder)
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"]["quant_type"] = said
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UnsupportedModel, match="quant_method='torchao'"):
        load_base(str(folder), quantization=STORAGE)
