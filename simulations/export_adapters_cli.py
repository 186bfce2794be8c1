"""``fedslm export gguf|onnx|executorch|merged|verify``: released adapters, for other runtimes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from simulations.budget_common import AsJson, print_json

if TYPE_CHECKING:
    from simulations.exportfolder import Export
    from simulations.exportsource import Source

Adapter = Annotated[
    Path,
    typer.Argument(help="A server's folder, a registry, a run folder, or an adapter's folder."),
]
To = Annotated[Path, typer.Option(help="A new folder.")]
Base = Annotated[
    str | None,
    typer.Option(help="Folder of the base model; default the demo model, for its adapters."),
]
Version = Annotated[
    str | None,
    typer.Option(metavar="DIGEST", help="A version of the registry; default the one in use."),
]
Key = Annotated[
    Path | None,
    typer.Option("--key", help="Key that signs adapters; default keys/adapter.key of a server."),
]
PublicKey = Annotated[
    str | None,
    typer.Option(
        "--public-key", metavar="HEX", help="The only key whose signature counts, without its file."
    ),
]
SealingKeys = Annotated[
    Path | None, typer.Option("--sealing-keys", help="Keys that encrypt a registry's files.")
]


def export_gguf(
    adapter: Adapter,
    to: To,
    base: Base = None,
    version: Version = None,
    dtype: Annotated[str, typer.Option("--type", help='Of the adapter: "f32" or "f16".')] = "f32",
    base_type: Annotated[
        str | None,
        typer.Option(
            help='Write the base too: "f32", "f16", "q8_0" or "q4_0"; needed once, not every round.'
        ),
    ] = None,
    key: Key = None,
    public_key: PublicKey = None,
    sealing_keys: SealingKeys = None,
    as_json: AsJson = False,
) -> None:
    """Write an adapter as GGUF, for llama.cpp's --lora, and if asked for its base."""
    from simulations.exportrun import gguf_export

    found = _find(adapter, version, key, public_key, sealing_keys)
    done = gguf_export(found, to, base=base, dtype=dtype, base_type=base_type)
    _show(done, as_json=as_json)


def export_onnx(
    adapter: Adapter,
    to: To,
    base: Base = None,
    version: Version = None,
    graph: Annotated[
        bool,
        typer.Option("--graph", help="Write the base's graph too; needed once, not every round."),
    ] = False,
    quantization: Annotated[
        str, typer.Option(help='Of the graph\'s weights: "none", "int8" or "int4".')
    ] = "none",
    kv_cache: Annotated[
        str,
        typer.Option(help='How the graph keeps keys and values between tokens: "none" or "int8".'),
    ] = "none",
    key: Key = None,
    public_key: PublicKey = None,
    sealing_keys: SealingKeys = None,
    as_json: AsJson = False,
) -> None:
    """Write an adapter for ONNX Runtime, and if asked for the graph of its base."""
    from simulations.exportrun import onnx_export

    found = _find(adapter, version, key, public_key, sealing_keys)
    form = {"quantization": quantization, "kv_cache": kv_cache}
    _show(onnx_export(found, to, base=base, graph=graph, **form), as_json=as_json)


def export_executorch(
    adapter: Adapter,
    to: To,
    base: Base = None,
    version: Version = None,
    weights: Annotated[
        bool,
        typer.Option(
            "--weights", help="Write the base's weights too; needed once, not every round."
        ),
    ] = False,
    context: Annotated[int, typer.Option(help="Tokens of prompt and answer together.")] = 256,
    quantization: Annotated[
        str, typer.Option(help="Of the base: none (float32), int8 or int4.")
    ] = "none",
    key: Key = None,
    public_key: PublicKey = None,
    sealing_keys: SealingKeys = None,
    as_json: AsJson = False,
) -> None:
    """Write an adapter and its base as a program for ExecuTorch, which answers token by token."""
    from simulations.exportrun import executorch_export

    found = _find(adapter, version, key, public_key, sealing_keys)
    done = executorch_export(
        found, to, base=base, context=context, quantization=quantization, weights=weights
    )
    _show(done, as_json=as_json)


def export_merged(
    adapter: Adapter,
    to: To,
    base: Base = None,
    version: Version = None,
    dtype: Annotated[str, typer.Option("--type", help='Of the weights: "f32" or "bf16".')] = "f32",
    key: Key = None,
    public_key: PublicKey = None,
    sealing_keys: SealingKeys = None,
    as_json: AsJson = False,
) -> None:
    """Write the base with the adapter folded in: a plain transformers folder."""
    from simulations.exportrun import merged_export

    found = _find(adapter, version, key, public_key, sealing_keys)
    _show(merged_export(found, to, base=base, dtype=dtype), as_json=as_json)


def export_verify(
    folder: Annotated[Path, typer.Argument(help="What fedslm export wrote.")],
    public_key: PublicKey = None,
    as_json: AsJson = False,
) -> None:
    """Check an export's signature, its files, and the adapter that it came from."""
    from simulations.exportfolder import verify_export

    _show(verify_export(folder, public_key=public_key), as_json=as_json, what="holds")


def add_commands(export_app: typer.Typer) -> None:
    """Add these commands to the app of ``fedslm export``."""
    export_app.command("gguf")(export_gguf)
    export_app.command("onnx")(export_onnx)
    export_app.command("executorch")(export_executorch)
    export_app.command("merged")(export_merged)
    export_app.command("verify")(export_verify)


def _find(
    path: Path,
    version: str | None,
    key: Path | None,
    public_key: str | None,
    sealing: Path | None,
) -> Source:
    """Find and verify an adapter."""
    from simulations.exportsource import find_source

    return find_source(path, version=version, key=key, public_key=public_key, sealing=sealing)


def _show(done: Export, *, as_json: bool, what: str = "exported") -> None:
    """Print what was exported."""
    if as_json:
        print_json(done.to_dict())
        return
    for warning in done.warnings:
        typer.echo(f"warning: {warning}", err=True)
    record = done.record
    verdict = record.get("audit_verdict") or "none"
    typer.echo(f"{what}  {record['format']}  {done.folder} (audit verdict: {verdict})")
    for entry in record["files"]:
        typer.echo(f"  {entry['size']:>12}  {entry['sha256'][:12]}  {entry['name']}")
