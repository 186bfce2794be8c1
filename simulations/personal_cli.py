"""``fedslm client personalise``: an adapter of the owner's own, made and kept on the device."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from simulations.budget_common import AsJson, print_json

if TYPE_CHECKING:
    from client.home import DeviceHome
    from shared.config import RunConfig


def add_commands(client_app: typer.Typer) -> None:
    """Add the command to ``fedslm client``."""
    client_app.command("personalise")(personalise)


def personalise(
    home: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Folder of the device; default $FEDSLM_HOME, or your data's."
        ),
    ] = None,
    steps: Annotated[
        int | None, typer.Option(min=1, help="Local steps; default the scenario's, or 8.")
    ] = None,
    learning_rate: Annotated[
        float | None, typer.Option(help="Of these steps; default the scenario's.")
    ] = None,
    scenario: Annotated[
        str | None,
        typer.Option(
            help="Scenario of the adapter's run; default the one this device took part in."
        ),
    ] = None,
    keep: Annotated[
        bool, typer.Option("--keep", help="Keep it also where held-out loss is no lower.")
    ] = False,
    forget: Annotated[
        bool, typer.Option("--forget", help="Remove the personal adapter; make none.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Go on from the newest adapter with steps on your own text; all of it stays on this device."""
    from client.home import DeviceHome, default_home
    from client.personalstore import PersonalStore

    device = DeviceHome.open(default_home() if home is None else home)
    if forget:
        removed = PersonalStore(device.personal).forget()
        _show({"removed": removed}, _forgotten(removed=removed), as_json=as_json)
        return
    # Before any library that could look on a hub is imported.
    os.environ["HF_HUB_OFFLINE"] = os.environ["TRANSFORMERS_OFFLINE"] = "1"
    found = _made(device, steps, learning_rate, scenario, keep=keep)
    _show(found, _made_words(found), as_json=as_json)


def _made(
    device: DeviceHome,
    steps: int | None,
    learning_rate: float | None,
    scenario: str | None,
    *,
    keep: bool,
) -> dict[str, Any]:
    """Make the adapter, with a bar on standard error."""
    from client.personalise import personalise as make
    from shared.validate import positive

    if learning_rate is not None:
        positive(learning_rate=learning_rate)
    with _bar() as progress:
        return make(
            device,
            steps=steps,
            learning_rate=learning_rate,
            scenario=_scenario(scenario),
            keep_worse=keep,
            progress=progress,
        ).to_dict()


def _scenario(name: str | None) -> RunConfig | None:
    """Open a scenario by name or path; None without one."""
    from simulations.catalog import open_scenario

    return None if name is None else open_scenario(name, []).config


@contextmanager
def _bar() -> Iterator[Callable[[int, int], None]]:
    """Show steps on standard error, where a person looks on."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task("steps on your text", total=None)

        def told(done: int, steps: int) -> None:
            progress.update(task, completed=done, total=steps)

        yield told


def _made_words(found: dict[str, Any]) -> list[str]:
    """Return what a person reads about an adapter that was made."""
    taken = f"{found['steps']} steps on {found['examples']} examples of this device, on top of "
    lines = [f"{taken}adapter {found['adapter'][:12]}."]
    before, after = found["loss_before"], found["loss_after"]
    if found["held_out"] == 0:
        lines.append("Nothing is held out here, so it was not measured.")
    else:
        said = [("none" if loss is None else f"{loss:.4f}") for loss in (before, after)]
        lines.append(
            f"Held-out loss in nats: {said[0]} before, {said[1]} after "
            f"({found['held_out']} examples)."
        )
    if found["kept"]:
        lines.append("Kept on this device alone. Use it: fedslm client infer --personal PROMPT")
        lines.append("It has no privacy guarantee: do not pass it on.")
    else:
        lines.append("Not kept: it is no better than the shared one. What was kept before stays.")
        lines.append("Try fewer --steps or a lower --learning-rate, or --keep it all the same.")
    return lines


def _forgotten(*, removed: bool) -> list[str]:
    """Return what a person reads after ``--forget``."""
    if not removed:
        return ["There was no personal adapter on this device."]
    return ["The personal adapter was removed."]


def _show(found: dict[str, Any], lines: list[str], *, as_json: bool) -> None:
    """Print what came of it."""
    if as_json:
        print_json(found)
        return
    for line in lines:
        typer.echo(line)
