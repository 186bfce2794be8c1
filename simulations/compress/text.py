"""The public text that a compression may look at.

There are two sources: the documents that this project generates, and a file that a person names as
public. A scenario's data are no source, so private text cannot end up in a base by mistake: what is
calibrated on text leaks it, and no accountant would know.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from shared.errors import DataFileNotFound, NoUsableText
from shared.seeding import derive_seed
from simulations.public_text import public_documents

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_HOLDOUT = 10
_LARGEST = 1 << 28


@dataclass(frozen=True, slots=True, kw_only=True)
class PublicText:
    """Public documents, cut into rows of tokens where they are needed.

    Attributes:
        name: ``"builtin:public-documents"`` or the file's own name, without its folder.
        digest: SHA-256 of the file, or of the generator's name and seed.
        seed: names the streams of generated documents.
        lines: documents of a file, the last tenth of which is held out; None for generated ones.
    """

    name: str
    digest: str
    seed: int
    lines: tuple[str, ...] | None = None

    def rows(
        self,
        tokenizer: PreTrainedTokenizerBase,
        use: str,
        *,
        count: int,
        length: int,
        index: int = 0,
    ) -> torch.Tensor:
        """Return packed rows of tokens.

        Args:
            tokenizer: of the base.
            use: ``"calibration"``, ``"training"`` or ``"holdout"``; the last shares no document
                with the others.
            count: number of rows.
            length: tokens of a row.
            index: position in the stream of the use; rows are a function of (text, use, index).

        Returns:
            int64, shape ``(count, length)``. A short file is read again from its beginning.
        """
        bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
        before, after = ([] if i is None else [int(i)] for i in (bos, eos))
        needed, ids = count * length, list[int]()
        for document in self._documents(use, index):
            body = tokenizer(document, add_special_tokens=False)["input_ids"]
            ids += [*before, *map(int, body), *after]
            if len(ids) >= needed:
                break
        return torch.tensor(ids[:needed]).view(count, length)

    def _documents(self, use: str, index: int) -> Iterator[str]:
        """Return the documents of one use, for ever."""
        if self.lines is None:
            return public_documents(derive_seed(self.seed, "compress", use, index))
        cut = len(self.lines) - max(1, len(self.lines) // _HOLDOUT)
        part: Sequence[str] = self.lines[cut:] if use == "holdout" else self.lines[:cut]
        # Each index begins elsewhere, so that the steps of a training see all of the file.
        start = derive_seed(self.seed, use, index) % len(part)
        return cycle(_turned(part, start))


def generated_text(seed: int) -> PublicText:
    """Return the documents that this project generates (:mod:`simulations.public_text`)."""
    name = "builtin:public-documents"
    digest = hashlib.sha256(f"{name} seed={seed}".encode()).hexdigest()
    return PublicText(name=name, digest=digest, seed=seed)


def text_of_file(path: Path, seed: int) -> PublicText:
    """Return the documents of a text file that a person says is public: one a line.

    Args:
        path: UTF-8 text, at most 256 MiB, at least two lines that are not blank.
        seed: where training begins to read.

    Raises:
        DataFileNotFound: if there is no such file.
        NoUsableText: if it is no UTF-8 text of two documents or more.
    """
    if not path.is_file():
        msg = f"Public text {path.name!r} is no file."
        raise DataFileNotFound(msg, hint="Give a UTF-8 text file with one document a line.")
    data = path.read_bytes() if path.stat().st_size <= _LARGEST else b""
    try:
        lines = tuple(line.strip() for line in data.decode("utf-8").splitlines() if line.strip())
    except UnicodeDecodeError:
        lines = ()
    if not len(lines) >= 2:
        msg = f"Public text {path.name!r} has {len(lines)} usable lines, expected at least 2."
        raise NoUsableText(msg, hint="One document a line, UTF-8, at most 256 MiB.")
    digest = hashlib.sha256(data).hexdigest()
    return PublicText(name=path.name, digest=digest, seed=seed, lines=lines)


def batches(rows: torch.Tensor, size: int) -> Iterable[torch.Tensor]:
    """Yield rows, so many at once."""
    return torch.split(rows, size)


def _turned(part: Sequence[str], start: int) -> list[str]:
    """Return a list that begins elsewhere."""
    return [*islice(part, start, None), *islice(part, start)]
