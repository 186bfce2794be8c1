"""What the server says of an update: read off the one norm that it takes."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from server.aggregation import LONGEST_UPDATE, STAGE_OF_MODE, make_aggregator
from server.collect import collect_updates
from server.messenger import Messenger
from shared.privacy.noise import NoiseSource
from shared.privacy.plan import PrivacyPlan
from shared.privacy.planning import make_plan
from shared.wire import ClientUpdate, Instruction, Records, encode_update

Vector = npt.NDArray[np.float32]

SIZE = 5
CLIP = 2.0


class Answers(Messenger):
    """Clients that answer with these updates."""

    def __init__(self, contents: Sequence[Records]) -> None:
        self._contents = contents

    def exchange(
        self, kind: str, contents: Mapping[int, Records], *, group: str
    ) -> Iterator[tuple[int, Records | None]]:
        """Answer every message."""
        del kind, group
        yield from zip(contents, self._contents, strict=True)


def plan(mode: str) -> PrivacyPlan:
    if mode == "none":
        return make_plan(mode="none", rounds=1, population=10)
    client = mode == "client-central"
    return make_plan(
        mode=mode,
        unit="client" if client else "example",
        neighboring_relation="add-or-remove-one",
        delta=1e-3,
        noise_multiplier=1.0,
        clipping_norm=CLIP if client else None,
        max_grad_norm=None if client else 1.0,
        sampling_probability=0.5,
        rounds=1,
        population=10,
    )


def verdicts(vectors: Sequence[Vector], mode: str, clip: float | None) -> dict[int, str]:
    """Return what is told about each client."""
    of, told = plan(mode), {}
    contents = [
        encode_update(
            ClientUpdate(
                server_round=1, config_digest="c", stage=STAGE_OF_MODE[mode], vector=vector
            )
        )
        for vector in vectors
    ]
    aggregator = make_aggregator(SIZE, plan=of, source=NoiseSource.seeded(0))
    answered, _ = collect_updates(
        Answers(contents),
        {client + 1: client for client in range(len(vectors))},
        Instruction(
            run_id="r",
            server_round=1,
            config_digest="c",
            plan_digest="p",
            vector=np.zeros(SIZE, dtype=np.float32),
            clipping_norm=clip,
        ),
        aggregator=aggregator,
        plan=of,
        on_answer=lambda answered: None,
        on_refused=lambda client, code: told.update({client: code}),
    )
    released = aggregator.release()
    assert answered == len(vectors)
    assert released is not None
    assert np.isfinite(released.vector).all()
    return told


def plainly(vector: Vector, mode: str, clip: float | None) -> str | None:
    """Look at every coordinate, and take the norm of the whole vector."""
    if not np.isfinite(vector).all():
        return "update-not-finite"
    most = (clip or CLIP) * (1.0 + 1e-4) if mode == "client-central" else LONGEST_UPDATE
    return "update-too-long" if math.hypot(*vector.tolist()) > most else None


MODES = ("none", "example", "client-central")


@given(
    vectors=st.lists(
        hnp.arrays(np.float32, SIZE, elements=st.floats(width=32)), min_size=1, max_size=4
    ),
    mode=st.sampled_from(MODES),
    clip=st.sampled_from([None, 1.0, 7.0]),
)
@example(vectors=[np.full(SIZE, 1e30, dtype=np.float32)], mode="client-central", clip=None)
@example(vectors=[np.full(SIZE, 3.4e38, dtype=np.float32)], mode="none", clip=None)
@example(vectors=[np.array([np.nan, 1e38, 1, 1, 1], dtype=np.float32)], mode="none", clip=None)
@example(vectors=[np.array([np.inf, -np.inf, 1, 1, 1], np.float32)], mode="example", clip=None)
def test_the_verdict_is_that_of_looking_at_everything(
    vectors: list[Vector], mode: str, clip: float | None
) -> None:
    expected = {client: plainly(vector, mode, clip) for client, vector in enumerate(vectors)}
    assert verdicts(vectors, mode, clip) == {
        client: code for client, code in expected.items() if code is not None
    }


@pytest.mark.parametrize("mode", MODES)
def test_a_verdict_near_its_limit(mode: str) -> None:
    """A clip in 32 bits may be a little beyond; what is longer is told."""
    limit = CLIP if mode == "client-central" else LONGEST_UPDATE / (1.0 + 1e-4)
    lengths = [0.9999 * limit, 1.00009 * limit, 1.00011 * limit, 2.0 * limit]
    vectors = [np.array([length, 0, 0, 0, 0], dtype=np.float32) for length in lengths]
    assert verdicts(vectors, mode, None) == {2: "update-too-long", 3: "update-too-long"}


def test_the_clip_of_the_round_counts_where_it_moves() -> None:
    vector = np.array([3.0, 0, 0, 0, 0], dtype=np.float32)
    assert verdicts([vector], "client-central", 4.0) == {}
    assert verdicts([vector], "client-central", 1.0) == {0: "update-too-long"}
