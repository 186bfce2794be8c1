"""A second process that holds what this one holds, and answers in bytes.

A fork shares every page of memory until somebody writes to it, so a base model is there once. The
child lives as long as its parent: it leaves when the parent closes it, and the kernel kills it when
the parent dies. It never runs what is registered for the end of a process, touches no file that is
open in the parent, and answers a failure with the name of its type, which is all that is told.
"""

from __future__ import annotations

import gc
import logging
import os
import signal
import socket
import struct
import sys
from collections.abc import Callable
from types import TracebackType
from typing import Final, Self

logger = logging.getLogger("fedslm.forks")

_HEAD: Final = struct.Struct("<QBQ")  # number of the request, whether it failed, bytes that follow
_PIECE: Final = 1 << 20


class Fork:
    """One child process that answers one request after another.

    Args:
        serve: takes a request and returns its answer; runs in the child, with the memory as it is
            when the child is made.

    Raises:
        OSError: if the system makes no further process.
    """

    def __init__(self, serve: Callable[[bytes], bytes]) -> None:
        self._number = 0
        mine, its = socket.socketpair()
        gc.freeze()  # a collector that runs in either process would write to every page
        parent = os.getpid()
        try:
            self._child = os.fork()
        except OSError:
            gc.unfreeze()
            mine.close()
            its.close()
            raise
        if self._child == 0:
            mine.close()
            _live(its, serve, parent)
        its.close()
        gc.unfreeze()
        self._line: socket.socket | None = mine

    def __enter__(self) -> Self:
        """Be closed at the end of the block."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End the child."""
        self.close()

    def ask(self, request: bytes) -> None:
        """Hand over a request; an answer that nobody waited for is thrown away. Never raises."""
        self._number += 1
        if self._line is not None:
            try:
                _send(self._line, self._number, request)
            except OSError:
                self._lost()

    def answer(self) -> bytes | None:
        """Wait for the answer to the last request; None if it failed, or if the child is gone."""
        while self._line is not None:
            try:
                number, failed, answer = _receive(self._line)
            except (OSError, EOFError):
                self._lost()
                break
            if number != self._number:
                continue
            if failed:
                logger.warning("a forked process failed with %s", answer.decode())
                return None
            return answer
        return None

    def close(self) -> None:
        """Let the child leave and wait for it; closing twice is fine."""
        if self._line is not None:
            self._line.close()
            self._line = None
            # It may be in the middle of something that nobody waits for.
            os.kill(self._child, signal.SIGKILL)
            os.waitpid(self._child, 0)

    def _lost(self) -> None:
        """Go on without the child."""
        logger.warning("a forked process is gone; its work is done in this one")
        self.close()


def can_fork() -> bool:
    """Tell whether a process that computes with torch can be forked here."""
    if not (sys.platform == "linux" and hasattr(os, "fork")):
        return False
    import torch

    return not torch.cuda.is_initialized()  # type: ignore[no-untyped-call]


def _live(line: socket.socket, serve: Callable[[bytes], bytes], parent: int) -> None:
    """Be the child: answer until the parent leaves. Never returns."""
    status = 1
    try:
        from server.leash import leash

        leash(parent)
        # A person's Ctrl-C reaches both; the parent decides what it means.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        while True:
            number, _, request = _receive(line)
            try:
                failed, answer = False, serve(request)
            except Exception as error:  # noqa: BLE001 - a message may quote a record; its type not
                failed, answer = True, type(error).__name__.encode()
            _send(line, number, answer, failed=failed)
    except (EOFError, OSError):
        status = 0
    finally:
        # Nothing of the parent's is flushed, closed or deleted here.
        os._exit(status)


def _send(line: socket.socket, number: int, body: bytes, *, failed: bool = False) -> None:
    """Send one frame."""
    line.sendall(_HEAD.pack(number, failed, len(body)))
    line.sendall(body)


def _receive(line: socket.socket) -> tuple[int, bool, bytes]:
    """Receive one frame.

    Raises:
        EOFError: if the other side is gone.
    """
    number, failed, size = _HEAD.unpack(_exactly(line, _HEAD.size))
    return number, bool(failed), _exactly(line, size)


def _exactly(line: socket.socket, size: int) -> bytes:
    """Receive so many bytes."""
    pieces, left = [], size
    while left:
        piece = line.recv(min(left, _PIECE))
        if not piece:
            raise EOFError
        pieces.append(piece)
        left -= len(piece)
    return b"".join(pieces)
