"""The simulated clock against schedules worked out by hand and against plain counting."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.clock import SimulatedClock
from shared.configclock import ClockSection
from shared.errors import InvalidValue

SEEDS = st.integers(0, 2**40)


def section(**changes: object) -> ClockSection:
    values: dict[str, object] = {
        "shares": (1.0,),
        "step_seconds": (2.0,),
        "upload": (10.0,),
        "download": (100.0,),
        **changes,
    }
    return ClockSection.model_validate(values)


def clock(seed: int = 1, local_steps: int = 3, **changes: object) -> SimulatedClock:
    return SimulatedClock(section(**changes), seed=seed, local_steps=local_steps)


def test_an_answer_takes_the_time_of_link_and_steps() -> None:
    """400 bytes down at 100 a second, 3 steps of 2 s, 50 bytes up at 10 a second: 4 + 6 + 5."""
    assert clock().arrival(0, 1, at=7.0, down=400, up=50) == 22.0


def test_a_device_works_only_while_it_is_there() -> None:
    """Period 100, there for 40. Work of 100 from the window's begin: 40 + 40 + 20 in the third."""
    day = clock(period_seconds=100.0, available_share=0.4)
    begin = 100.0 - day.device(5).phase
    assert day.is_there(5, begin)
    assert day.work_until(5, begin, 100.0) == pytest.approx(begin + 220.0)
    # Exactly two windows end with the second, not at the begin of the third.
    assert day.work_until(5, begin, 80.0) == pytest.approx(begin + 140.0)
    # Asked 10 s before its window closes: 10 now, 15 in the next.
    assert day.work_until(5, begin + 30.0, 25.0) == pytest.approx(begin + 115.0)
    # Asked at night it waits for the morning.
    assert not day.is_there(5, begin + 41.0)
    assert day.there_from(5, begin + 41.0) == pytest.approx(begin + 100.0)
    assert day.work_until(5, begin + 41.0, 5.0) == pytest.approx(begin + 105.0)


@settings(max_examples=60, deadline=None)
@given(
    seed=SEEDS,
    share=st.integers(1, 10),
    at=st.integers(0, 500),
    work=st.integers(1, 300),
)
def test_work_is_the_time_that_a_device_was_there(
    seed: int, share: int, at: int, work: int
) -> None:
    """Counted in steps of a hundredth of a second by another rule: present or not, step by step."""
    day = clock(seed, period_seconds=50.0, available_share=share / 10)
    end = day.work_until(0, float(at), work / 10)
    steps = np.arange(round(at * 100), round(end * 100)) / 100 + 0.005
    there = (steps + day.device(0).phase) % 50.0 < 5.0 * share
    assert np.count_nonzero(there) / 100 == pytest.approx(work / 10, abs=0.04)


def test_shares_of_classes_and_dropouts_are_as_said() -> None:
    """20,000 devices in shares 0.5, 0.3, 0.2 and a chance of 0.1 to vanish.

    Each count is a binomial; five standard deviations fail by chance once in 1.7 million.
    """
    mixed = clock(
        shares=(0.5, 0.3, 0.2),
        step_seconds=(1.0, 2.0, 4.0),
        upload=(1e3, 1e3, 1e3),
        download=(1e3, 1e3, 1e3),
        dropout=0.1,
    )
    count = 20_000
    kinds = np.bincount([mixed.device(i).kind for i in range(count)], minlength=3)
    lost = sum(mixed.arrival(i, 1, at=0.0, down=1, up=1) is None for i in range(count))
    for found, share in (*zip(kinds, (0.5, 0.3, 0.2), strict=True), (lost, 0.1)):
        assert abs(found - count * share) < 5 * math.sqrt(count * share * (1 - share))


def test_slowness_is_lognormal_with_median_one() -> None:
    """5,000 draws: the mean of the logarithms is within five standard errors of 0."""
    jittery = clock(jitter=0.5, local_steps=1)
    times = [jittery.arrival(0, r, at=0.0, down=0, up=0) for r in range(1, 5001)]
    logs = np.log([t / 2.0 for t in times if t is not None])
    assert abs(logs.mean()) < 5 * 0.5 / math.sqrt(5000)
    assert logs.std() == pytest.approx(0.5, rel=0.06)


def test_the_order_of_questions_changes_nothing() -> None:
    one, other = clock(9, jitter=1.0, dropout=0.2), clock(9, jitter=1.0, dropout=0.2)
    asked = [(c, r) for c in range(5) for r in range(1, 4)]
    first = [one.arrival(c, r, at=0.0, down=9, up=9) for c, r in asked]
    second = [other.arrival(c, r, at=0.0, down=9, up=9) for c, r in reversed(asked)]
    assert first == second[::-1]
    assert len({a for a in first if a is not None}) > 5


def test_a_clock_without_classes_is_refused() -> None:
    with pytest.raises(InvalidValue, match="expected one a class"):
        SimulatedClock(ClockSection(), seed=1, local_steps=1)
    with pytest.raises(InvalidValue, match="local_steps"):
        clock(local_steps=0)
