"""Adapted tiny models with a tokenizer that llama.cpp has too."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from client.adapter import adapt
from client.adapterfit import spec_of
from client.inference import base_folder
from client.model import BaseModel, load_base
from shared.lora import Factors
from shared.loraconfig import LoraTerms
from tests.client.conftest import save_model

IDS = [0, 17, 4, 250, 33, 90, 7, 7, 12]


@dataclass(frozen=True, kw_only=True)
class Adapted:
    """A base folder and an adapter for all of its linear layers."""

    folder: Path
    factors: Factors
    terms: LoraTerms
    quantization: str = "none"

    def load(self) -> BaseModel:
        return load_base(str(self.folder), quantization=self.quantization)

    def peft(self) -> Any:
        """Return PEFT's own model of both, in float32."""
        model = adapt(
            self.load(),
            r=self.terms.r,
            alpha=self.terms.lora_alpha,
            target_modules=self.terms.target_modules,
            rslora=self.terms.rslora,
        )
        model.load(self.factors)
        for layer in model.layers:
            layer.detach()
        return model.peft_model

    def logits(self) -> np.ndarray[Any, np.dtype[np.float64]]:
        with torch.no_grad():
            found = self.peft()(input_ids=torch.tensor([IDS])).logits[0]
        return np.asarray(found.double().numpy())

    def greedy(self, count: int) -> list[int]:
        """Return transformers' own likeliest continuation."""
        out = self.peft().generate(
            input_ids=torch.tensor([IDS]),
            attention_mask=torch.ones((1, len(IDS)), dtype=torch.long),
            max_new_tokens=count,
            do_sample=False,
            use_cache=True,
            eos_token_id=None,
            pad_token_id=0,
        )
        return [int(token) for token in out[0, len(IDS) :]]


def adapted_folder(
    folder: Path, *, rslora: bool = False, r: int = 4, quantization: str = "none"
) -> Adapted:
    """Return an adapter with large random factors on a base."""
    names = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    terms = LoraTerms(r=r, lora_alpha=8.0, target_modules=tuple(names), rslora=rslora)
    base = load_base(str(folder), quantization=quantization)
    from client.adapterspec import adapter_spec

    spec = adapter_spec(base, r=r, alpha=8.0, target_modules=names, rslora=rslora)
    rng = np.random.default_rng(3)
    factors: Factors = {
        f.name: (0.2 * rng.standard_normal(f.shape)).astype(np.float32) for f in spec.factors
    }
    spec_of(base, factors, terms)
    return Adapted(folder=folder, factors=factors, terms=terms, quantization=quantization)


MakeAdaptedFolder = Callable[..., Adapted]


@pytest.fixture(scope="session")
def adapted_base(tmp_path_factory: pytest.TempPathFactory) -> MakeAdaptedFolder:
    """Return a function from a family to a tiny base with an adapter, or the demo model's."""
    root = tmp_path_factory.mktemp("exports")
    demo = base_folder("demo")

    def make(family: str, *, rslora: bool = False, **changes: object) -> Adapted:
        if family == "demo":
            return adapted_folder(demo, rslora=rslora)
        folder = root / f"{family}-{len(str(changes))}"
        if not folder.exists():
            save_model(folder, family, vocab_size=1284, **changes)
            for name in ("tokenizer.json", "tokenizer_config.json"):
                shutil.copyfile(demo / name, folder / name)
        return adapted_folder(folder, rslora=rslora)

    return make
