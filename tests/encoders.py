"""Tiny random encoders with a tokenizer, and a labelled corpus that they can learn."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import torch

from client.model import quiet

LABELS = ("card", "loan", "rate")
_WORDS = {
    "card": ("card", "chip", "pin", "swipe"),
    "loan": ("loan", "debt", "repay", "owe"),
    "rate": ("rate", "euro", "dollar", "swap"),
}
_FILLER = ("my", "the", "is", "how", "when", "please", "a", "to")
VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *_FILLER, *sum(_WORDS.values(), ())]
_BERT = {
    "vocab_size": 32,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 32,
    "initializer_range": 0.3,
}
CONFIGS: dict[str, dict[str, Any]] = {
    "bert": _BERT,
    "distilbert": {
        "vocab_size": 32,
        "dim": 16,
        "n_layers": 2,
        "n_heads": 2,
        "hidden_dim": 24,
        "max_position_embeddings": 32,
        "initializer_range": 0.3,
    },
    "mobilebert": {
        **_BERT,
        "embedding_size": 8,
        "intra_bottleneck_size": 8,
        "num_feedforward_networks": 2,
    },
}


def save_encoder(folder: Path, family: str = "distilbert", **changes: object) -> Path:
    """Write a tiny random encoder without any head, and its tokenizer."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from transformers import AutoConfig, AutoModel, PreTrainedTokenizerFast

    config = AutoConfig.for_model(family, **{**CONFIGS[family], **changes})
    loader: Any = AutoModel
    with quiet(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        model = loader.from_config(config)
        with torch.no_grad():
            # Real checkpoints have some numbers there; a text must not read them.
            model.get_input_embeddings().weight[0] = 0.7
        model.save_pretrained(folder)
    inner = Tokenizer(WordLevel({word: i for i, word in enumerate(VOCABULARY)}, unk_token="[UNK]"))
    inner.pre_tokenizer = Whitespace()
    make: Any = PreTrainedTokenizerFast
    make(
        tokenizer_object=inner,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
    ).save_pretrained(folder)
    return folder


def save_corpus(path: Path, records: int = 240, seed: int = 0) -> Path:
    """Write a CSV of texts, each with two words of its label among others."""
    rng = np.random.default_rng(seed)
    with path.open("w", newline="", encoding="utf-8") as stream:
        rows = csv.writer(stream)
        rows.writerow(("text", "category"))
        for number in range(records):
            label = LABELS[number % len(LABELS)]
            words = [*rng.choice(_FILLER, 3), *rng.choice(_WORDS[label], 2)]
            rng.shuffle(words)
            rows.writerow((" ".join(words), label))
    return path
