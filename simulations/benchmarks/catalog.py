"""Which benchmarks there are: the modules of this package that keep the protocol."""

from __future__ import annotations

import pkgutil
from collections.abc import Mapping
from importlib import import_module
from typing import cast

import simulations.benchmarks as package
from shared.errors import InvalidValue
from shared.registry import suggestion
from simulations.benchmarks.protocol import Benchmark


def benchmarks() -> Mapping[str, Benchmark]:
    """Return every benchmark by name, sorted; a helper module without ``SUMMARY`` is none."""
    found: dict[str, Benchmark] = {}
    for info in sorted(pkgutil.iter_modules(package.__path__), key=lambda info: info.name):
        module = import_module(f"{package.__name__}.{info.name}")
        if hasattr(module, "SUMMARY") and hasattr(module, "run"):
            found[info.name] = cast("Benchmark", module)
    return found


def benchmark(name: str) -> Benchmark:
    """Return one benchmark, importing no other.

    Raises:
        InvalidValue: for an unknown name, with the nearest known one.
    """
    names = {info.name for info in pkgutil.iter_modules(package.__path__)}
    if name in names:
        module = import_module(f"{package.__name__}.{name}")
        if hasattr(module, "SUMMARY") and hasattr(module, "run"):
            return cast("Benchmark", module)
    known = list(benchmarks())
    msg = f"benchmark={name!r}, expected one of: {', '.join(known) or 'none is installed'}."
    raise InvalidValue(msg, hint=suggestion(name, known))
