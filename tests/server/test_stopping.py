"""When a run stops, against a plain search over the losses."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from server.stopping import should_stop
from shared.configstopping import StoppingSection


def lines(losses: list[float | None]) -> list[dict[str, Any]]:
    return [{"round": i, "loss": loss} for i, loss in enumerate(losses, start=1)]


@given(st.lists(st.floats(0, 5) | st.none(), max_size=12), st.integers(1, 4))
def test_the_last_measured_rounds_were_no_better_than_what_came_before(
    losses: list[float | None], patience: int
) -> None:
    measured = [loss for loss in losses if loss is not None]
    late, early = measured[-patience:], measured[:-patience]
    expected = bool(early) and len(late) == patience and min(late) >= min(early)
    assert should_stop(lines(losses), StoppingSection(patience=patience)) == expected


def test_small_improvements_do_not_count_and_no_patience_never_stops() -> None:
    falling = lines([2.0, 1.99, 1.98])
    assert not should_stop(falling, StoppingSection(patience=2))
    assert should_stop(falling, StoppingSection(patience=2, min_improvement=0.1))
    assert not should_stop(lines([1.0] * 9), StoppingSection())
