"""GPTQ and AWQ checkpoints, packed here one code at a time, load as the numbers they stand for."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from client.adapter import adapt
from client.gradientcheck import require_gradient
from client.model import load_base
from client.quantization import dequantize, linear_modules
from shared.errors import RunFolderExists, UnsupportedModel
from shared.lora import initial_factors
from simulations.cli import run
from simulations.compress.foreign import convert, layout_of
from tests.client.conftest import save_model

GROUP = 64
FORMS = {
    "gptq": {"quant_method": "gptq", "bits": 4, "group_size": GROUP, "sym": False},
    "gptq_v2": {
        "quant_method": "gptq",
        "bits": 4,
        "group_size": GROUP,
        "desc_act": False,
        "checkpoint_format": "gptq_v2",
    },
    "gptq act-order": {
        "quant_method": "gptq",
        "bits": 4,
        "group_size": GROUP,
        "desc_act": True,
    },
    "awq": {"quant_method": "awq", "bits": 4, "group_size": GROUP, "version": "gemm"},
}


def pack(codes: np.ndarray, order: tuple[int, ...]) -> torch.Tensor:
    """Pack eight neighbours of a row into an int32: place i of a word holds neighbour order[i]."""
    rows, columns = codes.shape
    words = np.zeros((rows, columns // 8), dtype=np.uint32)
    for row in range(rows):
        for word in range(columns // 8):
            for place in range(8):
                code = int(codes[row, 8 * word + order[place]])
                words[row, word] |= np.uint32(code << (4 * place))
    return torch.from_numpy(words.view(np.int32).copy())


def quantised(folder: Path, form: str, **changes: Any) -> dict[str, np.ndarray]:
    """Replace a folder's linear weights by packed ones; return what those stand for."""
    rng, truth = np.random.default_rng(5), {}
    tensors = load_file(folder / "model.safetensors")
    for name in [name for name in tensors if name.endswith("_proj.weight")]:
        rows, width = tensors.pop(name).shape
        groups = width // GROUP
        codes = rng.integers(0, 16, (width, rows))
        zeros = rng.integers(1, 16, (groups, rows))
        scales = (rng.random((groups, rows)) * 0.02 + 0.001).astype(np.float16)
        of_group = np.arange(width) // GROUP
        if form == "gptq act-order":
            of_group = rng.permutation(of_group)
        spread = scales.astype(np.float32)[of_group]
        truth[name.removesuffix(".weight")] = ((codes - zeros[of_group]) * spread).T
        stem, plain = name.removesuffix(".weight"), tuple(range(8))
        if form == "awq":
            order = (0, 2, 4, 6, 1, 3, 5, 7)
            tensors[f"{stem}.qweight"] = pack(codes, order)
            tensors[f"{stem}.qzeros"] = pack(zeros, order)
        else:
            tensors[f"{stem}.qweight"] = pack(codes.T, plain).t().contiguous()
            tensors[f"{stem}.qzeros"] = pack(zeros - (form != "gptq_v2"), plain)
            tensors[f"{stem}.g_idx"] = torch.from_numpy(of_group.astype(np.int32))
        tensors[f"{stem}.scales"] = torch.from_numpy(scales)
    tensors["model.norm.weight"] = tensors["model.norm.weight"].half()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    settings = {**FORMS[form], **changes}
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": settings}))
    return truth


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("plain") / "llama"
    return save_model(
        folder, "llama", hidden_size=64, intermediate_size=128, num_attention_heads=4, head_dim=16
    )


