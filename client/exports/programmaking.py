"""The record of a base model for another runtime, made where torch and transformers are."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from client.edge.chatexport import chat_template_of
from client.edge.program import CHAT
from client.exports.programfacts import ProgramFacts
from shared.errors import UnsupportedModel

if TYPE_CHECKING:
    from client.model import BaseModel


def facts_of_base(
    base: BaseModel, file: str, *, kv_cache: str = "none", quantization: str = "none"
) -> ProgramFacts:
    """Return what a runtime must know of a loaded base.

    Args:
        base: the model and its tokenizer.
        file: of the program or the weights, within the export.
        kv_cache: how the program keeps keys and values.
        quantization: of the weights.
    """
    model: Any = base.model
    window = getattr(model.config, "max_position_embeddings", None)
    bos, eos = base.tokenizer.bos_token_id, base.tokenizer.eos_token_id
    return ProgramFacts(
        file=file,
        window=None if window is None else int(window),
        vocabulary=int(model.get_input_embeddings().weight.shape[0]),
        bos=None if bos is None else int(bos),
        eos=None if eos is None else int(eos),
        ends=tuple(sorted(end_tokens(model, base.tokenizer))),
        kv_cache=kv_cache,
        quantization=quantization,
    )


def end_tokens(model: Any, tokenizer: Any) -> frozenset[int]:  # noqa: ANN401  (transformers')
    """Return the tokens that end a text, the tokenizer's and the model's own."""
    found = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    ends = set(found) if isinstance(found, list | tuple) else {found}
    return frozenset(int(token) for token in ends | {tokenizer.eos_token_id} if token is not None)


def write_tokenizer(base: BaseModel, path: Path) -> None:
    """Write the tokenizer as one file, which needs no transformers to read.

    Raises:
        UnsupportedModel: if it has no such form.
    """
    backend = getattr(base.tokenizer, "backend_tokenizer", None)
    if backend is None:
        msg = "The tokenizer of this model has no tokenizer.json."
        raise UnsupportedModel(msg, hint="Only fast tokenizers work without transformers.")
    path.write_text(backend.to_str(), encoding="utf-8")


def write_chat(base: BaseModel, folder: Path) -> None:
    """Write the base's chat template, where there is one that renders as in transformers."""
    template = chat_template_of(base.tokenizer)
    if template is not None:
        (folder / CHAT).write_text(template.to_json(), encoding="utf-8")
