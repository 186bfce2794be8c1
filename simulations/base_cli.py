"""``fedslm base compress|methods|convert|verify``: smaller bases, from public text alone."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from simulations.compress.running import Step
    from simulations.compress.text import PublicText

base_app = typer.Typer(help="Make base models smaller.", no_args_is_help=True)

AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")]


@base_app.command("methods")
def methods(as_json: AsJson = False) -> None:
    """List the compression methods."""
    from simulations.compress.catalog import METHODS

    if as_json:
        found = [{"name": n, "about": m.about, "text": m.calibrates} for n, m in METHODS.items()]
        _print_json({"methods": found})
        return
    width = max(map(len, METHODS))
    for name, one in METHODS.items():
        typer.echo(f"{name:<{width}}  {one.about}")


@base_app.command("compress")
def compress(
    model: Annotated[
        str, typer.Argument(help='"demo", a transformers folder or a hub id, in full precision.')
    ],
    method: Annotated[
        list[str], typer.Option(metavar="NAME", help="See `base methods`; repeatable.")
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Gets one folder for each method; default runs/compressed-MODEL."
        ),
    ] = None,
    public_text: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Public text, one document a line; default documents that fedslm generates. "
            "Never name private text: the base would leak it, and no ledger would know.",
        ),
    ] = None,
    rows: Annotated[int, typer.Option(min=1, help="Rows of text that are calibrated on.")] = 32,
    length: Annotated[int, typer.Option(min=2, help="Tokens of a row.")] = 128,
    sparsity: Annotated[
        float, typer.Option(help="Part of the weights that wanda and sparsegpt take.")
    ] = 0.5,
    layers: Annotated[
        int | None,
        typer.Option(
            min=1, help="Blocks that layer-drop and distill keep; default three quarters."
        ),
    ] = None,
    steps: Annotated[int, typer.Option(min=1, help="Steps of distill.")] = 200,
    seed: Annotated[int, typer.Option(min=0, help="Of the generated text.")] = 0,
    resume: Annotated[
        bool, typer.Option("--resume", help="Leave what is done, go on with what is not.")
    ] = False,
    measured: Annotated[
        bool, typer.Option("--measure/--no-measure", help="Measure each beside the base.")
    ] = True,
    as_json: AsJson = False,
) -> None:
    """Compress a base, and say what it costs: perplexity, size, memory of loading, speed."""
    from simulations.basepath import base_path
    from simulations.compress.protocol import Settings
    from simulations.compress.running import Order, compare, folder_of
    from simulations.compress.running import compress as run

    settings = Settings(
        rows=rows, length=length, sparsity=sparsity, layers=layers, steps=steps, seed=seed
    )
    with show_steps(quiet=as_json) as step:
        order = Order(
            base=base_path(model, base_dir=Path.cwd()),
            methods=list(dict.fromkeys(method)),
            text=_text(public_text, seed),
            settings=settings,
            out=out or Path("runs") / f"compressed-{Path(model).name}",
            resume=resume,
            note=_note,
            step=step,
        )
        manifests = run(order)
        table = compare(order, manifests) if measured else []
    folders = {said["method"]: str(folder_of(order.out, said["method"])) for said in manifests}
    if as_json:
        _print_json({"manifests": manifests, "measurements": table, "folders": folders})
        return
    if table:
        _print_table(table)
    for said in manifests:
        stored = said["result"]["quantization"]
        typer.echo(
            f'model.base = "{folders[said["method"]]}"  model.quantization = "{stored}"  '
            f"digest {said['result']['digest'][:12]}"
        )


@base_app.command("convert")
def convert(
    folder: Annotated[Path, typer.Argument(help="A GPTQ or AWQ checkpoint of 4 bits.")],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder that is made.")],
    as_json: AsJson = False,
) -> None:
    """Turn a GPTQ or AWQ checkpoint into a base that fedslm loads; no weight is rounded."""
    from simulations.compress.foreign import convert as run

    manifest = run(folder, out)
    if as_json:
        _print_json({"manifest": manifest, "folder": str(out)})
    else:
        digest = manifest["result"]["digest"][:12]
        typer.echo(f'model.base = "{out}"  model.quantization = "int4"  digest {digest}')


@base_app.command("verify")
def verify(
    folder: Annotated[Path, typer.Argument(help="A compressed base.")],
    as_json: AsJson = False,
) -> None:
    """Check that a compressed base is what its manifest names; exit 74 if not."""
    from client.basedigest import base_digest
    from client.compressed import check_manifest, read_manifest
    from shared.errors import UnsupportedModel

    manifest = read_manifest(folder)
    if manifest is None:
        msg = f"Model {folder.name!r} has no compression.json."
        raise UnsupportedModel(msg, hint="Expected a folder that `fedslm base compress` wrote.")
    digest = base_digest(folder)
    check_manifest(folder, digest)
    if as_json:
        _print_json({"valid": True, "manifest": manifest})
    else:
        typer.echo(f"{folder.name} is what its manifest names (digest {digest[:12]}).")


def _text(path: Path | None, seed: int) -> PublicText:
    """Return the public text."""
    from simulations.compress.text import generated_text, text_of_file

    return generated_text(seed) if path is None else text_of_file(path, seed)


@contextmanager
def show_steps(*, quiet: bool) -> Iterator[Step]:
    """Show a bar on stderr where somebody looks."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, console=console, disable=quiet or not console.is_terminal) as bars:
        tasks = {}

        def step(name: str, done: int, of: int) -> None:
            if name not in tasks:
                tasks[name] = bars.add_task(name, total=of)
            bars.update(tasks[name], completed=done)

        yield step


def _print_table(rows: list[dict[str, Any]]) -> None:
    """Print the measurements."""
    from rich.console import Console
    from rich.table import Table

    from simulations.compress.measuring import COLUMNS, cells

    table = Table(*COLUMNS, box=None, pad_edge=False)
    for row in rows:
        table.add_row(*cells(row))
    Console(soft_wrap=True).print(table)


def _note(text: str) -> None:
    """Say on stderr what is being done."""
    typer.echo(text, err=True)


def _print_json(value: dict[str, Any]) -> None:
    """Print a JSON object on stdout."""
    typer.echo(json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False))
