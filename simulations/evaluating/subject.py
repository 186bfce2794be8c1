"""What is evaluated: a base as it is stored, and the same with an adapter."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from client.exports.record import ADAPTER
from shared.computedtype import default_compute_dtype
from shared.errors import BaseModelMismatch, UsageError
from simulations.exportsource import Source, find_source
from simulations.runfolder import CONFIG

if TYPE_CHECKING:
    import torch

    from client.adapter import AdaptedModel
    from client.model import BaseModel
    from shared.config import RunConfig

BEFORE, AFTER = "before", "after"


@dataclass(frozen=True, slots=True, kw_only=True)
class Named:
    """What was asked for, found but not loaded.

    Attributes:
        base: folder of the base.
        quantization: how it is kept in memory.
        compute_dtype: of products with it, as :mod:`client.frozenproduct` takes them.
        source: the verified adapter; None without one.
        config: of the run that was named; None for a model.
    """

    base: str
    quantization: str
    compute_dtype: str
    source: Source | None
    config: RunConfig | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """A loaded base, with its adapter if there is one.

    Attributes:
        base: the base.
        adapted: the base with its adapter; None without one.
        source: of the adapter.
        memory_bytes: of the base's tensors as they are in memory.
    """

    base: BaseModel
    adapted: AdaptedModel | None
    source: Source | None
    memory_bytes: int

    @property
    def views(self) -> tuple[str, ...]:
        """What is compared: before alone, or before and after the adapter."""
        return (BEFORE,) if self.adapted is None else (BEFORE, AFTER)

    @contextmanager
    def view(self, name: str) -> Iterator[torch.nn.Module]:
        """Yield what computes logits, before or after the adapter."""
        if self.adapted is None:
            yield self.base.model
        elif name == AFTER:
            yield self.adapted.peft_model
        else:
            with self.adapted.disabled():
                yield self.adapted.peft_model


def find(
    model: str, *, adapter: Path | None, quantization: str | None, public_key: str | None
) -> Named:
    """Find a model, or a finished run, which names base, storage and adapter itself.

    Args:
        model: "demo", a transformers folder, a hub id, or the folder of a run.
        adapter: a registry, an adapter's folder or a run's; default the run's own.
        quantization: how the base is kept in memory; default the run's own, else "none".
        public_key: the only key whose signature counts on the adapter.

    Raises:
        ModelNotFound: if there is no such model.
        AdapterError: as :func:`simulations.exportsource.find_source`.
        UsageError: if a run was named that has no adapter, or whose model is no language model.
    """
    from client.model import find_base
    from shared.configfile import load_config
    from simulations.basepath import base_path

    run = Path(model).expanduser()
    if not (run / CONFIG).is_file():
        source = None if adapter is None else find_source(adapter, public_key=public_key)
        base = str(find_base(base_path(model, base_dir=Path.cwd()))[0])
        stored = quantization or "none"
        return Named(
            base=base,
            quantization=stored,
            compute_dtype=default_compute_dtype(stored),
            source=source,
            config=None,
        )
    config = load_config(run / CONFIG, [], source=CONFIG).config
    if config.task.classifies:
        msg = f"Run {run.resolve().name!r} trained an encoder, which gives texts no likelihood."
        raise UsageError(msg, hint="Its accuracy is in the run's report.")
    if adapter is None and not (run / ADAPTER).is_dir():
        msg = f"Run {run.resolve().name!r} holds no adapter: it is not finished, or was withheld."
        raise UsageError(msg, hint="Name its base to evaluate that alone, or give --adapter.")
    source = find_source(adapter or run, public_key=public_key)
    found = base_path(config.model.base, base_dir=Path.cwd())
    own = quantization in {None, config.model.quantization}
    stored = quantization or config.model.quantization
    return Named(
        base=str(find_base(found, config.model.revision)[0]),
        quantization=stored,
        compute_dtype=config.model.products if own else default_compute_dtype(stored),
        source=source,
        config=config,
    )


def load(named: Named) -> Subject:
    """Load base and adapter.

    Raises:
        BaseModelMismatch: if the adapter was trained on another base.
        AdapterIncompatible: if its factors are not those of the base's layers.
        ModelError: as :func:`client.model.load_base`.
    """
    from client.model import load_base

    base = load_base(named.base, quantization=named.quantization, compute_dtype=named.compute_dtype)
    held, source = tensor_bytes(base.model), named.source
    adapted = None if source is None else _adapt(base, source)
    return Subject(base=base, adapted=adapted, source=source, memory_bytes=held)


def tensor_bytes(model: torch.nn.Module) -> int:
    """Return the bytes of a model's tensors, scales of quantised layers too, shared ones once."""
    from client.quantization import quantized_storage

    # Held until all are counted: an address that is free again would name another tensor.
    seen: dict[int, torch.Tensor] = {}
    for module in model.modules():
        held: list[tuple[str, Any]] = [
            *module.named_parameters(recurse=False),
            *module.named_buffers(recurse=False),
            *quantized_storage(module),
        ]
        for _, tensor in held:
            seen[tensor.data_ptr()] = tensor
    return sum(tensor.numel() * tensor.element_size() for tensor in seen.values())


def _adapt(base: BaseModel, source: Source) -> AdaptedModel:
    """Put a verified adapter on its base."""
    from client.adapterfit import fit

    if source.base_digest not in {None, base.digest}:
        msg = f"adapter {source.digest[:12]}: it was trained on base {source.base_digest}."
        raise BaseModelMismatch(msg, hint=f"{base.name} has digest {base.digest}.")
    return fit(base, source.factors, source.terms)
