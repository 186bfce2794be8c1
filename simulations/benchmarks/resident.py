"""What the kernel says of this process's memory, in bytes. Linux only."""

from __future__ import annotations

import ctypes
import gc
from pathlib import Path

_STATUS = Path("/proc/self/status")


def resident() -> int:
    """Return the memory that is resident."""
    return _line("VmRSS")


def peak() -> int:
    """Return the largest resident memory since the start, or since :func:`forget_peak`."""
    return _line("VmHWM")


def forget_peak() -> int:
    """Give unused memory back, let the kernel count the peak anew, and return what is resident."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    return resident()


def _line(name: str) -> int:
    """Return one size of the process's status."""
    for line in _STATUS.read_text(encoding="ascii").splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    return 0
