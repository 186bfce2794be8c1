"""Several finished runs side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from shared.errors import RunFolderError
from simulations.runfolder import SUMMARY, RunFolder

COLUMNS = (
    "run",
    "clients",
    "mode",
    "epsilon",
    "delta",
    "loss before",
    "loss after",
    "perplexity before",
    "perplexity after",
    "kB up",
    "seconds",
)


def read_summaries(folders: Sequence[Path]) -> list[dict[str, Any]]:
    """Return the summaries of finished runs with their folder's name.

    Raises:
        RunFolderError: if a folder holds no finished run.
    """
    found = []
    for folder in folders:
        summary = RunFolder(folder).read_json(SUMMARY) if folder.is_dir() else None
        if summary is None:
            msg = f"{folder.name} has no {SUMMARY}, expected a finished run."
            raise RunFolderError(msg, hint="Finish it with --resume, or leave it out.")
        found.append({**summary, "run": folder.name})
    return found


def row(summary: Mapping[str, Any]) -> tuple[str, ...]:
    """Return one run as text, in the order of ``COLUMNS``."""
    privacy = summary["privacy"]
    private = privacy["mode"] != "none"
    return (
        str(summary["run"]),
        f"{summary['population']}",
        privacy["mode"],
        f"{privacy['epsilon']:.2f}" if private else "none",
        f"{privacy['delta']:.2g}" if private else "-",
        *(
            "-" if summary[key] is None else f"{summary[key]:.{digits}f}"
            for key, digits in (
                ("loss_before", 3),
                ("loss_after", 3),
                ("perplexity_before", 1),
                ("perplexity_after", 1),
            )
        ),
        f"{summary['bytes_up_per_client_round'] / 1000:.1f}",
        f"{summary['seconds']:.0f}",
    )


def as_markdown(summaries: Sequence[Mapping[str, Any]]) -> str:
    """Return the runs as a Markdown table."""
    lines = [COLUMNS, ("---",) * len(COLUMNS), *(row(summary) for summary in summaries)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
