"""The machine that a benchmark ran on, without its name, its user or its paths."""

from __future__ import annotations

import os
import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PACKAGES = (
    "fedslm",
    "cryptography",
    "dp-accounting",
    "flwr",
    "numpy",
    "opacus",
    "peft",
    "psycopg",
    "scipy",
    "torch",
    "torchao",
    "transformers",
)


def describe_machine(cpuinfo: Path = Path("/proc/cpuinfo")) -> dict[str, object]:
    """Return cores, processor, accelerators, system, Python and the versions of what is installed.

    Args:
        cpuinfo: Linux's processor table; elsewhere the platform's own word is taken.
    """
    return {
        "cores": _cores(),
        "cpu": _cpu_model(cpuinfo),
        "accelerators": _accelerators(),
        "system": platform.system(),
        "python": platform.python_version(),
        "packages": {name: found for name in PACKAGES if (found := _version(name)) is not None},
    }


def _cores() -> int:
    """Count the cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _cpu_model(cpuinfo: Path) -> str:
    """Return the processor's model name, or its architecture."""
    try:
        text = cpuinfo.read_text(encoding="utf-8", errors="replace")
    except OSError:
        text = ""
    names = [line.partition(":")[2].strip() for line in text.splitlines() if "model name" in line]
    return names[0] if names else platform.machine()


def _accelerators() -> list[str]:
    """Return the names of the CUDA devices; none where torch was not needed and is not loaded."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available():
        return []
    return [str(torch.cuda.get_device_name(n)) for n in range(torch.cuda.device_count())]


def _version(name: str) -> str | None:
    """Return the version of an installed distribution, or None."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None
