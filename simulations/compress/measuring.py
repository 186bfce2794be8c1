"""What compressed bases cost and are worth, beside the base that they come from."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shared.errors import ModelError
from simulations.compress.writing import weights_bytes

if TYPE_CHECKING:
    import torch
    from matplotlib.axes import Axes

_TIMEOUT = 3600
_MIB = 1024**2


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """One base, measured in a process of its own.

    Attributes:
        name: of the method, or ``"base"``.
        storage: ``model.quantization`` that it is loaded with.
        perplexity: on public text that no method saw.
        disk_bytes: of its safetensors files.
        load_peak_bytes: how far memory rises until it is loaded and every weight was read.
        tokens_per_second: read in one forward pass, per second of one core.
    """

    name: str
    storage: str
    perplexity: float
    disk_bytes: int
    load_peak_bytes: int
    tokens_per_second: float


def measure(name: str, folder: Path, storage: str, rows: Path) -> Measured:
    """Measure a base folder.

    Args:
        name: what the row is called.
        folder: of the base.
        storage: what to load it with.
        rows: safetensors file with ``rows``, int64 ``(count, length)``.

    Raises:
        ModelError: if it cannot be loaded in a process of its own.
    """
    command = [sys.executable, "-m", "simulations.compress.probe", str(folder), storage, str(rows)]
    done = subprocess.run(  # noqa: S603  (our own module, with paths that we made)
        command, capture_output=True, text=True, check=False, timeout=_TIMEOUT
    )
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1].split(":")[0]
        msg = f"Measuring {name!r} failed ({last})."
        raise ModelError(msg, hint="Give --no-measure to skip the table.")
    found = json.loads(done.stdout.splitlines()[-1])
    return Measured(name=name, storage=storage, disk_bytes=weights_bytes(folder), **found)


def as_rows(base: Measured, others: list[Measured]) -> list[dict[str, Any]]:
    """Return every measurement with its ratios to the base's."""
    return [
        {
            **asdict(one),
            "disk_ratio": one.disk_bytes / base.disk_bytes,
            "load_peak_ratio": one.load_peak_bytes / max(1, base.load_peak_bytes),
            "speed_ratio": one.tokens_per_second / base.tokens_per_second,
        }
        for one in (base, *others)
    ]


COLUMNS = ("method", "storage", "perplexity", "disk MiB", "load peak MiB", "tokens/s")


def cells(row: dict[str, Any]) -> list[str]:
    """Return one measurement's cells, under :data:`COLUMNS`."""
    return [
        row["name"],
        row["storage"],
        f"{row['perplexity']:.3f}",
        f"{row['disk_bytes'] / _MIB:.2f} ({row['disk_ratio']:.2f}x)",
        f"{row['load_peak_bytes'] / _MIB:.1f} ({row['load_peak_ratio']:.2f}x)",
        f"{row['tokens_per_second']:.0f} ({row['speed_ratio']:.2f}x)",
    ]


def as_markdown(rows: list[dict[str, Any]]) -> str:
    """Return the table in Markdown."""
    lines = [COLUMNS, ["---"] * len(COLUMNS), *map(cells, rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def plot(rows: list[dict[str, Any]]) -> str:
    """Return an SVG file: perplexity over size on disk, one named point for each base."""
    from simulations.svg import BLUE, INK, VERMILLION, as_file, render

    def draw(axes: Axes) -> None:
        for row in rows:
            size = row["disk_bytes"] / _MIB
            colour = VERMILLION if row["name"] == "base" else BLUE
            axes.plot([size], [row["perplexity"]], "o", color=colour, markersize=6)
            axes.annotate(
                row["name"],
                (size, row["perplexity"]),
                xytext=(5, 4),
                textcoords="offset points",
                color=INK,
                fontsize=9,
            )
        axes.margins(0.15)
        axes.set_xlabel("size on disk (MiB)")
        axes.set_ylabel("perplexity on public text")

    return as_file(render(draw), title="Perplexity over size on disk of compressed bases")


def save_rows(rows: torch.Tensor, path: Path) -> None:
    """Write rows of tokens where a probe reads them."""
    from safetensors.torch import save_file

    save_file({"rows": rows.contiguous()}, path)
