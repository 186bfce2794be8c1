"""Tiny random models of every family, a tiny tokenizer, and a float64 truth to compare with."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from client.adapter import AdaptedModel, adapt
from client.examples import IGNORED, Example
from client.model import load_base, quiet
from shared.lora import initial_factors

VOCABULARY = 64
_COMMON = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
    "initializer_range": 0.08,
}
_GROUPED = {**_COMMON, "num_key_value_heads": 2}
_TOKENS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 1}
CONFIGS: dict[str, dict[str, Any]] = {
    "gemma": {**_GROUPED, "head_dim": 8},
    "gemma2": {**_GROUPED, "head_dim": 8, "sliding_window": 16},
    "gemma3_text": {**_GROUPED, "head_dim": 8, "sliding_window": 16},
    "gpt2": {
        "vocab_size": VOCABULARY,
        "n_embd": 32,
        "n_layer": 2,
        "n_head": 4,
        "n_positions": 64,
        "initializer_range": 0.08,
    },
    "gpt_neox": _COMMON,
    "llama": _GROUPED,
    "mistral": _GROUPED,
    "olmo2": _GROUPED,
    "phi": _COMMON,
    "phi3": {**_COMMON, "num_key_value_heads": 4},
    "qwen2": {**_GROUPED, "tie_word_embeddings": True},
    "qwen3": {**_GROUPED, "head_dim": 8},
}

MakeFolder = Callable[..., Path]


def save_tokenizer(folder: Path) -> None:
    """Write a word-level tokenizer of ``VOCABULARY`` words."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from transformers import PreTrainedTokenizerFast

    words = ["<pad>", "</s>", "<unk>", *(f"w{i}" for i in range(VOCABULARY - 3))]
    inner = Tokenizer(WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    inner.pre_tokenizer = Whitespace()
    make: Any = PreTrainedTokenizerFast
    tokenizer = make(tokenizer_object=inner, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")
    tokenizer.save_pretrained(folder)


def save_model(folder: Path, family: str, **changes: object) -> Path:
    """Write a tiny random model of a family with its tokenizer."""
    from transformers import AutoConfig, AutoModelForCausalLM

    make_config: Any = AutoConfig.for_model
    config = make_config(family, **{**CONFIGS[family], **_TOKENS, **changes})
    with quiet(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(sum(map(ord, family)))
        loader: Any = AutoModelForCausalLM
        model = loader.from_config(config)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                # Families start their norms and biases at 0 or 1, which would hide mistakes.
                if parameter.dim() == 1:
                    parameter.add_(0.1 * torch.randn_like(parameter), alpha=1.0 if name else 0.0)
        model.save_pretrained(folder)
    save_tokenizer(folder)
    return folder


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> MakeFolder:
    """Return a function from a family (and configuration changes) to a saved tiny model."""
    root = tmp_path_factory.mktemp("models")

    def make(family: str = "llama", **changes: object) -> Path:
        key = f"{family}-{json.dumps(changes, sort_keys=True)}".encode().hex()[:80]
        folder = root / key / family
        if not folder.exists():
            save_model(folder, family, **changes)
        return folder

    return make


MakeAdapted = Callable[..., AdaptedModel]


@pytest.fixture
def adapted(model_folder: MakeFolder) -> MakeAdapted:
    """Return a function that loads a tiny model and gives it a non-zero adapter."""

    def make(
        family: str = "llama",
        *,
        quantization: str = "none",
        kinds: str = "AB",
        dropout: float = 0.0,
        targets: str | Sequence[str] = "all-linear",
        cache: bool = False,
        r: int = 4,
        compute_dtype: str = "float32",
        **changes: object,
    ) -> AdaptedModel:
        base = load_base(
            str(model_folder(family, **changes)),
            quantization=quantization,
            cache_dequantized=cache,
            compute_dtype=compute_dtype,
        )
        model = adapt(base, r=r, alpha=8, target_modules=targets, dropout=dropout)
        model.load(initial_factors(model.spec, 7))
        rng = np.random.default_rng(8)
        model.load_vector(0.1 * rng.standard_normal(model.spec.size("B")).astype(np.float32), "B")
        model.set_trainable(kinds)
        return model

    return make


def make_examples(count: int, seed: int = 0, *, masked: bool = True) -> list[Example]:
    """Return examples of different lengths, some of them with a prompt that carries no loss."""
    rng = np.random.default_rng(seed)
    examples = []
    for index in range(count):
        ids = rng.integers(3, VOCABULARY, size=int(rng.integers(3, 13))).astype(np.int64)
        labels = ids.copy()
        if masked and index % 2:
            labels[: ids.size // 2] = IGNORED
        examples.append(Example(ids=ids, labels=labels))
    return examples


def truth_model(model: AdaptedModel, folder: Path) -> torch.nn.Module:
    """Return PEFT's own model in float64, with the dequantised weights where there are any.

    It shares no code with the project's layers: transformers loads it, the weights come from the
    definition of the format, PEFT computes.
    """
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    loader: Any = AutoModelForCausalLM
    with quiet():
        plain = loader.from_pretrained(folder, dtype=torch.float64).eval()
        plain.requires_grad_(False)
        for name, module in model.peft_model.named_modules():
            weight: Any = dict(module.named_parameters(recurse=False)).get("weight")
            if weight is None or weight.dtype not in {torch.int8, torch.uint8}:
                continue
            dense = defined_weight(module).double()
            own = name.removeprefix("base_model.model.").replace(".base_layer", "")
            target = plain.get_submodule(own).weight
            transposed = type(plain.get_submodule(own)).__name__ == "Conv1D"
            target.data.copy_(dense.t() if transposed else dense)
        config = LoraConfig(
            task_type="CAUSAL_LM",
            r=model.spec.r,
            lora_alpha=int(model.spec.lora_alpha),
            target_modules=list(model.spec.target_modules),
            fan_in_fan_out=model.spec.fan_in_fan_out,
        )
        wrapped: torch.nn.Module = get_peft_model(plain, config, autocast_adapter_dtype=False)
    wrapped.double().eval()
    factors = model.factors()
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            parameter.requires_grad_(False)
            key = name.replace(".default.", ".")
            if key in factors:
                parameter.copy_(torch.from_numpy(factors[key]))
                parameter.requires_grad_(f".lora_{model.kinds}." in key or model.kinds == "AB")
    return wrapped


def defined_weight(module: Any) -> torch.Tensor:
    """Return what a quantised layer's weight stands for, from the definition of its format.

    ``int8``: rows scaled to 127. ``torchao-int8``: rows times their scale.
    ``nf4``: two codes a byte, the high half first, blocks of 64 in
    row-major order, their scales quantised to 8 bits in blocks of 256 around a mean. ``int4``: rows
    of groups of 16 bytes; byte j holds weight j low and weight j + 16 high, from 8 (zero) times the
    group's scale.
    """
    weight = module.weight
    if weight.dtype == torch.int8 and hasattr(module, "scales"):
        rows: torch.Tensor = weight.data.double() * module.scales.double()
        return rows
    if weight.dtype == torch.int8:
        int8: torch.Tensor = weight.data.double() * (weight.SCB.double()[:, None] / 127)
        return int8
    if weight.dim() == 3:
        scales = module.scales.double()
        dense = torch.zeros((weight.shape[0], 32 * weight.shape[1]), dtype=torch.float64)
        for row, groups in enumerate(weight.data.tolist()):
            for group, codes in enumerate(groups):
                for j, byte in enumerate(codes):
                    for half, code in ((0, byte % 16), (16, byte // 16)):
                        dense[row, 32 * group + half + j] = (code - 8) * scales[row, group]
        return dense[:, : module.in_features]
    state = weight.quant_state
    packed = weight.data.flatten().tolist()
    codes = [half for byte in packed for half in (byte >> 4, byte & 15)]
    outer = state.state2
    scales = [
        float(outer.code[int(q)]) * float(outer.absmax[i // outer.blocksize]) + float(state.offset)
        for i, q in enumerate(state.absmax.tolist())
    ]
    table = state.code.tolist()
    values = [table[code] * scales[i // state.blocksize] for i, code in enumerate(codes)]
    return torch.tensor(values, dtype=torch.float64).view(tuple(state.shape))


def truth_gradients(truth: torch.nn.Module, examples: Sequence[Example]) -> torch.Tensor:
    """Return each example's gradient, one at a time and unpadded: ``(n, parameters)``, float64."""
    parameters = [
        parameter
        for _, parameter in sorted(
            (name.replace(".default.", "."), parameter)
            for name, parameter in truth.named_parameters()
            if parameter.requires_grad
        )
    ]
    rows = []
    for example in examples:
        ids = torch.from_numpy(example.ids)[None]
        logits = truth(input_ids=ids, use_cache=False).logits[0]
        losses = [
            -torch.log_softmax(logits[t], dim=0)[int(example.labels[t + 1])]
            for t in range(len(example.ids) - 1)
            if example.labels[t + 1] != IGNORED
        ]
        loss = torch.stack(losses).mean() if losses else logits.sum() * 0
        gradients = torch.autograd.grad(loss, parameters)
        rows.append(torch.cat([gradient.reshape(-1) for gradient in gradients]))
    return torch.stack(rows)


def truth_clipped_sum(gradients: torch.Tensor, bound: float) -> torch.Tensor:
    """Return the sum of rows that were clipped to a bound."""
    norms = gradients.norm(dim=1)
    factors = torch.clamp(bound / norms, max=1.0) if math.isfinite(bound) else 1.0 + 0 * norms
    factors = torch.where(norms > 0, factors, torch.ones_like(factors))
    return (gradients * factors[:, None]).sum(dim=0)


def relative_error(found: torch.Tensor, truth: torch.Tensor) -> float:
    """Return the relative L2 distance of two flat vectors."""
    return float((found.double() - truth.double()).norm() / truth.double().norm())
