"""When a node asks again."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from client.fleet.pacing import LONGEST_ACTIVE, SHORTEST, Backoff, Pace, jittered


@given(st.floats(0, 1e6))
def test_jitter_is_a_quarter_at_most(seconds: float) -> None:
    assert 0.75 * seconds <= jittered(seconds) <= 1.25 * seconds


def test_nodes_do_not_ask_together() -> None:
    assert len({jittered(1.0) for _ in range(20)}) > 10


@given(waited=st.floats(0, 1e5), idle=st.floats(0.1, 60), active=st.booleans())
def test_a_pause_is_a_tenth_of_the_wait_within_bounds(
    waited: float, idle: float, active: bool
) -> None:
    now = 0.0
    pace = Pace(idle_seconds=idle, clock=lambda: now)
    pace.message()
    now = waited
    longest = min(LONGEST_ACTIVE, idle) if active else idle
    expected = min(max(SHORTEST, 0.1 * waited), longest)
    assert 0.75 * expected <= pace.pause(active=active) <= 1.25 * expected


def test_a_node_that_never_had_a_message_is_idle() -> None:
    assert Pace(idle_seconds=3.0).pause(active=False) >= 2.25


def test_pauses_grow_to_the_longest_and_start_again() -> None:
    backoff = Backoff(first=1.0, longest=8.0, factor=2.0)
    pauses = [backoff.pause() for _ in range(6)]
    for pause, expected in zip(pauses, [1, 2, 4, 8, 8, 8], strict=True):
        assert 0.75 * expected <= pause <= 1.25 * expected
    backoff.reset()
    assert backoff.pause() <= 1.25
