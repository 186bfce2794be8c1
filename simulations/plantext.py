"""``fedslm plan`` as tables on a terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

from simulations.planranks import quoted

_MIB = 1 << 20
_WIDE = 10_000


def print_device(report: Mapping[str, Any]) -> None:
    """Print the plan of one device."""
    console = Console(soft_wrap=True, width=_WIDE, highlight=False)
    profile, estimate = report["profile"], report["estimate"]
    console.print(
        f"{report['device']}: {profile['memory_mib']:,.0f} MiB, "
        f"{report['macs_per_second'] / 1e9:.3g} G multiply-adds/s, "
        f"{report['limit_seconds']:g} s a round ({report['limit_from']})"
    )
    console.print()
    console.print(_settings(report))
    console.print()
    console.print(_round(estimate, profile))
    console.print()
    _print_lines(console, report)
    console.print(_levers(report))


def print_mix(report: Mapping[str, Any]) -> None:
    """Print the plan of a fleet."""
    console = Console(soft_wrap=True, width=_WIDE, highlight=False)
    columns = ("device", "clients", "rank", "s a round", "alone", "MiB", "J", "its own settings")
    table = Table(*columns, box=None, pad_edge=False)
    for row in report["devices"]:
        clients = f"{row['share']:.0%}" if row["clients"] is None else str(row["clients"])
        estimate = row["estimate"]
        table.add_row(
            row["device"],
            clients,
            str(row["rank"]),
            f"{estimate['round_seconds']:.3g}",
            f"{row['alone_seconds']:.3g}",
            f"{estimate['memory_bytes'] / _MIB:,.0f}",
            f"{estimate['joules']:.3g}",
            " ".join(line.removeprefix("performance.") for line in row["own"]),
        )
    console.print(table)
    console.print()
    lines = quoted(report["shared"])
    told = lines or "nothing, the scenario fits as it is"
    console.print(f"for all: {told}", markup=False)
    console.print(f"privacy: {report['privacy']}")
    if report["clock"]:
        clock = " ".join(f"--set '{line}'" for line in report["clock"])
        console.print(f"to simulate their time: {clock}", markup=False)
    console.print(
        f"a round waits for {report['slowest']}: {report['round_seconds']:.3g} s, the limit is "
        f"{report['limit_seconds']:g} s ({report['limit_from']})"
    )


def _settings(report: Mapping[str, Any]) -> Table:
    """Return the table of settings."""
    table = Table("setting", "scenario", "chosen", "why", "privacy", box=None, pad_edge=False)
    for row in report["settings"]:
        privacy = "" if row["scenario"] == row["chosen"] else row["privacy"]
        cells = (row["key"], row["scenario"], row["chosen"], row["why"], privacy)
        table.add_row(*(str(cell) for cell in cells))
    return table


def _round(estimate: Mapping[str, Any], profile: Mapping[str, Any]) -> Table:
    """Return the table of what a round costs."""
    parts = estimate["memory_of"]
    told = ", ".join(f"{name} {size / _MIB:.0f}" for name, size in parts.items() if size)
    table = Table("a round, estimated", "", "", box=None, pad_edge=False)
    table.add_row("memory", f"{estimate['memory_bytes'] / _MIB:,.0f} MiB", told)
    table.add_row(
        "time",
        f"{estimate['round_seconds']:.3g} s",
        f"{estimate['step_seconds']:.3g} s a step, {estimate['transfer_seconds']:.2g} s transfer",
    )
    table.add_row("up", f"{estimate['bytes_up']:,} bytes", f"down {estimate['bytes_down']:,}")
    battery = profile["battery_joules"]
    share = (
        "mains" if battery is None else f"{100 * estimate['joules'] / battery:.2g} % of a charge"
    )
    table.add_row("energy", f"{estimate['joules']:.3g} J", share)
    return table


def _print_lines(console: Console, report: Mapping[str, Any]) -> None:
    """Print what to type."""
    own = " ".join(f"--set {line}" for line in report["set"])
    console.print(f"set: {own or 'nothing, the scenario fits as it is'}")
    if report["proposed"]:
        lines = " ".join(f"--set {line}" for line in report["proposed"])
        console.print(f"and, as your decision: {lines}")
    rank = report["rank"]
    console.print(f"rank {rank['rank']} of {rank['of']}", end="")
    if rank["set"] is not None:
        line = quoted([rank["set"]])
        console.print(f"; for this device alone: {line}", end="", markup=False)
    console.print("\n")


def _levers(report: Mapping[str, Any]) -> Table:
    """Return the table of what is left to the reader."""
    table = Table("if you set", "s a round", "bytes up", "privacy", box=None, pad_edge=False)
    for row in report["levers"]:
        cells = (f"{row['round_seconds']:.3g}", f"{row['bytes_up']:,}", row["privacy"])
        table.add_row(" ".join(row["set"]), *cells)
    return table
