"""``fedslm export step``: what trains on a device that has no torch."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from simulations.budget_common import AsJson, print_json

if TYPE_CHECKING:
    from client.edge.export import Exported
    from shared.config import RunConfig

export_app = typer.Typer(
    help="Make programs for devices that have no torch, and adapters for other runtimes.",
    no_args_is_help=True,
)

_LORA = ("r", "alpha", "target_modules", "variant")


@export_app.command("step")
def export_one_step(
    scenario: Annotated[
        str, typer.Argument(help="A built-in scenario, or the path of a TOML file.")
    ],
    out: Annotated[Path, typer.Option(help="Folder of the step; must not exist.")],
    base: Annotated[
        str | None, typer.Option(help="Base model; the same as --set model.base=...")
    ] = None,
    lora: Annotated[
        str | None,
        typer.Option(
            metavar="KEY=VALUE,...",
            help='Of the adapter: r, alpha, variant, target_modules ("q_proj+v_proj").',
        ),
    ] = None,
    runtime: Annotated[
        str, typer.Option(help="onnx, for speed, or executorch, for memory.")
    ] = "onnx",
    quantization: Annotated[
        str, typer.Option(help="Of the frozen base: none (float32), int8 or int4.")
    ] = "none",
    clip: Annotated[
        bool, typer.Option("--clip/--no-clip", help="Whether the program clips, too.")
    ] = True,
    rank: Annotated[
        int | None,
        typer.Option(help="Of devices that train a smaller one; lora.r, the default, serves all."),
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Change one setting; repeatable."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Export one example's clipped LoRA gradient, as a program that needs no torch.

    The program takes one example and the adapter and gives loss, norm and gradients; it holds the
    scenario's length, clip and factors. The folder's digest is what a device's owner writes down.
    It is compared with PyTorch before it is written; exit 73 if it computes something else.
    """
    from client.edge.program import RUNTIMES
    from shared.errors import UsageError
    from simulations.catalog import open_scenario

    if runtime not in RUNTIMES:
        msg = f"--runtime={runtime!r}, expected one of: {', '.join(RUNTIMES)}."
        raise UsageError(msg)
    said = list(overrides or [])
    said += [] if base is None else [f"model.base={base}"]
    said += [] if lora is None else _lora_settings(lora)
    config = open_scenario(scenario, said).config
    if rank is not None:
        from client.edge.terms import at_rank

        config = at_rank(config, rank)
    found = _export(config, out, runtime=runtime, quantization=quantization, clip=clip)
    manifest, far = found.manifest, found.comparison
    if as_json:
        facts = {"digest": manifest.digest, "folder": str(out), **manifest.to_json()}
        print_json(facts | {"relative_error": far.relative_error, "cosine": far.cosine})
        return
    size = sum(file.size for file in manifest.files)
    typer.echo(f"{out}: {size / 1e6:.1f} MB, base {manifest.quantization}, T={manifest.length}")
    typer.echo(f"against PyTorch: relative error {far.relative_error:.2g}, cosine {far.cosine:.5f}")
    typer.echo(f"digest {manifest.digest}")


def _export(
    config: RunConfig, out: Path, *, runtime: str, quantization: str, clip: bool
) -> Exported:
    """Load the scenario's base in float32 and export its step."""
    from client.edge.terms import terms_of
    from shared.errors import ConflictingSettings

    if config.model.compute_dtype == "bfloat16":
        msg = 'model.compute_dtype="bfloat16", and an exported program multiplies in float32.'
        raise ConflictingSettings(msg, hint="Leave model.compute_dtype out, or say float32.")
    terms = terms_of(config)
    from client.edge.export import export_step, require_writable
    from simulations.assemble import load_model

    require_writable(out, quantization=quantization, runtime=runtime)
    changes = {
        "model": config.model.model_copy(update={"quantization": "none", "compute_dtype": None}),
        "performance": config.performance.model_copy(update={"device": "cpu"}),
    }
    model = load_model(config.model_copy(update=changes), base_dir=Path.cwd())
    model.set_trainable(terms.trained)
    return export_step(
        model,
        out,
        length=terms.length,
        max_grad_norm=terms.max_grad_norm if clip else None,
        quantization=quantization,
        runtime=runtime,
    )


def _lora_settings(text: str) -> list[str]:
    """Turn ``r=8,alpha=16`` into settings of the section ``lora``.

    Raises:
        UsageError: for anything else.
    """
    import json

    from shared.errors import UsageError

    settings = []
    for part in text.split(","):
        key, equals, value = part.partition("=")
        if not equals or key not in _LORA or not value:
            msg = f"--lora has {part!r}, expected KEY=VALUE with {', '.join(_LORA)}."
            raise UsageError(msg)
        if key == "target_modules" and value != "all-linear":
            value = json.dumps(value.split("+"))
        settings.append(f"lora.{key}={value}")
    return settings
