"""The server's optimizer run over kept releases again, for whoever wants to check the adapter."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from server.audit.runrecord import Releases
from server.factoroptimizer import VectorOptimizer, make_optimizer
from server.optimizer import ServerOptimizer
from shared.config import RunConfig
from shared.errors import AuditError
from shared.lora import AdapterSpec, Vector


def replay_all(
    found: Mapping[str, Releases],
    config: RunConfig,
    initial: Vector,
    spec: AdapterSpec,
    *,
    finished: int,
) -> Vector | None:
    """Run the server's optimizer over the releases of all kinds of factors again.

    Args:
        found: the releases by kinds, as :func:`read_all_releases` gives them.
        config: the scenario.
        initial: the trained factors before the first round.
        spec: names and shapes of the factors.
        finished: rounds that were finished.

    Returns:
        As :func:`replay`.

    Raises:
        AuditError: as :func:`replay`.
    """
    by_round: dict[int, NDArray[np.float64]] = {}
    for kinds, releases in found.items():
        if releases.coordinates is not None:
            return None
        if releases.values.shape[1] != spec.size(kinds):
            msg = f"releases of {releases.values.shape[1]} values, expected {spec.size(kinds)}."
            raise AuditError(msg)
        by_round |= dict(zip(releases.rounds, releases.values, strict=True))
    return _replayed(by_round, config, initial, make_optimizer(config, spec), last=finished)


def replay(
    releases: Releases,
    config: RunConfig,
    initial: Vector,
    d: int,
    *,
    finished: int | None = None,
) -> Vector | None:
    """Run the server's optimizer over the releases again.

    A round without a release (aborted, or nobody answered) leaves the adapter as it was.

    Args:
        releases: what the rounds released.
        config: the scenario, for the server's optimizer and the averaging of the last rounds.
        initial: the trained factors before the first round, shape ``(d,)``.
        d: number of trained parameters.
        finished: rounds that were finished; default all of the scenario's.

    Returns:
        The adapter that these releases give, float32 ``(d,)``; None where not all coordinates were
        kept.

    Raises:
        AuditError: if the shapes do not belong together, or a release is of a later round.
    """
    if releases.coordinates is not None:
        return None
    if not (initial.shape == (d,) and releases.values.shape[1] == d):
        msg = f"releases of {releases.values.shape[1]} and an adapter of {initial.size} values, "
        msg += f"expected {d}."
        raise AuditError(msg)
    by_round = dict(zip(releases.rounds, releases.values, strict=True))
    rounds = config.run.rounds
    optimizer = ServerOptimizer(config.server, rounds=rounds, size=d)
    last = rounds if finished is None else finished
    return _replayed(by_round, config, initial, optimizer, last=last)


def _replayed(
    by_round: Mapping[int, NDArray[np.float64]],
    config: RunConfig,
    initial: Vector,
    optimizer: VectorOptimizer,
    *,
    last: int,
) -> Vector:
    """Run an optimizer over releases; a round without one leaves the adapter as it was."""
    if by_round and not 1 <= min(by_round) <= max(by_round) <= last:
        msg = f"releases of rounds {min(by_round)} to {max(by_round)}, expected 1 to {last}."
        raise AuditError(msg, hint="The run was not resumed after a crash, or mixed.")
    rounds = config.run.rounds
    vector = np.array(initial, dtype=np.float32)
    total, count = np.zeros(initial.size, dtype=np.float64), 0
    first_averaged = rounds - math.floor(config.server.averaging * rounds) + 1
    for server_round in range(1, last + 1):
        if server_round in by_round:
            vector = optimizer.step(vector, by_round[server_round], server_round)
        if server_round >= first_averaged:
            total += vector
            count += 1
    return (total / count).astype(np.float32) if count else vector
