"""The loop that every federation is compared with: plain LoRA on all clients' text in one place.

transformers, PEFT and torch's SGD and nothing of ours, without privacy: the batches that the
clients train on, one after the other, one optimiser step each, on a model of its own. Tokenising
and padding are done before the clock starts, and no attention mask is passed (padding is on the
right), so that what is timed is little more than the arithmetic.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from client.losses import Batch, collate
from client.tokenization import make_examples
from simulations.basepath import base_path
from simulations.dataset import open_dataset

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from transformers import PreTrainedTokenizerBase

    from shared.config import RunConfig


class CentralLoop:
    """A LoRA model and its optimiser.

    Args:
        config: the scenario of the federation: base, LoRA, which factors train, learning rate.
    """

    def __init__(self, config: RunConfig) -> None:
        from peft import LoraConfig, get_peft_model
        from transformers import AutoModelForCausalLM, AutoTokenizer

        from client.model import quiet

        folder = base_path(config.model.base, base_dir=Path.cwd())
        loader: Any = AutoModelForCausalLM
        with quiet():
            self.tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder)
            base = loader.from_pretrained(folder, dtype=torch.float32)
            base.config.use_cache = False
            lora = LoraConfig(
                task_type="CAUSAL_LM",
                r=config.lora.r,
                lora_alpha=config.lora.alpha,  # type: ignore[arg-type]
                target_modules=config.lora.target_modules,  # type: ignore[arg-type]
            )
            with torch.random.fork_rng(devices=[]):
                self.model: torch.nn.Module = get_peft_model(base, lora)
        # The base in evaluation mode, as in the federation: the same arithmetic, no dropout.
        self.model.eval()
        self._factors = {
            name.replace(".default.", "."): parameter
            for name, parameter in self.model.named_parameters()
            if ".lora_" in name
        }
        for name, parameter in self._factors.items():
            parameter.requires_grad_(any(f".lora_{kind}." in name for kind in config.trained_kinds))
        trained = [p for p in self._factors.values() if p.requires_grad]
        self._optimizer = torch.optim.SGD(trained, lr=config.clients.learning_rate)

    def train(self, batches: Sequence[Batch]) -> float:
        """Take one step on each batch and return the seconds that all of them took."""
        began = time.perf_counter()
        for batch in batches:
            self._optimizer.zero_grad(set_to_none=True)
            loss = self.model(input_ids=batch.ids, labels=batch.labels, use_cache=False).loss
            loss.backward()
            self._optimizer.step()
        return time.perf_counter() - began

    def load(self, factors: Mapping[str, NDArray[Any]]) -> None:
        """Copy factors in, by PEFT's names."""
        with torch.no_grad():
            for name, array in factors.items():
                self._factors[name].copy_(torch.from_numpy(array.copy()))

    def factors(self) -> dict[str, NDArray[Any]]:
        """Return a copy of every factor by PEFT's name."""
        return {name: p.detach().numpy().copy() for name, p in self._factors.items()}


def batches_of(config: RunConfig, tokenizer: PreTrainedTokenizerBase) -> list[Batch]:
    """Return one batch per client of a scenario, of all its records.

    Args:
        config: the scenario; every client's training records must fit one batch.
        tokenizer: of the base model.
    """
    data = config.data
    dataset = open_dataset(
        data, population=config.clients.population, seed=config.run.seed, base_dir=Path.cwd()
    )
    pad_id = int(tokenizer.pad_token_id or 0)
    return [
        collate(
            make_examples(
                dataset.client(index).train,
                tokenizer,
                max_length=data.max_length,
                template=data.template,
            ),
            pad_id,
        )
        for index in range(dataset.population)
    ]


def tokens_of(batches: Sequence[Batch]) -> int:
    """Return the number of tokens in some batches, padding included."""
    return sum(batch.ids.numel() for batch in batches)
