"""A base compressed by one method or several, each into a folder of its own, and compared."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from client.compressed import read_manifest
from client.model import find_base
from shared.errors import RunFolderError, RunFolderExists
from shared.files import disk_errors, write_json, write_text
from simulations.compress.catalog import method
from simulations.compress.measuring import (
    Measured,
    as_markdown,
    as_rows,
    measure,
    plot,
    save_rows,
)
from simulations.compress.protocol import Settings, Work
from simulations.compress.text import PublicText
from simulations.compress.writing import (
    full_precision,
    manifest_of,
    write_compressed,
    write_manifest,
)

HOLDOUT_ROWS = 32
_REPORT = "measurements"

Note = Callable[[str], None]
Step = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What is to be compressed, and where to.

    Attributes:
        base: a folder or a hub id, in full precision.
        methods: names of methods.
        text: public text.
        settings: how.
        out: folder that gets one folder for each method.
        resume: leave finished methods as they are, and go on with an unfinished one.
        note: called with what is being done.
        step: called with (method, done, of).
    """

    base: str
    methods: Sequence[str]
    text: PublicText
    settings: Settings
    out: Path
    resume: bool = False
    note: Note = lambda text: None
    step: Step = lambda name, done, of: None


def folder_of(out: Path, name: str) -> Path:
    """Return the folder that a method writes."""
    return out / name.replace(":", "-")


def compress(order: Order) -> list[dict[str, Any]]:
    """Compress a base by every method that is asked for; return the manifests, in their order.

    Raises:
        RunFolderExists: if a method's folder is there and it is not resumed.
        InvalidValue: for an unknown method.
        ModelError: if the base cannot be loaded, or a method cannot handle it.
    """
    for name in order.methods:
        method(name)
        if folder_of(order.out, name).exists() and not order.resume:
            msg = f"{folder_of(order.out, name).name!r} is in the output folder already."
            raise RunFolderExists(msg, hint="Give --resume to leave it, or another --out.")
    find_base(order.base)
    with disk_errors(order.out):
        order.out.mkdir(parents=True, exist_ok=True)
    return [_one(order, name) for name in order.methods]


def compare(order: Order, manifests: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Measure the base and what came of it, and write table, plot and numbers beside them.

    Returns:
        One row for each, the base first, with ratios to it.

    Raises:
        ModelError: if one cannot be measured.
    """
    source, _ = find_base(order.base)
    tokenizer = full_precision(order.base).tokenizer
    rows = order.text.rows(tokenizer, "holdout", count=HOLDOUT_ROWS, length=order.settings.length)
    others: list[Measured] = []
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "rows.safetensors"
        save_rows(rows, path)
        order.note("measuring the base")
        base = measure("base", source, "none", path)
        for said in manifests:
            order.note(f"measuring {said['method']}")
            folder = folder_of(order.out, said["method"])
            others.append(measure(said["method"], folder, said["result"]["quantization"], path))
    found = as_rows(base, others)
    write_json(order.out / f"{_REPORT}.json", {"text": order.text.name, "rows": found})
    write_text(order.out / f"{_REPORT}.md", as_markdown(found))
    write_text(order.out / f"{_REPORT}.svg", plot(found))
    return found


def _one(order: Order, name: str) -> dict[str, Any]:
    """Compress by one method, unless it is done; return its manifest."""
    folder = folder_of(order.out, name)
    if folder.exists():
        return _finished(folder)
    scratch = order.out / f".{folder.name}.work"
    partial = order.out / f".{folder.name}.partial"
    if not order.resume:
        shutil.rmtree(scratch, ignore_errors=True)
    shutil.rmtree(partial, ignore_errors=True)
    with disk_errors(folder):
        scratch.mkdir(exist_ok=True)
        partial.mkdir()
    try:
        order.note(f"compressing by {name}")
        work = Work(
            base=full_precision(order.base),
            text=order.text,
            settings=order.settings,
            scratch=scratch,
            step=lambda done, of: order.step(name, done, of),
        )
        compressed = method(name).compress(work)
        write_compressed(compressed, work.base.tokenizer, partial)
        manifest = manifest_of(name, method(name), compressed, work, partial)
        write_manifest(partial, manifest)
        with disk_errors(folder):
            partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        with suppress(OSError):
            scratch.rmdir()
    shutil.rmtree(scratch, ignore_errors=True)
    return manifest


def _finished(folder: Path) -> dict[str, Any]:
    """Return the manifest of a method that is done.

    Raises:
        RunFolderError: if the folder is something else.
    """
    manifest = read_manifest(folder)
    if manifest is None:
        msg = f"{folder.name!r} in the output folder is no compressed base."
        raise RunFolderError(msg, hint="Give another --out.")
    return manifest
