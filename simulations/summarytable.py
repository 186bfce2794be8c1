"""The short table that ends a run on a terminal."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from shared.configlink import link_words
from simulations.attacks.texts import attack_text, defence_text
from simulations.rankfigures import rank_text
from simulations.runfolder import REPORT
from simulations.taskfigures import task_rows


def print_summary(summary: Mapping[str, Any], folder: Path) -> None:
    """Print the headline numbers of a run and the path of its report."""
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for name, value in rows(summary):
        table.add_row(name, value)
    console = Console(soft_wrap=True)
    console.print(table)
    console.print(f"report  {folder / REPORT}", highlight=False)


def rows(summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return the headline numbers as text, epsilon never without what it means."""
    found = [
        ("scenario", f"{summary['scenario']} (seed {summary['seed']}, {summary['status']})"),
        ("clients", f"{summary['population']}, {summary['cohort']:g} a round expected"),
        ("held-out loss", _change(summary["loss_before"], summary["loss_after"])),
        *task_rows(summary, _change),
        *_attackers(summary),
        ("privacy", privacy_text(summary["privacy"])),
        *_more_promises(summary["privacy"]),
        ("bytes a round", _bytes(summary)),
        *((f"  rank {row['rank']}", rank_text(row)) for row in summary.get("ranks", ())),
        ("audit", str(summary["audit"]["verdict"])),
        (
            "cost",
            f"{summary['seconds']:.0f} s, {summary['peak_rss_bytes'] / 2**20:,.0f} MiB peak",
        ),
    ]
    if "simulated_seconds" in summary:
        found.append(("simulated time", f"{summary['simulated_seconds'] / 3600:,.2f} h"))
    return found + [("warning", text) for text in summary["warnings"]]


def privacy_text(privacy: Mapping[str, Any]) -> str:
    """Say a guarantee in one line, or that there is none."""
    if privacy["mode"] == "none":
        return "[red]none: nothing bounds what the adapter reveals[/red]"
    text = (
        f"epsilon {privacy['epsilon']:.3f} at delta {privacy['delta']:.3g}, per "
        f"{privacy['unit']}, {privacy['neighboring_relation']}, {privacy['releases']} releases"
    )
    if privacy["noise_source"] == "seeded-simulation":
        text += " [yellow](seeded noise: a simulation, protects nobody)[/yellow]"
    return text


def _attackers(summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Say that a run has simulated attackers, and which rule withstands them, where there are."""
    found = []
    if summary.get("attack") is not None:
        found.append(("attack", f"[red]{attack_text(summary['attack'])}[/red]"))
    defence = summary.get("defence")
    if defence is not None and (defence["rule"] != "mean" or defence["norm_bound"] is not None):
        found.append(("aggregation", defence_text(defence)))
    return found


def _more_promises(privacy: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Say what holds against the server, and the second guarantee, where there are such."""
    found = []
    server, inner = privacy.get("server_epsilon"), privacy.get("example")
    if server is not None and privacy["mode"] == "client-distributed":
        text = f"epsilon {server:.3f} at delta {privacy['delta']:.3g}, per {privacy['unit']}"
        found.append(("  to the server", f"{text}: it sees noised sums only"))
    if inner is not None:
        text = f"epsilon {inner['epsilon']:.3f} at delta {inner['delta']:.3g}, per {inner['unit']}"
        text += f", {inner['neighboring_relation']}, {inner['releases']} releases"
        found.append(("  inside clients", text))
    return found


def _change(before: float | None, after: float | None) -> str:
    """Return ``before -> after (change)``."""
    if before is None or after is None:
        return "not measured"
    return f"{before:.3f} -> {after:.3f} ({(after - before) / before:+.1%})"


def _bytes(summary: Mapping[str, Any]) -> str:
    """Return the payload of one client in one round."""
    up, down = summary["bytes_up_per_client_round"], summary["bytes_down_per_client_round"]
    words = link_words(summary.get("link", {}))
    coded = "" if set(words) == {"fp32"} else f", coded {words[0]} up and {words[1]} down"
    return f"{up:,} up, {down:,} down per client{coded}"
