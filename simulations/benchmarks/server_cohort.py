"""A server's cohort whose updates are encoded already, for the benchmark ``server``.

``python -m simulations.benchmarks.server_cohort PARAMETERS WAY UPDATES ...`` aggregates in one way
after the other and prints the MB that each took at most above what the process had before it.
"""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from server.aggregation import Aggregate, make_aggregator
from server.collect import collect_updates
from server.messenger import Messenger
from shared.errors import SchemaMismatch
from shared.lora import Vector
from shared.privacy.mechanism import AdapterDelta, clip_update
from shared.privacy.noise import NoiseSource
from shared.privacy.plan import PrivacyPlan
from shared.privacy.planning import make_plan
from shared.privacy.quantile import QuantileClipping
from shared.seeding import data_rng
from shared.wire import ADAPTER, VECTOR, ClientUpdate, Instruction, Records, Stage, encode_update
from simulations.benchmarks.engine_runs import memory

DIGEST = "0" * 64
DISTINCT = 8
MOVING = "moving clip"
_CLIP = 1.0


class Replies(Messenger):
    """Clients that answer at once, with updates that were encoded before.

    Args:
        contents: what they answer, in turns.
    """

    def __init__(self, contents: Sequence[Records]) -> None:
        self._contents = contents

    def exchange(
        self, kind: str, contents: Mapping[int, Records], *, group: str
    ) -> Iterator[tuple[int, Records | None]]:
        """Answer every message."""
        del kind, group
        for number, node in enumerate(contents):
            yield node, self._contents[number % len(self._contents)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Cohort:
    """Clients of one privacy mode with their updates.

    Attributes:
        plan: the mode's plan.
        contents: encoded updates.
        parameters: of an update.
    """

    plan: PrivacyPlan
    contents: Sequence[Records]
    parameters: int

    @classmethod
    def of(cls, case: str, parameters: int) -> Cohort:
        """Make the clients of a case, with eight different updates."""
        plan = plan_of_case(case)
        stage: Stage = "plain" if plan.mode == "none" else "clipped"
        contents = [
            encode_update(
                ClientUpdate(server_round=1, config_digest=DIGEST, stage=stage, vector=vector)
            )
            for vector in (update(number, parameters) for number in range(DISTINCT))
        ]
        return cls(plan=plan, contents=contents, parameters=parameters)

    def aggregate(self, updates: int) -> Aggregate:
        """Collect so many updates and release their mean."""
        vector = np.zeros(self.parameters, dtype=np.float32)
        source = NoiseSource.seeded(1, "benchmark")
        aggregator = make_aggregator(self.parameters, plan=self.plan, source=source)
        told = Instruction(
            run_id="benchmark",
            server_round=1,
            config_digest=DIGEST,
            plan_digest=DIGEST,
            vector=vector,
        )
        collect_updates(
            Replies(self.contents),
            {client + 1: client for client in range(updates)},
            told,
            aggregator=aggregator,
            plan=self.plan,
            on_answer=_tell_nobody,
        )
        released = aggregator.release()
        if released is None or released.count != updates:
            msg = f"Not all of {updates} updates were summed."
            raise SchemaMismatch(msg)
        return released

    def stack(self, updates: int) -> NDArray[np.float32]:
        """Decode so many updates, keep them all, and return their mean."""
        every = [_numpy_of(self.contents[n % len(self.contents)]) for n in range(updates)]
        mean: NDArray[np.float32] = np.mean(np.stack(every), axis=0)
        return mean


def update(number: int, parameters: int) -> Vector:
    """Return an update that its client clipped."""
    drawn = data_rng(1, "update", number).standard_normal(parameters, dtype=np.float32)
    return clip_update(AdapterDelta(vector=drawn), clipping_norm=_CLIP).vector


def plan_of_case(case: str) -> PrivacyPlan:
    """Return the plan of one of the cases."""
    if case == "none":
        return make_plan(mode="none", rounds=100, population=10_000)
    moving = QuantileClipping(target=0.5, learning_rate=0.2, count_noise_stddev=50.0, initial=_CLIP)
    return make_plan(
        mode="client-central",
        unit="client",
        neighboring_relation="add-or-remove-one",
        delta=1e-5,
        noise_multiplier=1.0,
        clipping_norm=_CLIP,
        sampling_probability=0.1,
        rounds=100,
        population=10_000,
        quantile=moving if case == MOVING else None,
    )


def _numpy_of(content: Records) -> NDArray[np.float32]:
    """Read an update as numpy does."""
    array = content[ADAPTER][VECTOR]
    found: NDArray[np.float32] = np.lib.format.read_array(io.BytesIO(array.data))  # type: ignore[union-attr]
    return found


def _tell_nobody(answered: int) -> None:
    """Take no note."""


def main(arguments: Sequence[str]) -> None:
    """Aggregate in the ways that are asked for, and print the memory that each took."""
    cohort = Cohort.of("client-central", int(arguments[0]))
    found: list[float] = []
    for way, updates in zip(arguments[1::2], arguments[2::2], strict=True):
        work = cohort.aggregate if way == "stream" else cohort.stack
        work(2)
        before = memory()["VmRSS"]
        with suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
        work(int(updates))
        found.append(memory()["VmHWM"] - before)
    sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
