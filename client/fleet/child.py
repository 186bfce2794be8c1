"""The parent's side of the worker: start it, ask it, end it at once.

The worker is a fresh Python process, not a fork: it shares nothing with the parent but two pipes.
It is killed, never asked to stop; its work is of no use without an answer, and the device's ledger
has counted it already.
"""

from __future__ import annotations

import os
import queue
import subprocess
import sys
import threading
import time
from base64 import b64encode
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import client
from client.fleet.frames import Frame, read_frame, write_frame
from client.fleet.limits import Limits
from client.fleet.messages import Question, RunInfo
from client.fleet.objects import RECORD_DICT, Tree, verify
from shared.errors import FedSLMError, SchemaMismatch
from shared.redact import known_codes

COMMAND: Final = (sys.executable, "-P", "-m", "client.fleet.worker")
_LOOK_SECONDS: Final = 0.5
_END_SECONDS: Final = 5.0
# Quiet, offline where libraries would ask, and few arenas: a worker is short of memory.
_ENVIRONMENT: Final = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "MALLOC_ARENA_MAX": "2",
    "TOKENIZERS_PARALLELISM": "false",
}


class WorkerLost(Exception):
    """The worker ended, was ended, or wrote something that is no answer."""


class Child:
    """One worker process; started with the first question.

    Args:
        command: what to run; it speaks frames on its standard input and output.
        limits: bounds on one message.
    """

    def __init__(self, *, command: Sequence[str] = COMMAND, limits: Limits) -> None:
        self._command = tuple(command)
        self._limits = limits
        self._process: subprocess.Popen[bytes] | None = None
        self._answers: queue.SimpleQueue[Frame | None] = queue.SimpleQueue()
        self.last_used = time.monotonic()

    @property
    def pid(self) -> int | None:
        """Return the worker's process number while it runs."""
        alive = self._process is not None and self._process.poll() is None
        return self._process.pid if alive and self._process is not None else None

    def ask(
        self,
        question: Question,
        content: Tree,
        *,
        node_id: int,
        node_config: Mapping[str, Any],
        run: RunInfo,
        go_on: Callable[[], bool],
    ) -> tuple[Tree, float] | str:
        """Let the worker answer a question.

        Args:
            question: the head of the message.
            content: its content's objects.
            node_id: this node.
            node_config: the device's own paths and number.
            run: the run's configuration.
            go_on: asked twice a second; the worker is killed when it says no.

        Returns:
            The content of the answer and the seconds it took; or the code of a failure.

        Raises:
            WorkerLost: if there is no answer; the worker is not running then.
        """
        header = {
            "kind": "work",
            "question": asdict(question),
            "root": content.root,
            "names": list(content.contents),
            "node_id": node_id,
            "node_config": dict(node_config),
            "run_config": {key: _plain(value) for key, value in run.config.items()},
            "series_id": run.series_id,
        }
        frame = Frame(header=header, parts=list(content.contents.values()))
        try:
            process = self._started()
            sending = threading.Thread(target=_send, args=(process, frame), daemon=True)
            sending.start()
            found = self._wait(go_on)
            sending.join(_END_SECONDS)
            return self._read(found)
        except (FedSLMError, KeyError, TypeError, ValueError, OSError) as error:
            raise WorkerLost(type(error).__name__) from error
        finally:
            self.last_used = time.monotonic()

    def end(self) -> bool:
        """Kill the worker and wait until it is gone; tell whether there was one."""
        process, self._process = self._process, None
        if process is None:
            return False
        with suppress(ProcessLookupError):
            process.kill()
        with suppress(subprocess.TimeoutExpired):
            process.wait(_END_SECONDS)
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                with suppress(OSError):
                    stream.close()
        return True

    def resident_mb(self) -> float | None:
        """Return how much memory the worker holds, in MiB, where the system tells."""
        if self.pid is None:
            return None
        with suppress(OSError, ValueError, IndexError):
            pages = int(Path(f"/proc/{self.pid}/statm").read_text(encoding="ascii").split()[1])
            return pages * os.sysconf("SC_PAGE_SIZE") / (1 << 20)
        return None

    def _started(self) -> subprocess.Popen[bytes]:
        """Return the running worker."""
        if self._process is not None and self._process.poll() is not None:
            self.end()
        if self._process is None:
            root = str(Path(client.__file__).resolve().parent.parent)
            paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
            self._process = subprocess.Popen(  # noqa: S603 - our own program, no shell
                self._command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env={**os.environ, **_ENVIRONMENT, "PYTHONPATH": os.pathsep.join(paths)},
                # A terminal's Ctrl-C is for the parent, which ends the worker itself.
                start_new_session=True,
            )
            self._answers = queue.SimpleQueue()
            threading.Thread(
                target=_receive, args=(self._process, self._answers, self._limits), daemon=True
            ).start()
        return self._process

    def _wait(self, go_on: Callable[[], bool]) -> Frame:
        """Wait for an answer; end the worker when it may not go on."""
        while True:
            with suppress(queue.Empty):
                found = self._answers.get(timeout=_LOOK_SECONDS)
                if found is not None:
                    return found
                self.end()
                msg = "ended"
                raise WorkerLost(msg)
            if not go_on():
                self.end()
                msg = "stopped"
                raise WorkerLost(msg)

    def _read(self, frame: Frame) -> tuple[Tree, float] | str:
        """Check an answer as if it came from outside."""
        header = frame.header
        if header["kind"] == "failed":
            code = header["code"]
            if code not in known_codes():
                self.end()
                msg = "The worker gave a code that is not known."
                raise SchemaMismatch(msg)
            return str(code)
        contents = dict(zip(header["names"], frame.parts, strict=True))
        try:
            found = Tree(root=header["root"], contents=contents)
            tree = verify(found, RECORD_DICT, limits=self._limits)
        except SchemaMismatch:
            self.end()
            raise
        return tree, float(header["seconds"])


def _plain(value: object) -> object:
    """Return a setting as JSON carries it."""
    if isinstance(value, bytes):
        return {"base64": b64encode(value).decode("ascii")}
    return value


def _send(process: subprocess.Popen[bytes], frame: Frame) -> None:
    """Write a frame; a worker that is gone shows in what it does not answer."""
    if process.stdin is not None:
        with suppress(OSError, ValueError):
            write_frame(process.stdin, frame)


def _receive(
    process: subprocess.Popen[bytes], answers: queue.SimpleQueue[Frame | None], limits: Limits
) -> None:
    """Pass answers on, and None when there will be no more."""
    try:
        if process.stdout is not None:
            with suppress(FedSLMError, OSError, ValueError):
                while (frame := read_frame(process.stdout, limits=limits)) is not None:
                    answers.put(frame)
    finally:
        answers.put(None)
