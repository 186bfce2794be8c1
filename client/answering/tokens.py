"""The tokenizer of an export, on the ``tokenizers`` package alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from client.answering.engine import with_begin
from client.exports.programfacts import ProgramFacts
from client.tokenfile import read_tokenizer
from shared.errors import BaseModelMismatch


class ProgramTokenizer:
    """Text to tokens and back.

    Args:
        path: of ``tokenizer.json``.
        facts: of the base model.

    Raises:
        MissingDependency: if the package is not installed.
        TokenizerMissing: if the file is no tokenizer.
    """

    def __init__(self, path: Path, facts: ProgramFacts) -> None:
        self._facts = facts
        self._inner = read_tokenizer(path, of="export")
        self._inner.encode_special_tokens = True

    def encode(self, text: str) -> list[int]:
        """Return the tokens of a prompt, with the one that begins a text; markers are text.

        Raises:
            InvalidValue: for an empty prompt without a token to begin from.
            BaseModelMismatch: if the model has no such token.
        """
        found = self._inner.encode(text, add_special_tokens=False).ids
        return self._known(with_begin(found, self._facts.bos, self._facts.eos))

    def encode_turn(self, turn: str) -> list[int]:
        """Return the tokens of a rendered turn, in which markers count."""
        self._inner.encode_special_tokens = False
        try:
            return self._known(self._inner.encode(turn, add_special_tokens=False).ids)
        finally:
            self._inner.encode_special_tokens = True

    def _known(self, ids: list[int]) -> list[int]:
        """Refuse tokens that the model does not have."""
        if not max(ids) < self._facts.vocabulary:
            msg = "The tokenizer of the export has tokens that its model does not embed."
            raise BaseModelMismatch(msg, hint="Export it again.")
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """Return tokens as text, markers included."""
        return str(self._inner.decode(list(ids), skip_special_tokens=False))
