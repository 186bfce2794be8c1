"""What load_base accepts, what it refuses, and what the digests notice."""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from client.adapter import adapt
from client.basedigest import base_digest
from client.model import frozen_digest, load_base
from shared.errors import (
    ConflictingSettings,
    FedSLMError,
    InvalidValue,
    ModelNotFound,
    TokenizerMissing,
    UnsupportedModel,
)
from tests.client.conftest import MakeAdapted, MakeFolder


@pytest.fixture
def folder(model_folder: MakeFolder, tmp_path: Path) -> Path:
    """A copy of the tiny llama that a test may damage."""
    return Path(shutil.copytree(model_folder(), tmp_path / "damaged"))


def test_a_base_is_frozen_named_and_in_evaluation_mode(model_folder: MakeFolder) -> None:
    base = load_base(str(model_folder()))
    assert (base.name, base.family, base.quantization) == ("llama", "llama", "none")
    assert not base.model.training
    assert not any(p.requires_grad for p in base.model.parameters())
    assert all(p.dtype == torch.float32 for p in base.model.parameters())
    assert base.digest == base_digest(model_folder())
    assert base.tokenizer.pad_token_id is not None


def test_loading_says_nothing(model_folder: MakeFolder, capfd: pytest.CaptureFixture[str]) -> None:
    for quantization in ("none", "int8", "torchao-int8", "int4", "nf4"):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            base = load_base(str(model_folder()), quantization=quantization)
            model = adapt(base, r=2, alpha=4, target_modules="all-linear")
            model.peft_model(input_ids=torch.ones((1, 4), dtype=torch.int64))
    assert capfd.readouterr() == ("", "")


def test_a_tokenizer_without_padding_gets_it_from_its_end(folder: Path) -> None:
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        path = folder / name
        if path.exists():
            settings = json.loads(path.read_text())
            settings.pop("pad_token", None)
            path.write_text(json.dumps(settings))
    base = load_base(str(folder))
    assert base.tokenizer.pad_token == base.tokenizer.eos_token == "</s>"


def expect(error: type[FedSLMError], base: str, match: str, **options: Any) -> None:
    with pytest.raises(error, match=match) as caught:
        load_base(base, **options)
    assert type(caught.value) is error
    if base.startswith("/"):
        assert str(Path(base).parent) not in str(caught.value)


def test_folders_that_are_not_there(tmp_path: Path) -> None:
    expect(ModelNotFound, str(tmp_path / "nowhere"), "does not exist")
    (tmp_path / "file").write_text("x")
    expect(ModelNotFound, str(tmp_path / "file"), "no folder")
    expect(ModelNotFound, "./nowhere", "does not exist")
    expect(ModelNotFound, "", "does not exist")


def test_a_folder_has_no_revision(model_folder: MakeFolder) -> None:
    expect(ConflictingSettings, str(model_folder()), "revision='main'", revision="main")


def test_a_hub_id_that_cannot_be_reached(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    expect(ModelNotFound, "nobody/nothing", "neither a local folder nor reachable")
    expect(ModelNotFound, "nobody/nothing", "revision 'main'", revision="main")
    expect(ModelNotFound, "not a valid id", "neither a local folder nor reachable")


def test_a_folder_without_config(folder: Path) -> None:
    (folder / "config.json").unlink()
    expect(ModelNotFound, str(folder), "no readable config.json")


@pytest.mark.parametrize("text", ["{", "[]"])
def test_a_broken_config(folder: Path, text: str) -> None:
    (folder / "config.json").write_text(text)
    expect(UnsupportedModel, str(folder), "JSON")


def test_a_folder_without_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    expect(TokenizerMissing, str(folder), "no tokenizer")


def test_a_broken_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").write_text('{"version": "1.0"}')
    expect(TokenizerMissing, str(folder), "cannot be loaded")


def test_a_folder_without_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    expect(ModelNotFound, str(folder), "no weights")


def test_pickled_weights_are_refused(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    expect(UnsupportedModel, str(folder), "can run code")


def test_truncated_weights_are_refused(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    expect(UnsupportedModel, str(folder), r"cannot be loaded|damaged")
    with pytest.raises(UnsupportedModel, match="damaged"):
        base_digest(folder)
    path.write_bytes(b"short")
    with pytest.raises(UnsupportedModel, match="damaged"):
        base_digest(folder)


def test_a_checkpoint_that_lacks_weights_is_not_completed_with_random_ones(folder: Path) -> None:
    path = folder / "model.safetensors"
    tensors = load_file(path)
    del tensors["model.norm.weight"]
    save_file(tensors, path, metadata={"format": "pt"})
    expect(UnsupportedModel, str(folder), r"lacks 1 weights, such as model\.norm\.weight")


def test_weights_of_another_shape_are_refused(folder: Path) -> None:
    path = folder / "model.safetensors"
    tensors = load_file(path)
    tensors["model.norm.weight"] = torch.ones(5)
    save_file(tensors, path, metadata={"format": "pt"})
    expect(UnsupportedModel, str(folder), "weights")


def test_an_unsupported_architecture(folder: Path) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"model_type": "mamba"}))
    expect(UnsupportedModel, str(folder), "recurrent scan")


