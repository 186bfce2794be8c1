"""Which benchmarks there are: the modules of this package that keep the protocol.

A module ``dp_step`` is called ``dp-step`` on the command line; either spelling is understood.
"""

from __future__ import annotations

import ast
import pkgutil
from collections.abc import Iterator, Mapping
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import cast

import simulations.benchmarks as package
from shared.errors import InvalidValue
from shared.registry import suggestion
from simulations.benchmarks.protocol import Benchmark, KeepingBenchmark, Plotting


def summaries() -> Mapping[str, str]:
    """Return every benchmark's line by name, sorted; a module without ``SUMMARY`` is none.

    The lines are read from the sources: importing all benchmarks takes seconds.
    """
    found = {_name_of(stem): _summary(stem) for stem in _stems()}
    return {name: line for name, line in sorted(found.items()) if line is not None}


def benchmarks() -> Mapping[str, Benchmark]:
    """Return every benchmark by name, sorted; imports all of them."""
    return {name: benchmark(name) for name in summaries()}


def benchmark(name: str) -> Benchmark:
    """Return one benchmark, importing no other.

    Args:
        name: as ``fedslm bench list`` shows it, or the module's.

    Raises:
        InvalidValue: for an unknown name, with the nearest known one.
    """
    stem = name.replace("-", "_")
    if stem in _stems():
        module = _module(stem)
        if _is_benchmark(module):
            return cast("Benchmark", module)
    known = list(summaries())
    msg = f"benchmark={name!r}, expected one of: {', '.join(known) or 'none is installed'}."
    raise InvalidValue(msg, hint=suggestion(_name_of(name), known))


def called(module: Benchmark) -> str:
    """Return the name of a benchmark on the command line."""
    return _name_of(cast("ModuleType", module).__name__.rpartition(".")[2])


def keeping(module: Benchmark) -> KeepingBenchmark | None:
    """Return a benchmark as one that keeps its runs, or None."""
    return cast("KeepingBenchmark", module) if hasattr(module, "KEEPS_RUNS") else None


def plotting(module: Benchmark) -> Plotting | None:
    """Return a benchmark as one that draws, or None."""
    return cast("Plotting", module) if hasattr(module, "plot") else None


def _stems() -> set[str]:
    """Return the names of this package's modules."""
    return {info.name for info in pkgutil.iter_modules(package.__path__)}


def _module(stem: str) -> ModuleType:
    """Import one module of this package."""
    return import_module(f"{package.__name__}.{stem}")


def _summary(stem: str) -> str | None:
    """Return the line of a module's ``SUMMARY``; None if it has none or cannot be run."""
    spec = find_spec(f"{package.__name__}.{stem}")
    if spec is None or spec.origin is None:
        return None
    body = ast.parse(Path(spec.origin).read_text(encoding="utf-8")).body
    runs = any(isinstance(node, ast.FunctionDef) and node.name == "run" for node in body)
    return next(_lines(body), None) if runs else None


def _lines(body: list[ast.stmt]) -> Iterator[str]:
    """Yield what is assigned to ``SUMMARY``."""
    for node in body:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant):
            names = {target.id for target in node.targets if isinstance(target, ast.Name)}
            if "SUMMARY" in names:
                yield str(node.value.value)


def _is_benchmark(module: ModuleType) -> bool:
    """Tell whether a module keeps the protocol."""
    return hasattr(module, "SUMMARY") and hasattr(module, "run")


def _name_of(stem: str) -> str:
    """Return the command line's spelling of a module's name."""
    return stem.replace("_", "-")
