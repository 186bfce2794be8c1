"""A mixture on disk: read back whole, refused by PEFT, and cut into what PEFT loads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from client.adapter import AdaptedModel, adapt
from client.model import load_base, quiet
from server.adapters import PEFT_CONFIG, WEIGHTS, read_adapter, write_adapter
from server.mixtures import split_mixture
from shared.errors import AdapterCorrupt, AdapterIncompatible
from shared.mixture import Mixture
from tests.adapterkit import write_folder
from tests.client.conftest import save_model

K = 2


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("base") / "llama", "llama")


def mixture(base: Path, folder: Path, *, rslora: bool = False) -> AdaptedModel:
    model = adapt(
        load_base(str(base)),
        r=4,
        alpha=8,
        target_modules="all-linear",
        rslora=rslora,
        mixture=Mixture(adapters=K, sharpness=3.0),
    )
    rng = np.random.default_rng(1)
    model.load_vector(0.3 * rng.standard_normal(model.spec.size()).astype(np.float32), "AB")
    write_adapter(
        folder,
        spec=model.spec,
        factors=model.factors(),
        base_model="tiny",
        dropout=0.0,
        manifest={"base_digest": model.base.digest},
    )
    return model


def test_it_is_read_back_and_says_what_it_is(base: Path, tmp_path: Path) -> None:
    model = mixture(base, tmp_path)
    again = read_adapter(tmp_path, model.spec)
    for name, value in model.factors().items():
        np.testing.assert_array_equal(again[name], value)
    said = json.loads((tmp_path / "fedslm.json").read_text())
    assert said["mixture"] == {"adapters": K, "sharpness": 3.0}


def test_peft_refuses_to_load_it_without_its_gates(base: Path, tmp_path: Path) -> None:
    from peft import PeftModel

    mixture(base, tmp_path)
    loader: Any = PeftModel
    with pytest.raises((KeyError, ValueError)):
        loader.from_pretrained(load_base(str(base)).model, str(tmp_path))


@pytest.mark.parametrize("rslora", [False, True])
def test_one_adapter_of_it_is_what_the_mixture_adds_when_it_is_chosen(
    base: Path, tmp_path: Path, rslora: bool
) -> None:
    """A router that always chooses adapter k, in our model; the k-th folder, in PEFT's."""
    from peft import PeftModel

    model = mixture(base, tmp_path / "whole", rslora=rslora)
    folders = split_mixture(tmp_path / "whole", tmp_path / "cut")
    ids = torch.tensor([[4, 9, 30, 7]])
    assert model.router is not None
    loader: Any = PeftModel
    for k, folder in enumerate(folders):
        gates = torch.zeros(K, ids.numel())
        gates[k] = 1.0
        hook = model.base.model.base_model.register_forward_pre_hook(
            lambda *_, chosen=gates: setattr(model.router, "gates", chosen)
        )
        with torch.no_grad():
            ours = model.peft_model(input_ids=ids, use_cache=False).logits
        hook.remove()
        with quiet(), torch.no_grad():
            plain = loader.from_pretrained(load_base(str(base)).model, str(folder)).eval()
            theirs = plain(input_ids=ids, use_cache=False).logits
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    router = load_file(tmp_path / "cut" / "router.safetensors")["router"]
    np.testing.assert_array_equal(router, model.router.module.weight.detach().numpy())
    facts = json.loads((tmp_path / "cut" / "mixture.json").read_text())
    assert facts["folders"] == [folder.name for folder in folders]


def test_what_is_no_mixture_or_damaged_is_refused(base: Path, tmp_path: Path) -> None:
    write_folder(tmp_path / "one")
    with pytest.raises(AdapterIncompatible, match="no mixture"):
        split_mixture(tmp_path / "one", tmp_path / "cut")
    mixture(base, tmp_path / "whole")
    with pytest.raises(AdapterIncompatible, match="not empty"):
        split_mixture(tmp_path / "whole", tmp_path / "one")
    (tmp_path / "whole" / WEIGHTS).write_bytes(b"\x08" + bytes(15))
    with pytest.raises(AdapterCorrupt):
        split_mixture(tmp_path / "whole", tmp_path / "cut")
    (tmp_path / "whole" / PEFT_CONFIG).unlink()
    with pytest.raises(AdapterCorrupt):
        split_mixture(tmp_path / "whole", tmp_path / "cut")