@pytest.mark.parametrize("form", sorted(FORMS))
def test_every_weight_is_the_number_that_the_format_says(
    plain: Path, tmp_path: Path, form: str
) -> None:
    source = Path(shutil.copytree(plain, tmp_path / "source"))
    truth = quantised(source, form)
    out = tmp_path / "out"
    assert run(["base", "convert", str(source), "--out", str(out)]) == 0
    assert run(["base", "verify", str(out)]) == 0
    base = load_base(str(out), quantization="int4")
    layers = dict(linear_modules(base.model))
    assert set(layers) == set(truth)
    for name, module in layers.items():
        assert np.array_equal(dequantize(module).numpy(), truth[name])
    model = adapt(base, r=2, alpha=4, target_modules="all-linear")
    model.load(initial_factors(model.spec, 1))
    require_gradient(model)
    assert base.model.get_submodule("model.norm").weight.dtype == torch.float32


def test_an_order_that_is_none_is_refused(plain: Path, tmp_path: Path) -> None:
    source = Path(shutil.copytree(plain, tmp_path / "source"))
    quantised(source, "gptq act-order")
    path = source / "model.safetensors"
    tensors = load_file(path)
    stem = "model.layers.1.mlp.down_proj"
    convert(source, tmp_path / "out")
    # Groups of other sizes: no order of the columns fills them.
    broken = {**tensors, f"{stem}.g_idx": torch.zeros_like(tensors[f"{stem}.g_idx"])}
    save_file(broken, path)
    with pytest.raises(UnsupportedModel, match=r"layers\.1\.mlp\.down_proj"):
        convert(source, tmp_path / "again")
    stored = load_file(tmp_path / "out" / "model.safetensors")
    stored[f"{stem}.order"] = torch.zeros_like(stored[f"{stem}.order"])
    save_file(stored, tmp_path / "out" / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "out" / "compression.json").unlink()
    with pytest.raises(UnsupportedModel, match="order of columns"):
        load_base(str(tmp_path / "out"), quantization="int4")


def test_such_a_checkpoint_is_refused_with_the_way_out(plain: Path, tmp_path: Path) -> None:
    source = Path(shutil.copytree(plain, tmp_path / "source"))
    quantised(source, "gptq")
    with pytest.raises(UnsupportedModel, match="quant_method='gptq'") as caught:
        load_base(str(source))
    assert "fedslm base convert" in str(caught.value.hint)
    convert(source, tmp_path / "out")
    with pytest.raises(RunFolderExists, match="there already"):
        convert(source, tmp_path / "out")


@pytest.mark.parametrize(
    "changes",
    [
        {"bits": 8},
        {"group_size": 48},
        {"group_size": 0},
        {"desc_act": "sometimes"},
        {"quant_method": "awq", "version": "gemm", "desc_act": True},
        {"checkpoint_format": "marlin"},
        {"quant_method": "eetq"},
    ],
)
def test_another_layout_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(UnsupportedModel, match="quant_method="):
        layout_of({**FORMS["gptq"], **changes})
    with pytest.raises(UnsupportedModel, match="quant_method=None"):
        layout_of(None)


@pytest.mark.parametrize("damage", ["order", "zeros", "scales", "dtype", "missing"])
def test_a_layer_that_does_not_fit_is_named(plain: Path, tmp_path: Path, damage: str) -> None:
    source = Path(shutil.copytree(plain, tmp_path / "source"))
    quantised(source, "gptq")
    path = source / "model.safetensors"
    tensors = load_file(path)
    stem = "model.layers.1.mlp.down_proj"
    if damage == "order":
        tensors[f"{stem}.g_idx"] = tensors[f"{stem}.g_idx"].flip(0).contiguous()
    elif damage == "zeros":
        tensors[f"{stem}.qzeros"] = torch.full_like(tensors[f"{stem}.qzeros"], -1)
    elif damage == "scales":
        tensors[f"{stem}.scales"] = tensors[f"{stem}.scales"][:1].contiguous()
    elif damage == "dtype":
        tensors[f"{stem}.qweight"] = tensors[f"{stem}.qweight"].long()
    else:
        del tensors[f"{stem}.scales"]
    save_file(tensors, path)
    with pytest.raises(UnsupportedModel, match=r"layers\.1\.mlp\.down_proj"):
        convert(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()
