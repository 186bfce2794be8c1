"""Forked processes that train and measure groups of clients beside the one that runs the rounds.

They change nothing but the time: a group is the same whoever computes it, and so are its results,
bit for bit. What they return is what local steps leave, inside one machine; clip, noise and checks
of the privacy mode come after it, in the process that runs the rounds, as without workers.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from shared.wire import Instruction, Measurement
from simulations.forks import Fork, can_fork

if TYPE_CHECKING:
    from client.runtime import ClientRuntime
    from shared.lora import Vector

logger = logging.getLogger("fedslm.workers")

_MOST_WORKERS = 16
_FACTS = ("run_id", "server_round", "config_digest", "plan_digest")


@contextmanager
def working_together(runtime: ClientRuntime) -> Iterator[int]:
    """Let a runtime's groups be computed by several processes inside the ``with`` block.

    Args:
        runtime: complete; a worker sees it as it is now.

    Yields:
        How many processes compute, this one included.
    """
    with ExitStack() as stack:
        forks: list[Fork] = []
        wanted = workers_of(runtime) - 1
        try:
            while len(forks) < wanted:
                forks.append(stack.enter_context(Fork(_serving(runtime))))
        except OSError as error:
            logger.warning("only %d more processes could be made: %s", len(forks), error.strerror)
        runtime.helped_by([_Trains(fork) for fork in forks], [_Measures(fork) for fork in forks])
        try:
            yield 1 + len(forks)
        finally:
            runtime.helped_by([], [])


def workers_of(runtime: ClientRuntime) -> int:
    """Return how many processes train and measure clients.

    One alone on another engine, and where clients are not grouped (``cohort_batch=1``).
    """
    config = runtime.config
    if config.run.engine != "inprocess" or config.performance.cohort_batch == 1:
        return 1
    if config.task.classifies or config.policy_facts.kept or config.policy_facts.residual:
        return 1
    return processes_for(runtime)


def processes_for(runtime: ClientRuntime) -> int:
    """Return how many processes may compute: as the scenario says, or one for each core.

    One alone on an accelerator, where a process cannot be forked, and where torch has several
    threads, which a fork would leave behind.
    """
    import torch

    if runtime.model.device.type != "cpu" or not can_fork() or torch.get_num_threads() > 1:
        return 1
    said = runtime.config.performance.workers
    return min(_MOST_WORKERS, len(os.sched_getaffinity(0))) if said == "auto" else said


class _Trains:
    """Trains groups in a fork."""

    def __init__(self, fork: Fork) -> None:
        self._fork = fork

    def begin(self, clients: Sequence[int], instruction: Instruction) -> None:
        """Start on a group."""
        self._fork.ask(_request("train", clients, instruction))

    def end(self) -> Mapping[int, Vector] | None:
        """Wait for the group's factors."""
        answer = self._fork.answer()
        if answer is None:
            return None
        said, rest = _parts(answer)
        rows = np.frombuffer(rest, dtype="<f4").reshape(len(said["clients"]), said["size"])
        return dict(zip(said["clients"], rows, strict=True))


class _Measures:
    """Measures groups in a fork."""

    def __init__(self, fork: Fork) -> None:
        self._fork = fork

    def begin(self, clients: Sequence[int], instruction: Instruction) -> None:
        """Start on a group."""
        self._fork.ask(_request("measure", clients, instruction))

    def end(self) -> Mapping[int, Measurement] | None:
        """Wait for the group's losses."""
        answer = self._fork.answer()
        if answer is None:
            return None
        said, _ = _parts(answer)
        return {
            client: Measurement(loss=loss, tokens=tokens)
            for client, loss, tokens in said["measured"]
        }


def _serving(runtime: ClientRuntime) -> Callable[[bytes], bytes]:
    """Return what a worker does with a request."""

    def serve(request: bytes) -> bytes:
        said, vector = _parts(request)
        instruction = Instruction(
            **{name: said[name] for name in _FACTS}, vector=np.frombuffer(vector, dtype="<f4")
        )
        if said["work"] == "measure":
            measured = runtime.measure_group(said["clients"], instruction)
            rows = [(client, found.loss, found.tokens) for client, found in measured.items()]
            return _message({"measured": rows})
        trained = runtime.train_group(said["clients"], instruction)
        size = next((vector.size for vector in trained.values()), 0)
        facts = {"clients": list(trained), "size": size}
        flat = [np.asarray(vector, dtype="<f4").tobytes() for vector in trained.values()]
        return _message(facts, b"".join(flat))

    return serve


def _request(work: str, clients: Sequence[int], instruction: Instruction) -> bytes:
    """Write what a worker needs to know: no clip, no anchor, nothing but local work."""
    facts = {name: getattr(instruction, name) for name in _FACTS}
    vector = np.asarray(instruction.vector, dtype="<f4").tobytes()
    return _message({**facts, "work": work, "clients": list(clients)}, vector)


def _message(facts: Mapping[str, object], body: bytes = b"") -> bytes:
    """Join facts, as one line of JSON, and numbers."""
    return json.dumps(facts).encode() + b"\n" + body


def _parts(message: bytes) -> tuple[dict[str, Any], bytes]:
    """Take a message apart."""
    line, _, body = message.partition(b"\n")
    return json.loads(line), body
