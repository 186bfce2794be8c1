"""Work that gives way: least processor and disk priority, and first to go when memory runs out."""

from __future__ import annotations

import ctypes
import os
import platform
from pathlib import Path

NICENESS = 19
OOM_SCORE = 900
_IDLE_CLASS = 3
_CLASS_SHIFT = 13
_THIS_THREAD = 1
# ioprio_set has no name in the C library, and another number on each kind of processor.
_IOPRIO_SET = {"x86_64": 251, "aarch64": 30, "riscv64": 30, "armv7l": 314, "armv6l": 314}
_OOM_FILE = Path("/proc/self/oom_score_adj")
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


def lower_priority(*, oom_file: Path = _OOM_FILE) -> tuple[str, ...]:
    """Give way to everything else on this machine.

    Linux keeps both priorities for each thread, and a new thread inherits them: call this before
    any library starts threads. None of it can be taken back without rights over the system.

    Args:
        oom_file: where the kernel takes the score by which it chooses what to end.

    Returns:
        What was lowered: ``"processor"``, ``"disk"``, ``"memory"``; what this system does not offer
        is left out.
    """
    done = [
        name
        for name, lowered in (
            ("processor", _lower_processor()),
            ("disk", _lower_disk()),
            ("memory", _offer_memory(oom_file)),
        )
        if lowered
    ]
    return tuple(done)


def limit_threads(count: int) -> None:
    """Let numerical libraries that are not loaded yet use a number of threads, by environment.

    Args:
        count: threads, at least 1; a library that is loaded already keeps its own number.
    """
    for name in _THREADS:
        os.environ[name] = str(max(1, count))


def spare_threads() -> int:
    """Return how many threads leave one core to the device's owner; at least 1."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max(1, (count or 1) - 1)


def _lower_processor() -> bool:
    """Take the least share of the processor."""
    try:
        os.setpriority(os.PRIO_PROCESS, 0, NICENESS)
    except OSError:
        return False
    return True


def _lower_disk() -> bool:
    """Use the disk only when nobody else does."""
    number = _IOPRIO_SET.get(platform.machine())
    if number is None or platform.system() != "Linux":
        return False
    library = ctypes.CDLL(None, use_errno=True)
    wanted = _IDLE_CLASS << _CLASS_SHIFT
    return bool(library.syscall(number, _THIS_THREAD, 0, wanted) == 0)


def _offer_memory(file: Path) -> bool:
    """Be the first to go when the system runs out of memory; a higher score is kept."""
    try:
        if int(file.read_text(encoding="ascii")) < OOM_SCORE:
            file.write_text(str(OOM_SCORE), encoding="ascii")
    except (OSError, ValueError):
        return False
    return True
