"""Encoders that classify: loaded with a head of zeros, and what of them trains.

The head is the last dense layer, one row for each label. It starts at zero, so that every run
starts from the same public values. Another layer that the checkpoint lacks (a pooler, DistilBERT's
``pre_classifier``) is square: it becomes the identity, frozen, which is public too and needs no
seed. Anything else that is missing is an error, as is a layer that mixes the texts of a batch.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from client.classification import PROBLEM
from client.densehead import DenseHead
from shared.errors import ConflictingSettings, UnsupportedModel
from shared.lora import Factor

if TYPE_CHECKING:
    from transformers import PreTrainedModel

HEAD = "classifier"
_MARK = "_fedslm_head"


@dataclass(frozen=True, slots=True)
class Classifier:
    """A model, and what of it is no checkpoint's.

    Attributes:
        model: a transformers model; every parameter frozen, in evaluation mode.
        head: name of the dense layer that trains whole; "" for a language model.
        identities: names and widths of the layers that are the identity.
    """

    model: PreTrainedModel
    head: str = ""
    identities: tuple[tuple[str, int], ...] = ()


def require_unquantised(quantization: str, stored: str) -> None:
    """Refuse a quantised classifier.

    Raises:
        ConflictingSettings: for any quantisation.
    """
    if (quantization, stored) != ("none", "none"):
        msg = f"quantization={quantization!r} and classification: the head trains in float32."
        raise ConflictingSettings(msg, hint="Set model.quantization to none.")


def load_classifier(folder: Path, name: str, *, labels: int, device: str) -> Classifier:
    """Load an encoder in float32 with a head of zeros.

    Args:
        folder: a transformers folder; a head that is stored there is not used.
        name: what errors call it.
        labels: number of classes.
        device: where the model lives.

    Raises:
        UnsupportedModel: if weights are missing that are no head's and no square layer's, or if a
            layer mixes the texts of a batch.
    """
    from safetensors import SafetensorError
    from transformers import AutoModelForSequenceClassification

    loader: Any = AutoModelForSequenceClassification
    try:
        # What is missing is drawn from torch's global generator, and replaced below.
        with torch.random.fork_rng(devices=[]):
            model, report = loader.from_pretrained(
                folder,
                num_labels=labels,
                problem_type=PROBLEM,
                dtype=torch.float32,
                use_safetensors=True,
                local_files_only=True,
                trust_remote_code=False,
                ignore_mismatched_sizes=True,
                output_loading_info=True,
            )
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        msg = f"The weights of model {name!r} cannot be loaded ({type(error).__name__})."
        raise UnsupportedModel(msg, hint="Check config.json against the weights.") from error
    _refuse_mixing(model, name)
    head = getattr(model, HEAD, None)
    if not isinstance(head, torch.nn.Linear) or head.out_features != labels or head.bias is None:
        msg = f"Model {name!r} has no dense layer {HEAD!r} of {labels} rows with a bias."
        raise UnsupportedModel(msg)
    mark_trained(head)
    lacking = [*report.get("missing_keys", ()), *(k[0] for k in report.get("mismatched_keys", ()))]
    identities = _become_identities(model, name, lacking)
    with torch.no_grad():
        _silence_padding(model)
        head.weight.zero_()
        head.bias.zero_()
    model.requires_grad_(False)
    return Classifier(model.to(device).eval(), HEAD, identities)


def mark_trained(module: torch.nn.Module) -> None:
    """Mark a layer as one that trains whole: no part of the frozen base."""
    setattr(module, _MARK, True)


def is_head(module: torch.nn.Module) -> bool:
    """Tell whether a module trains whole (a head, a router), and so is no part of the base."""
    return bool(getattr(module, _MARK, False))


def head_of(model: torch.nn.Module, name: str) -> DenseHead | None:
    """Return the head of a model, or None for a language model."""
    if not name:
        return None
    module = model.get_submodule(name)
    if not isinstance(module, torch.nn.Linear):
        msg = f"The head {name!r} is no dense layer."
        raise UnsupportedModel(msg)
    return DenseHead(module)


def head_factors(model: torch.nn.Module, head: str, prefix: str) -> list[Factor]:
    """Return names and shapes of a head's tensors; none for a language model."""
    if not head:
        return []
    tensors = model.get_submodule(head).named_parameters()
    return [
        Factor(name=f"{prefix}{head}.{own}", kind="B", shape=tuple(tensor.shape))
        for own, tensor in tensors
    ]


def untouched(
    model: torch.nn.Module, head: str, identities: Iterable[tuple[str, int]]
) -> frozenset[str]:
    """Return the layers of a classifier that carry no adapter: what PEFT saves whole.

    PEFT matches the names of whole layers by their end, so that it takes DistilBERT's
    ``pre_classifier`` for a ``classifier``.
    """
    if not head:
        return frozenset()
    alike = {name for name, _ in model.named_modules() if name.endswith(head)}
    return frozenset({*alike, *(name for name, _ in identities)})


def _become_identities(
    model: torch.nn.Module, name: str, lacking: Iterable[str]
) -> tuple[tuple[str, int], ...]:
    """Make identities of the square layers that a checkpoint lacks; return them."""
    found = {}
    for key in sorted(lacking):
        place = key.rpartition(".")[0]
        if place == HEAD:
            continue
        module = model.get_submodule(place)
        if not (isinstance(module, torch.nn.Linear) and module.in_features == module.out_features):
            msg = f"The checkpoint of model {name!r} lacks weights, such as {key}."
            raise UnsupportedModel(msg, hint="Expected the encoder's weights, whole.")
        with torch.no_grad():
            module.weight.copy_(torch.eye(module.in_features))
            if module.bias is not None:
                module.bias.zero_()
        found[place] = module.in_features
    return tuple(sorted(found.items()))


def _silence_padding(model: Any) -> None:  # noqa: ANN401  (families differ)
    """Make the padding's embedding zero where a token reads its neighbour's (MobileBERT).

    The last token of a text would read the padding, and so tell whether a longer text was in its
    batch; beyond the end of a batch the model reads zeros.
    """
    if getattr(model.config, "trigram_input", False):
        model.get_input_embeddings().weight[model.config.pad_token_id or 0] = 0


def _refuse_mixing(model: torch.nn.Module, name: str) -> None:
    """Refuse layers in which the texts of a batch meet: a clip would bound no single one."""
    batch = torch.nn.modules.batchnorm._BatchNorm
    mixing = [place for place, module in model.named_modules() if isinstance(module, batch)]
    if mixing:
        msg = f"Model {name!r} normalises over the batch ({mixing[0]}): examples are not separable."
        raise UnsupportedModel(msg, hint="Use a model with layer normalisation.")
