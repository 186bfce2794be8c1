"""An adapter from elsewhere, with the user's own texts: what the audits need of both."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from client.data import Columns, Record, file_format, read_records
from client.readers import csv_rows, jsonl_rows, missing_column, require_readable
from client.tokenization import PLAIN
from server.adapters import WEIGHTS
from server.audit.membership import TextSplit
from server.audit.target import Passage
from shared.errors import InvalidValue, NoUsableText
from shared.seeding import data_rng
from simulations.auditing.foreign import check_adapter, load_external
from simulations.auditing.target import ModelTarget, Subject

LARGEST = 20_000
"""Most texts of a file that are kept; more than any audit scores."""

SOURCE = "the user's own files of members and non-members"


@dataclass(frozen=True, slots=True, kw_only=True)
class External:
    """An adapter from elsewhere, ready to be audited.

    Attributes:
        model: base and adapter.
        target: reads and writes with it.
        split: the user's own texts; None if none were given.
        facts: what the report says about adapter, base and files; no text and no path.
    """

    model: Subject
    target: ModelTarget
    split: TextSplit | None
    facts: Mapping[str, object]

    @property
    def artefacts(self) -> tuple[object, ...]:
        """What the audits may look at."""
        return (self.target,) if self.split is None else (self.target, self.split)


def open_external(
    adapter_dir: Path | str,
    base: str,
    members: Path | str | None = None,
    nonmembers: Path | str | None = None,
    *,
    columns: Columns | None = None,
    max_length: int = 128,
    template: str = PLAIN,
    quantization: str = "none",
    revision: str | None = None,
    device: str = "cpu",
    seed: int = 0,
) -> External:
    """Load a PEFT adapter folder on its base model, and the texts to ask it about.

    Args:
        adapter_dir: folder with ``adapter_config.json`` and ``adapter_model.safetensors``.
        base: ``"demo"``, a transformers folder, or a hub id.
        members: texts that the adapter was trained on: JSONL, CSV, Parquet, or a text a line.
        nonmembers: texts from the same source that it was not trained on; together with members.
        columns: which column holds what; by default ``text``, or ``prompt`` with ``response``.
        max_length: most tokens of a text, as in training.
        template: how prompt and response were joined in training.
        quantization: how the base is stored.
        revision: of a hub id.
        device: where the model lives.
        seed: draws from files of more than :data:`LARGEST` texts.

    Raises:
        AdapterIncompatible: for an adapter that is no plain LoRA, or does not fit the base.
        AdapterCorrupt: for a folder without its two files, or a damaged one.
        BaseModelMismatch: if the folder names another base by digest.
        ModelError, DataError: as the loaders of models and data raise.
        InvalidValue: for one file without the other, or a text in both.
    """
    if (members is None) != (nonmembers is None):
        msg = "members and nonmembers go together, found one of them."
        raise InvalidValue(msg, hint="Split one set of texts at random before training.")
    folder = Path(adapter_dir).expanduser()
    config = check_adapter(folder)
    model = load_external(folder, base, quantization=quantization, revision=revision, device=device)
    target = ModelTarget(model, max_length=max_length, template=template)
    facts: dict[str, object] = {
        "base": model.base.name,
        "base_digest": model.base.digest,
        "quantization": quantization,
        "weights_sha256": _sha256(folder / WEIGHTS),
        "r": config.get("r"),
        "lora_alpha": config.get("lora_alpha"),
    }
    if members is None or nonmembers is None:
        return External(model=model, target=target, split=None, facts=facts)
    files = [_File.read(Path(path), columns) for path in (members, nonmembers)]
    both = len(files[0].texts.keys() & files[1].texts.keys())
    if both:
        msg = f"members and nonmembers share {both} texts, expected none."
        raise InvalidValue(msg, hint="A text is a member or it is not; remove it from one file.")
    sides = [file.kept(target, seed) for file in files]
    for name, file, side in zip(("members", "nonmembers"), files, sides, strict=True):
        facts[name] = {"records": file.records, "distinct": len(file.texts), "kept": len(side)}
    split = TextSplit(members=sides[0], nonmembers=sides[1], source=SOURCE)
    return External(model=model, target=target, split=split, facts=facts)


@dataclass(frozen=True, slots=True, kw_only=True)
class _File:
    """The texts of one file, each once.

    Texts that differ in white space at the ends alone are one text, as they are to training.
    """

    path: Path
    records: int
    texts: dict[tuple[str, str], Passage]

    @classmethod
    def read(cls, path: Path, columns: Columns | None) -> _File:
        """Read a file."""
        records = 0
        texts: dict[tuple[str, str], Passage] = {}
        for record in read_records(path, columns=columns or _columns(path)):
            records += 1
            passage = _passage(record)
            texts.setdefault((passage.prompt.strip(), passage.text.strip()), passage)
        return cls(path=path, records=records, texts=texts)

    def kept(self, target: ModelTarget, seed: int) -> tuple[Passage, ...]:
        """Return the texts that training would have used, at most :data:`LARGEST`.

        Raises:
            NoUsableText: if there is none.
        """
        texts = list(self.texts.values())
        if len(texts) > LARGEST:
            order = data_rng(seed, "external", self.path.name).permutation(len(texts))
            texts = [texts[i] for i in sorted(order[:LARGEST])]
        usable = tuple(text for text in texts if target.scorable(text))
        if not usable:
            msg = f"{self.path.name} has {self.records} records and none is usable text."
            raise NoUsableText(msg, hint="Expected a text a line, or a column with texts.")
        return usable


def _sha256(path: Path) -> str:
    """Return the digest of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _passage(record: Record) -> Passage:
    """Return a record as it is scored: a response after its prompt, or a text."""
    if record.response is not None:
        return Passage(text=record.response, prompt=record.prompt or "")
    return Passage(text=record.text or "")


def _columns(path: Path) -> Columns:
    """Return the usual columns of a file, by the names in its first row."""
    kind = file_format(path)
    if kind == "text":
        return Columns()
    require_readable(path)
    rows = {"jsonl": jsonl_rows, "csv": csv_rows}.get(kind)
    if rows is None:
        return Columns(text="text")
    _, first = next(rows(path, []), ("", {"text": ""}))
    names: Sequence[str] = list(first)
    if "text" in names:
        return Columns(text="text")
    if {"prompt", "response"} <= set(names):
        return Columns(prompt="prompt", response="response")
    raise missing_column("text", names, path.name)