def test_a_tokenizer_of_another_model(folder: Path, model_folder: MakeFolder) -> None:
    small = model_folder("llama", vocab_size=32)
    for name in ("config.json", "model.safetensors"):
        shutil.copy(small / name, folder / name)
    expect(UnsupportedModel, str(folder), "64 tokens, the model embeds 32")


def test_a_stored_quantisation_loads_as_it_is_and_as_nothing_else(
    model_folder: MakeFolder, tmp_path: Path
) -> None:
    for quantization in ("int8", "nf4"):
        first = load_base(str(model_folder()), quantization=quantization)
        target = tmp_path / quantization
        first.model.save_pretrained(target)
        first.tokenizer.save_pretrained(target)
        again = load_base(str(target), quantization=quantization)
        ids = torch.arange(3, 9)[None]
        with torch.no_grad():
            assert torch.equal(first.model(ids).logits, again.model(ids).logits)
        expect(ConflictingSettings, str(target), f"stored as {quantization}")


def test_another_stored_quantisation_is_refused(folder: Path) -> None:
    path = folder / "config.json"
    extra = {"quantization_config": {"quant_method": "gptq", "bits": 4}}
    path.write_text(json.dumps(json.loads(path.read_text()) | extra))
    expect(UnsupportedModel, str(folder), "quant_method='gptq'")


def test_an_unknown_quantisation_gets_a_suggestion(model_folder: MakeFolder) -> None:
    with pytest.raises(InvalidValue, match="Did you mean 'nf4'"):
        load_base(str(model_folder()), quantization="nf5")


def test_the_base_digest_names_contents_and_not_files(
    model_folder: MakeFolder, folder: Path, tmp_path: Path
) -> None:
    digest = base_digest(folder)
    assert digest == base_digest(model_folder()) == base_digest(str(folder))
    tensors = load_file(folder / "model.safetensors")
    names = sorted(tensors)
    (folder / "model.safetensors").unlink()
    save_file({n: tensors[n] for n in names[:3]}, folder / "model-00001-of-00002.safetensors")
    save_file({n: tensors[n] for n in names[3:]}, folder / "model-00002-of-00002.safetensors")
    assert base_digest(folder) == digest
    tensors[names[0]] = tensors[names[0]].clone()
    tensors[names[0]].view(-1)[0] += 1e-6
    save_file({n: tensors[n] for n in names[:3]}, folder / "model-00001-of-00002.safetensors")
    assert base_digest(folder) != digest


def test_the_base_digest_notices_config_names_and_dtypes(folder: Path) -> None:
    digests = {base_digest(folder)}
    config = folder / "config.json"
    config.write_text(config.read_text().replace("rms_norm_eps", "rms_norm_epx"))
    digests.add(base_digest(folder))
    path = folder / "model.safetensors"
    tensors = load_file(path)
    tensors["renamed"] = tensors.pop("model.norm.weight")
    save_file(tensors, path)
    digests.add(base_digest(folder))
    tensors["renamed"] = tensors["renamed"].view(torch.int32)
    save_file(tensors, path)
    digests.add(base_digest(folder))
    assert len(digests) == 4


def test_the_base_digest_needs_its_files(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound, match="does not exist"):
        base_digest([tmp_path / "config.json"])


@pytest.mark.parametrize("quantization", ["none", "int8", "torchao-int8", "int4", "nf4"])
def test_the_frozen_digest_notices_every_kind_of_tensor(
    adapted: MakeAdapted, quantization: str
) -> None:
    model = adapted(quantization=quantization)
    layer: Any = model.base.model.get_submodule("model.layers.0.mlp.up_proj.base_layer")
    tensors = {
        "a weight": layer.weight.data,
        "a norm": model.base.model.get_submodule("model.norm").weight,
        "a buffer": dict(model.base.model.named_buffers())["model.rotary_emb.inv_freq"],
    }
    if quantization == "int8":
        tensors["a scale"] = layer.weight.SCB
    if quantization in {"int4", "torchao-int8"}:
        tensors["a scale"] = layer.scales
    if quantization == "nf4":
        tensors["a scale"] = layer.weight.quant_state.absmax
        tensors["a scale's scale"] = layer.weight.quant_state.state2.absmax
    before = frozen_digest(model.peft_model)
    for tensor in tensors.values():
        kept = tensor.detach().clone()
        with torch.no_grad():
            tensor.view(-1)[0] += 1
        assert frozen_digest(model.peft_model) != before
        with torch.no_grad():
            tensor.copy_(kept)
        assert frozen_digest(model.peft_model) == before


@pytest.mark.parametrize("quantization", ["none", "int8", "torchao-int8", "int4", "nf4"])
def test_the_frozen_digest_does_not_see_the_adapter(
    model_folder: MakeFolder, quantization: str
) -> None:
    base = load_base(str(model_folder()), quantization=quantization)
    bare = frozen_digest(base.model)
    model = adapt(base, r=2, alpha=4, target_modules="all-linear")
    assert frozen_digest(model.peft_model) == frozen_digest(base.model) == bare
    with torch.no_grad():
        model.trainable[0][1].add_(1.0)
    assert frozen_digest(model.peft_model) == bare
