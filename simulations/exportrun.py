"""Exports of a verified adapter on its base model: which base, which files, what is recorded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from client.basedigest import base_digest
from client.exports.plainbase import load_plain
from client.inference import DEMO, base_folder
from shared.errors import BaseModelMismatch, UsageError
from shared.files import write_bytes
from simulations.exportfolder import Export, facts_of, write_export
from simulations.exportsource import Source

ADAPTER_GGUF = "adapter.gguf"


def gguf_export(
    source: Source, to: Path, *, base: str | None, dtype: str, base_type: str | None
) -> Export:
    """Write an adapter as GGUF.

    Args:
        source: the verified adapter.
        to: a new folder.
        base: folder of the base model; None for the demo model's adapters.
        dtype: of the adapter, as :func:`client.exports.ggufadapter.write_adapter_gguf`.
        base_type: of the base, as :func:`client.exports.ggufbase.write_base_gguf`; None leaves it
            out.

    Raises:
        BaseModelMismatch: if the adapter was trained on another base.
        AdapterIncompatible: if its factors are not those of the base's layers.
        UnsupportedModel: if llama.cpp has no such model, or no such tokenizer.
        MissingDependency: if gguf is not installed.
    """
    from client.adapterfit import spec_of
    from client.exports.ggufadapter import write_adapter_gguf
    from client.exports.ggufbase import write_base_gguf
    from client.exports.layout import CONFIG, Layout, require_gguf
    from client.exports.programmaking import facts_of_base, write_chat

    source.terms.require_pairs("llama.cpp")
    require_gguf()
    folder, found = _open_base(source, base)
    layout = Layout.of_folder(folder)
    model = load_plain(folder)
    spec_of(model, source.factors, source.terms)

    def write(into: Path) -> Mapping[str, Any]:
        facts = facts_of(found, str(found.base_digest))
        tensors = write_adapter_gguf(
            into / ADAPTER_GGUF,
            found.factors,
            found.terms,
            layout,
            name=found.name,
            facts=facts,
            dtype=dtype,
        )
        details: dict[str, Any] = {"type": dtype, "tensors": tensors, "base_type": base_type}
        if base_type is not None:
            file = f"base-{base_type}.gguf"
            facts_of_program = facts_of_base(model, file, quantization=base_type)
            details["program"] = facts_of_program.to_json()
            write_chat(model, into)
            write_bytes(into / CONFIG, (folder / CONFIG).read_bytes())
            details["base_tensors"] = write_base_gguf(
                into / file,
                model,
                dtype=base_type,
                facts={"fedslm.base": facts["fedslm.base"]},
            )
        return details

    return write_export(found, to, kind="gguf", write=write)


def onnx_export(
    source: Source,
    to: Path,
    *,
    base: str | None,
    graph: bool,
    quantization: str = "none",
    kv_cache: str = "none",
) -> Export:
    """Write an adapter for ONNX Runtime.

    Args:
        source: the verified adapter.
        to: a new folder.
        base: as :func:`gguf_export`.
        graph: write the base's graph too; it serves every adapter of the same rank and layers.
        quantization: of the graph's weights, as :func:`client.exports.onnxgraph.write_graph`.
        kv_cache: of the graph, as there.

    Raises:
        UsageError: if the graph is to be of some form, and is not written.
        BaseModelMismatch: as :func:`gguf_export`.
        AdapterIncompatible: as :func:`gguf_export`.
        UnsupportedModel: if the base cannot be exported.
        MissingDependency: if the exporter's packages are not installed.
    """
    from client.adapterfit import spec_of

    source.terms.require_pairs("the graph")
    if not graph and {quantization, kv_cache} != {"none"}:
        msg = "--quantization and --kv-cache are of the graph, which is not written."
        raise UsageError(msg, hint="Add --graph.")
    from client.exports.onnxgraph import write_adapter_onnx, write_graph
    from client.exports.onnxnames import ADAPTER, GRAPH, TOKENIZER
    from client.exports.programmaking import facts_of_base, write_chat, write_tokenizer

    folder, found = _open_base(source, base)
    model = load_plain(folder)
    spec = spec_of(model, source.factors, source.terms)

    def write(into: Path) -> Mapping[str, Any]:
        write_adapter_onnx(into / ADAPTER, found.factors, spec)
        details = {"graph": graph, "r": spec.r, "target_modules": list(spec.target_modules)}
        if graph:
            form = {"quantization": quantization, "kv_cache": kv_cache}
            details["program"] = facts_of_base(model, GRAPH, **form).to_json()
            write_tokenizer(model, into / TOKENIZER)
            write_chat(model, into)
            write_graph(into, model, spec, {"fedslm.base": model.digest}, **form)
        return details

    return write_export(found, to, kind="onnx", write=write)


def executorch_export(
    source: Source,
    to: Path,
    *,
    base: str | None,
    context: int,
    quantization: str,
    weights: bool,
) -> Export:
    """Write an adapter and its base as a program for ExecuTorch.

    Args:
        source: the verified adapter.
        to: a new folder.
        base: as :func:`gguf_export`.
        context: tokens that its cache has room for.
        quantization: of the base's weights.
        weights: write them too; they serve every adapter of the base.

    Raises:
        BaseModelMismatch: as :func:`gguf_export`.
        AdapterIncompatible: as :func:`gguf_export`.
        InvalidValue: for a context or a quantisation that is out of range.
        UnsupportedModel: if the base cannot be exported.
        MissingDependency: if ExecuTorch is not installed.
    """
    from client.edge.export import require_exporter

    source.terms.require_pairs("the program")
    require_exporter("executorch")
    from client.adapterfit import spec_of
    from client.exports.etgraph import write_program

    folder, found = _open_base(source, base)
    model = load_plain(folder)
    spec = spec_of(model, source.factors, source.terms)

    def write(into: Path) -> Mapping[str, Any]:
        return write_program(
            into,
            model,
            found.factors,
            spec,
            context=context,
            quantization=quantization,
            weights=weights,
        )

    return write_export(found, to, kind="executorch", write=write)


def merged_export(source: Source, to: Path, *, base: str | None, dtype: str) -> Export:
    """Write the base with the adapter folded in.

    Args:
        source: the verified adapter.
        to: a new folder.
        base: as :func:`gguf_export`.
        dtype: as :func:`client.exports.merged.write_merged`.

    Raises:
        BaseModelMismatch: as :func:`gguf_export`.
        AdapterIncompatible: as :func:`gguf_export`.
    """
    from client.exports.merged import write_merged

    folder, found = _open_base(source, base)
    model = load_plain(folder)

    def write(into: Path) -> Mapping[str, Any]:
        write_merged(into, model, folder, found.factors, found.terms, dtype=dtype)
        return {"type": dtype}

    return write_export(found, to, kind="merged", write=write)


def _open_base(source: Source, base: str | None) -> tuple[Path, Source]:
    """Return the folder of the base, and the source with its digest.

    Raises:
        UsageError: if it must be named, because nothing is fetched.
        BaseModelMismatch: if the adapter was trained on another one.
    """
    if base is None and source.base_model != DEMO:
        msg = "The adapter's base model is not here."
        raise UsageError(msg, hint="Give its folder: --base FOLDER")
    folder = base_folder(DEMO if base is None else base)
    digest = base_digest(folder)
    if source.base_digest not in {None, digest}:
        msg = f"adapter {source.digest[:12]}: it was trained on base {source.base_digest}."
        raise BaseModelMismatch(msg, hint=f"{folder.name} has digest {digest}.")
    return folder, replace(source, base_digest=digest)
