"""Starts a program that the kernel kills when its parent dies, however that happens.

Run by its path, without the packages, so that it costs next to nothing:
``python -S -E leash.py PARENT_PID PROGRAM ARGUMENT...``. The setting survives ``exec``. Linux only;
elsewhere the program is started all the same, and pid files find it later.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def leash(parent: int) -> None:
    """Ask the kernel to kill this process when the thread that made it ends.

    Raises:
        SystemExit: if the parent is gone already.
    """
    if sys.platform == "linux":
        libc = ctypes.CDLL(None, use_errno=True)
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        raise SystemExit(1)


if __name__ == "__main__":
    leash(int(sys.argv[1]))
    os.execv(sys.argv[2], sys.argv[2:])  # noqa: S606 - the supervisor's own command line
