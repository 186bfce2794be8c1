from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.control import limits
from server.control.limits import Slots, TokenBuckets
from shared.errors import InvalidValue


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_burst_then_the_rate() -> None:
    clock = Clock()
    buckets = TokenBuckets(per_minute=60, burst=3, clock=clock)
    assert [buckets.take("a") for _ in range(4)] == [0, 0, 0, 1.0]
    clock.now = 0.5
    assert buckets.take("a") == pytest.approx(0.5)
    clock.now = 1.0
    assert buckets.take("a") == 0
    assert buckets.take("a") > 0


def test_keys_do_not_share() -> None:
    buckets = TokenBuckets(per_minute=1, burst=1, clock=Clock())
    assert buckets.take("a") == 0
    assert buckets.take("a") > 0
    assert buckets.take("b") == 0


def test_a_refused_call_costs_nothing() -> None:
    clock = Clock()
    buckets = TokenBuckets(per_minute=60, burst=10, clock=clock)
    assert buckets.take("a", 8) == 0
    assert buckets.take("a", 8) == pytest.approx(6)
    assert buckets.take("a", 2) == 0


def test_a_clock_that_goes_back_gives_nothing() -> None:
    clock = Clock()
    clock.now = 100.0
    buckets = TokenBuckets(per_minute=60, burst=1, clock=clock)
    assert buckets.take("a") == 0
    clock.now = 0.0
    assert buckets.take("a") > 0


@given(st.lists(st.tuples(st.floats(0, 10), st.floats(0.1, 3)), max_size=60))
def test_never_more_than_burst_and_rate_allow(calls: list[tuple[float, float]]) -> None:
    clock = Clock()
    buckets = TokenBuckets(per_minute=30, burst=4, clock=clock)
    spent = 0.0
    for pause, cost in calls:
        clock.now += pause
        if buckets.take("a", cost) == 0:
            spent += cost
        assert spent <= 4 + clock.now * 0.5 + 1e-6


def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MAX_KEYS", 50)
    buckets = TokenBuckets(per_minute=60, burst=1, clock=Clock())
    for n in range(500):
        buckets.take(str(n))
    assert len(buckets) == 50


@pytest.mark.parametrize("wrong", [0, -1, float("nan"), float("inf")])
def test_limits_that_are_none_are_refused(wrong: float) -> None:
    with pytest.raises(InvalidValue):
        TokenBuckets(per_minute=wrong, burst=1, clock=Clock())
    with pytest.raises(InvalidValue):
        TokenBuckets(per_minute=1, burst=wrong, clock=Clock())
    with pytest.raises(InvalidValue):
        Slots(0)


def test_slots_are_each_key_s_own_and_come_back() -> None:
    slots = Slots(2)
    assert [slots.enter("a"), slots.enter("a"), slots.enter("a")] == [True, True, False]
    assert slots.enter("b")
    slots.leave("a")
    assert slots.enter("a")
    for key in ("a", "a", "b"):
        slots.leave(key)
    assert len(slots) == 0
