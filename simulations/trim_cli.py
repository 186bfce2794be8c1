"""``fedslm client trim``: what a device's environment can do without."""

from __future__ import annotations

from collections import Counter
from typing import Annotated

import typer

from simulations.budget_common import AsJson, print_json


def add_commands(client_app: typer.Typer) -> None:
    """Add the command to ``fedslm client``."""
    client_app.command("trim")(trim)


def trim(
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would go, and delete nothing.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Delete from a device's Python environment what a node without torch never loads.

    The tests of other packages, the installer uv, and bytecode of modules that are not loaded. The
    node is loaded before and after; if it cannot be, everything is put back.
    """
    from client import trim as trimming

    prefix, packages = trimming.require_devices_environment()
    if dry_run:
        parts = trimming.find_parts(prefix, packages, trimming.load_node())
    else:
        parts = trimming.trim(prefix, packages)
    left = trimming.disk_size(prefix)
    sizes: Counter[str] = Counter()
    for part in parts:
        sizes[part.what] += part.size
    if as_json:
        facts = {"prefix": str(prefix), "dry_run": dry_run, "bytes_left": left}
        print_json({**facts, "bytes_by_part": dict(sizes)})
        return
    for what, size in sizes.most_common():
        typer.echo(f"{what}: {size / 1e6:.1f} MB")
    typer.echo(f"{'now' if dry_run else 'left'}: {left / 1e6:.1f} MB in {prefix}")
