"""Reading ``tokenizer.json`` with the ``tokenizers`` package alone, without transformers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from shared.errors import MissingDependency, TokenizerMissing

if TYPE_CHECKING:
    from pathlib import Path

    from tokenizers import Tokenizer


def read_tokenizer(path: Path, *, of: str) -> Tokenizer:
    """Return a tokenizer that neither cuts nor pads.

    Args:
        path: of ``tokenizer.json``.
        of: what it belongs to, in an error: ``"export"`` or ``"exported step"``.

    Raises:
        MissingDependency: if the package is not installed.
        TokenizerMissing: if the file is no tokenizer.
    """
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        msg = f"The tokenizer of an {of} needs the tokenizers package, which is not installed."
        raise MissingDependency(msg, hint="pip install 'fedslm[edge]'") from error
    try:
        inner: Tokenizer = Tokenizer.from_str(path.read_text(encoding="utf-8"))
    except Exception as error:  # noqa: BLE001 - the package raises nothing narrower
        msg = f"{path.name} of the {of} is no tokenizer ({type(error).__name__})."
        raise TokenizerMissing(msg, hint=f"Make the {of} again.") from None
    inner.no_truncation()
    inner.no_padding()
    return inner
