"""The tokenizer of an exported step, without transformers: text in, token ids out."""

from __future__ import annotations

from typing import TYPE_CHECKING

from client.edge.program import CHAT
from client.tokenfile import read_tokenizer
from shared.errors import InvalidValue, TokenizerMissing

if TYPE_CHECKING:
    from pathlib import Path

    from client.edge.chat import ChatTemplate, Messages
    from client.edge.program import StepManifest


class StepTokenizer:
    """What :mod:`client.tokenization` asks of a tokenizer, on the ``tokenizers`` package alone.

    Args:
        path: of ``tokenizer.json``; the chat template lies beside it, where there is one.
        manifest: says which ids begin and end a text.

    Attributes:
        bos_token_id: id that begins a text, or None.
        eos_token_id: id that ends one, or None.
        chat_template: what renders a conversation, or None.

    Raises:
        MissingDependency: if the package is not installed.
        TokenizerMissing: if the file is no tokenizer.
    """

    def __init__(self, path: Path, manifest: StepManifest) -> None:
        self._inner = read_tokenizer(path, of="exported step")
        self.bos_token_id = manifest.bos
        self.eos_token_id = manifest.eos
        self.chat_template: ChatTemplate | None = None
        if any(file.name == CHAT for file in manifest.files):
            self.chat_template = _chat(path.with_name(CHAT))

    def __call__(
        self,
        text: str,
        *,
        add_special_tokens: bool,
        split_special_tokens: bool,
        verbose: bool = False,
    ) -> dict[str, list[int]]:
        """Return the ids of a text under ``"input_ids"``.

        Args:
            text: any.
            add_special_tokens: whether the tokenizer adds its own markers.
            split_special_tokens: whether markers inside the text stay text.
            verbose: ignored; nothing is said.
        """
        del verbose
        self._inner.encode_special_tokens = split_special_tokens
        encoded = self._inner.encode(text, add_special_tokens=add_special_tokens)
        return {"input_ids": list(encoded.ids)}

    def apply_chat_template(
        self, messages: Messages, *, tokenize: bool, add_generation_prompt: bool
    ) -> str:
        """Return the text of a conversation.

        Args:
            messages: role and content of each turn.
            tokenize: must be False.
            add_generation_prompt: whether the text ends where an answer begins.

        Raises:
            InvalidValue: if ids are asked for.
            TokenizerMissing: if there is no chat template.
        """
        if tokenize:
            msg = "tokenize=True, expected False: a step's tokenizer renders text alone."
            raise InvalidValue(msg)
        if self.chat_template is None:
            msg = "The exported step has no chat template."
            raise TokenizerMissing(msg, hint="Export a step of a model that has one.")
        return self.chat_template.render(messages, add_generation_prompt=add_generation_prompt)


def _chat(path: Path) -> ChatTemplate:
    """Read the chat template of a step."""
    from client.edge.chat import ChatTemplate

    try:
        return ChatTemplate.from_json(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        msg = f"{path.name} of the exported step cannot be read ({type(error).__name__})."
        raise TokenizerMissing(msg, hint="Export the step again.") from None
