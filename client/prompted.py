"""A base with a prompt, in the place of PEFT's model around it.

PEFT's own ``PeftModel`` gives outputs and losses for a prompt's places too. This one has the same
parameters under the names that adapters use everywhere here, and answers for the text alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from client.softprompt import SoftPrompt

if TYPE_CHECKING:
    from client.model import BaseModel


class Prompted(torch.nn.Module):
    """Calls the base, and is asked for whatever else the base knows.

    Attributes:
        prompt: what stands before every text.

    Args:
        base: a loaded causal language model.
        tokens: number of vectors of the prompt.
    """

    def __init__(self, base: BaseModel, tokens: int) -> None:
        super().__init__()
        self.prompt = SoftPrompt(base, tokens)
        # As deep as PEFT puts it, so that tensors have the same names.
        self.base_model = torch.nn.Module()
        self.base_model.model = base.model
        self.train(base.model.training)

    def forward(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        """Return what the base answers, its prompt in front."""
        return self._inner(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401
        """Return an attribute of the base that this module does not have."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name in {"base_model", "prompt"}:
                raise
            return getattr(self._inner, name)

    def get_base_model(self) -> torch.nn.Module:
        """Return the base, as PEFT's models do."""
        base: torch.nn.Module = self._inner
        return base

    @contextmanager
    def disable_adapter(self) -> Iterator[None]:
        """Let the base be itself inside the ``with`` block."""
        self.prompt.detach()
        try:
            yield
        finally:
            self.prompt.attach()

    def unload(self) -> torch.nn.Module:
        """Take the prompt out and return the base."""
        self.prompt.remove()
        return self.get_base_model()

    @property
    def _inner(self) -> Any:  # noqa: ANN401  (one of transformers' classes)
        inner: Any = self.base_model.model
        return inner


def taken_of_window(model: object) -> int:
    """Return how many places of a model's window are taken before any text: those of a prompt."""
    return model.prompt.length if isinstance(model, Prompted) else 0
