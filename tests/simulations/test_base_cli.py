"""``fedslm base``: the folders, the table, and that a changed folder is found out."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from client.model import load_base
from shared.errors import (
    BaseModelMismatch,
    ConflictingSettings,
    InvalidValue,
    RunFolderError,
    RunFolderExists,
    UnsupportedModel,
)
from simulations.cli import run
from tests.client.conftest import save_model


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("base") / "llama", "llama")


def compress(base: Path, out: Path, *more: str) -> int:
    return run(["base", "compress", str(base), "--out", str(out), "--length", "16", *more])


def test_methods_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["base", "methods", "--json"]) == 0
    names = [one["name"] for one in json.loads(capsys.readouterr().out)["methods"]]
    assert names == [
        *("nf4", "int8", "torchao-int8", "int4", "gptq", "awq", "smoothquant"),
        *("wanda", "sparsegpt", "2:4", "layer-drop", "distill"),
    ]
    assert run(["base", "methods"]) == 0
    assert "2:4" in capsys.readouterr().out


@pytest.mark.slow
def test_a_table_and_a_plot_beside_the_base(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert compress(base, out, "--method", "2:4", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert [row["name"] for row in found["measurements"]] == ["base", "2:4"]
    full, pruned = found["measurements"]
    assert pruned["disk_bytes"] == (out / "2-4" / "model.safetensors").stat().st_size
    assert pruned["disk_ratio"] == pytest.approx(pruned["disk_bytes"] / full["disk_bytes"])
    for row in found["measurements"]:
        assert row["perplexity"] > 1
        assert row["tokens_per_second"] > 0
        assert row["load_peak_bytes"] >= 0
    assert found["folders"]["2:4"] == str(out / "2-4")
    assert (out / "measurements.svg").read_text().startswith("<svg")
    table = (out / "measurements.md").read_text().splitlines()
    assert len(table) == 4
    assert table[0].startswith("| method | storage | perplexity |")
    assert run(["base", "verify", str(out / "2-4")]) == 0


def test_public_text_is_named_in_the_manifest(base: Path, tmp_path: Path) -> None:
    text = tmp_path / "folder" / "mine.txt"
    text.parent.mkdir()
    text.write_text("w1 w2 w3\n" * 30)
    out = tmp_path / "out"
    options = ("--method", "wanda", "--no-measure", "--public-text", str(text))
    assert compress(base, out, *options, "--sparsity", "0.25", "--rows", "2") == 0
    written = (out / "wanda" / "compression.json").read_text()
    said = json.loads(written)
    assert said["text"]["name"] == "mine.txt"
    assert said["parameters"] == {
        "rows": 2,
        "length": 16,
        "sparsity": 0.25,
        "zeros": 0.25,
        "score": "wanda",
    }
    assert str(tmp_path) not in written


def test_a_folder_that_was_changed_is_refused(base: Path, tmp_path: Path) -> None:
    assert compress(base, tmp_path, "--method", "int4", "--no-measure") == 0
    folder = tmp_path / "int4"
    assert run(["base", "verify", str(folder), "--json"]) == 0
    tensors = load_file(folder / "model.safetensors")
    name = "model.layers.0.mlp.up_proj.scales"
    tensors[name].view(-1)[0] *= 2
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    assert run(["base", "verify", str(folder)]) == BaseModelMismatch.exit_code
    with pytest.raises(BaseModelMismatch, match="its manifest names"):
        load_base(str(folder), quantization="int4")


@pytest.mark.parametrize("manifest", ["{", "[]", '{"format": "other"}', '{"result": {}}'])
def test_a_manifest_that_is_none_is_refused(base: Path, tmp_path: Path, manifest: str) -> None:
    assert compress(base, tmp_path, "--method", "int4", "--no-measure") == 0
    (tmp_path / "int4" / "compression.json").write_text(manifest)
    with pytest.raises(UnsupportedModel, match="no manifest of format"):
        load_base(str(tmp_path / "int4"), quantization="int4")
    assert run(["base", "verify", str(base)]) == UnsupportedModel.exit_code


def test_what_is_done_is_not_done_again(base: Path, tmp_path: Path) -> None:
    options = ("--method", "int4", "--no-measure")
    assert compress(base, tmp_path, *options) == 0
    assert compress(base, tmp_path, *options) == RunFolderExists.exit_code
    before = (tmp_path / "int4" / "model.safetensors").stat().st_mtime_ns
    assert compress(base, tmp_path, *options, "--resume") == 0
    assert (tmp_path / "int4" / "model.safetensors").stat().st_mtime_ns == before
    (tmp_path / "gptq").mkdir()
    other = ("--method", "gptq", "--no-measure", "--resume")
    assert compress(base, tmp_path, *other) == RunFolderError.exit_code


def test_a_quantised_base_is_not_compressed_again(base: Path, tmp_path: Path) -> None:
    assert compress(base, tmp_path, "--method", "int4", "--no-measure") == 0
    again = ("--method", "gptq", "--no-measure")
    assert compress(tmp_path / "int4", tmp_path, *again) == ConflictingSettings.exit_code
    assert compress(base, tmp_path, "--method", "gtpq") == InvalidValue.exit_code
