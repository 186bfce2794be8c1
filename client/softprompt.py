"""Trained vectors in front of every text (prompt tuning), with one gradient per example.

The vectors are put before a text's embeddings and taken off again behind the last block: whoever
calls the model gets one output for each of its tokens, and losses, labels and places are those of
the text alone. With a cache they enter it once, with the first tokens.

Guarantee:
    Every text gets its own copy of the vectors, so that the gradient of example i is that of copy
    i: it depends on that text alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import torch

from client.encoders import mark_trained
from shared.errors import UnsupportedModel

if TYPE_CHECKING:
    from client.model import BaseModel

PROMPT_LAYER: Final = "soft_prompt"
"""Name of the layer that holds a prompt."""
_ROWS = 4096  # embeddings that are measured at once


class SoftPrompt:
    """The prompt of one model; attached to it from its making to :meth:`remove`.

    Args:
        base: a causal language model; a layer that holds the vectors is added.
        tokens: number of vectors n.

    Attributes:
        module: the layer whose weight is the prompt, ``(n, width)``.
        examples: number of examples whose gradients are kept apart; 0 leaves them to autograd.
        samples: what was kept, ``"weight"`` to ``(examples, n, width)``.

    Raises:
        UnsupportedModel: if the model shows no embeddings, or no body that reads them.
    """

    def __init__(self, base: BaseModel, tokens: int) -> None:
        model: Any = base.model
        self._body: Any = model.base_model
        if self._body is model:
            msg = f"Model {base.name!r} has no body apart from its output embedding."
            raise UnsupportedModel(msg, hint="A prompt needs a causal model.")
        self._embeddings: torch.nn.Module = model.get_input_embeddings()
        weight: Any = self._embeddings.weight
        width = prompt_width(model)
        self.module = torch.nn.Embedding(tokens, width, device="meta").to_empty(
            device=weight.device
        )
        with torch.no_grad():
            self.module.weight.zero_()
        mark_trained(self.module)
        self._model = model
        model.add_module(PROMPT_LAYER, self.module)
        self._off = False
        self._inserted = 0
        self.examples = 0
        self.samples: dict[str, torch.Tensor] = {}
        self._hooks = [
            self._body.register_forward_pre_hook(self._before, with_kwargs=True),
            self._body.register_forward_hook(self._after),
        ]

    @property
    def trained(self) -> dict[str, torch.nn.Parameter]:
        """What trains, by the name it has in :attr:`samples`."""
        weight: Any = self.module.weight
        return {"weight": weight}

    @property
    def length(self) -> int:
        """Number of vectors."""
        return int(self.module.weight.shape[0])

    def attach(self) -> None:
        """Stand before every text again."""
        self._off = False

    def detach(self) -> None:
        """Let texts stand by themselves."""
        self._off = True

    def remove(self) -> None:
        """Take the prompt out of the model."""
        for hook in self._hooks:
            hook.remove()
        self._model.__dict__["_modules"].pop(PROMPT_LAYER, None)

    def record(self, examples: int) -> None:
        """Keep gradients of a coming batch apart by example; 0 ends it. Forgets the last ones."""
        self.examples = examples
        self.samples = {}

    def _before(self, body: Any, args: Any, kwargs: dict[str, Any]) -> Any:  # noqa: ANN401
        """Put the prompt in front of what a pass is given."""
        del body
        self._inserted = 0
        if self._off:
            return None
        cache, mask = kwargs.get("past_key_values"), kwargs.get("attention_mask")
        begins = cache is None or int(cache.get_seq_length()) == 0
        ids = kwargs.get("input_ids", args[0] if args else None)
        embedded = kwargs.get("inputs_embeds")
        if embedded is None:
            if ids is None:
                msg = "A prompt finds neither token ids nor embeddings to stand before."
                raise UnsupportedModel(msg)
            embedded = self._embeddings(ids)
        changed = dict(kwargs) if args else {**kwargs, "input_ids": None}
        if mask is not None:
            # Padding on the left stays between the prompt and its text, and masked.
            ahead = mask.new_ones((mask.shape[0], self.length))
            changed["attention_mask"] = torch.cat([ahead, mask], dim=1)
        places = kwargs.get("position_ids")
        if places is not None:
            first = torch.arange(self.length if begins else 0, device=places.device)
            first = first.expand(places.shape[0], -1)
            changed["position_ids"] = torch.cat([first, places + self.length], dim=1)
        if begins:
            prompt = self._copies(embedded.shape[0]).to(embedded.dtype)
            embedded = torch.cat([prompt, embedded], dim=1)
            self._inserted = prompt.shape[1]
        changed["inputs_embeds"] = embedded
        return (None, *args[1:]) if args else (), changed

    def _after(self, body: Any, args: Any, output: Any) -> Any:  # noqa: ANN401
        """Take the prompt's own outputs off."""
        del body, args
        if self._inserted:
            output.last_hidden_state = output.last_hidden_state[:, self._inserted :]
        return output

    def _copies(self, texts: int) -> torch.Tensor:
        """Return the prompt once for each text, ``(texts, n, width)``."""
        if not self.examples:
            return self.module.weight.expand(texts, -1, -1)
        if texts != self.examples:
            msg = f"The prompt stands before {texts} texts for {self.examples} examples."
            raise UnsupportedModel(msg, hint="Use clipper='microbatch'.")
        copies: torch.Tensor = _Recorded.apply(self.module.weight, self)  # type: ignore[no-untyped-call]
        return copies


def prompt_width(model: torch.nn.Module) -> int:
    """Return the width of a model's embeddings, where each has that of the model itself.

    Raises:
        UnsupportedModel: if the model widens its embeddings behind a prompt.
    """
    found: Any = model
    width = int(found.get_input_embeddings().weight.shape[1])
    hidden = int(getattr(found.config, "hidden_size", width))
    if width != hidden:
        msg = f"The embeddings are {width} wide and the model {hidden}."
        raise UnsupportedModel(msg, hint="Use lora.variant 'lora' for this model.")
    return width


@torch.no_grad()
def embedding_spread(model: torch.nn.Module) -> float:
    """Return the root mean square of a model's embeddings as its body reads them.

    Args:
        model: a causal language model; one without storage has a spread of 1.
    """
    found: Any = model
    embeddings = found.get_input_embeddings()
    if embeddings.weight.device.type == "meta":
        return 1.0
    total = torch.zeros((), dtype=torch.float64)
    rows, width = embeddings.weight.shape
    for ids in torch.split(torch.arange(rows, device=embeddings.weight.device), _ROWS):
        total += embeddings(ids).double().square().sum().cpu()
    return float((total / (rows * width)).sqrt())


class _Recorded(torch.autograd.Function):
    """A prompt, once for each text, that keeps the gradient of every copy."""

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401
        weight: torch.Tensor,
        prompt: SoftPrompt,
    ) -> torch.Tensor:
        """Return the copies."""
        ctx.prompt = prompt
        return weight.expand(prompt.examples, -1, -1).clone()

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[None, None]:  # noqa: ANN401
        """Keep the gradient of each copy."""
        if ctx.needs_input_grad[0]:
            grad: torch.Tensor = grads[0].float()
            earlier = ctx.prompt.samples.get("weight")
            ctx.prompt.samples["weight"] = grad if earlier is None else earlier + grad
        return None, None
