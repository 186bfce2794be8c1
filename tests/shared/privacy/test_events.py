from __future__ import annotations

import json
import math
import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.canonical import canonical_json
from shared.errors import InvalidValue, UnsupportedEvent
from shared.privacy.events import (
    ComposedEvent,
    Composition,
    GaussianEvent,
    NonPrivateEvent,
    NoOpEvent,
    PrivacyEvent,
    SkellamEvent,
    event_from_json,
)

gaussians = st.builds(
    GaussianEvent,
    noise_multiplier=st.floats(1e-300, 1e300),
    sampling_probability=st.floats(0, 1, exclude_min=True),
    count=st.integers(1, 10**12),
)
skellams = st.builds(
    SkellamEvent,
    noise_multiplier=st.floats(1e-300, 1e300),
    grid=st.integers(1, 2**40),
    sampling_probability=st.floats(0, 1, exclude_min=True),
    count=st.integers(1, 10**12),
)
leaves: st.SearchStrategy[PrivacyEvent] = st.one_of(
    gaussians, skellams, st.just(NonPrivateEvent()), st.just(NoOpEvent())
)
events: st.SearchStrategy[PrivacyEvent] = st.recursive(
    leaves,
    lambda inner: st.builds(ComposedEvent, events=st.lists(inner, max_size=4).map(tuple)),
    max_leaves=12,
)


@given(events)
def test_events_survive_storage(event: PrivacyEvent) -> None:
    assert event_from_json(event.to_json()) == event
    assert event_from_json(canonical_json(event.to_json())) == event


def test_the_stored_form_of_version_1_stays_readable() -> None:
    text = (
        '{"schema":1,"type":"composed","events":[{"schema":1,"type":"gaussian","noise_multiplier":'
        '0.8,"sampling_probability":0.25,"count":7},{"schema":1,"type":"non-private"},'
        '{"schema":1,"type":"no-op"}]}'
    )
    gaussian = GaussianEvent(noise_multiplier=0.8, sampling_probability=0.25, count=7)
    expected = ComposedEvent(events=(gaussian, NonPrivateEvent(), NoOpEvent()))
    assert event_from_json(text) == expected
    assert json.loads(canonical_json(expected.to_json())) == json.loads(text)


SKELLAM = {
    "schema": 1,
    "type": "skellam",
    "noise_multiplier": 1.5,
    "grid": 1024,
    "sampling_probability": 0.5,
    "count": 3,
}
GOOD = {
    "schema": 1,
    "type": "gaussian",
    "noise_multiplier": 1.0,
    "sampling_probability": 1.0,
    "count": 1,
}


@pytest.mark.parametrize(
    "stored",
    [
        None,
        3,
        [],
        "",
        "{",
        "[]",
        {},
        {**GOOD, "schema": 2},
        {**GOOD, "schema": True},
        {**GOOD, "type": "laplace"},
        {**GOOD, "type": ["gaussian"]},
        {**GOOD, "extra": 1},
        {k: v for k, v in GOOD.items() if k != "count"},
        {**GOOD, "count": 0},
        {**GOOD, "count": True},
        {**GOOD, "count": 1.0},
        {**GOOD, "noise_multiplier": "1"},
        {**GOOD, "noise_multiplier": 0},
        {**GOOD, "noise_multiplier": math.nan},
        {**GOOD, "sampling_probability": 1.5},
        {**SKELLAM, "grid": 0},
        {**SKELLAM, "grid": 2.0},
        {**SKELLAM, "noise_multiplier": -1.0},
        {k: v for k, v in SKELLAM.items() if k != "grid"},
        {"schema": 1, "type": "no-op", "events": []},
        {"schema": 1, "type": "composed", "events": {}},
        {"schema": 1, "type": "composed", "events": [GOOD, {**GOOD, "type": "skellam"}]},
    ],
)
def test_what_is_not_understood_is_refused(stored: object) -> None:
    with pytest.raises(UnsupportedEvent):
        event_from_json(stored)


@pytest.mark.parametrize("bad", [0, -1.0, math.nan, math.inf, True, "1", None])
def test_noise_is_finite_and_positive(bad: Any) -> None:
    with pytest.raises(InvalidValue, match="noise_multiplier"):
        GaussianEvent(noise_multiplier=bad)


@pytest.mark.parametrize("bad", [0, -0.1, 1.0000001, math.nan, math.inf, True, "1"])
def test_sampling_is_a_probability(bad: Any) -> None:
    with pytest.raises(InvalidValue, match="sampling_probability"):
        GaussianEvent(noise_multiplier=1.0, sampling_probability=bad)


@pytest.mark.parametrize("bad", [0, -1, 1.0, math.nan, True, "1"])
def test_a_count_is_a_positive_integer(bad: Any) -> None:
    with pytest.raises(InvalidValue, match="count"):
        GaussianEvent(noise_multiplier=1.0, count=bad)


@given(st.lists(events, max_size=5), st.randoms(use_true_random=False))
def test_order_and_nesting_do_not_change_a_composition(
    items: list[PrivacyEvent], shuffle: random.Random
) -> None:
    merged = Composition.of(*items)
    shuffled = list(items)
    shuffle.shuffle(shuffled)
    assert Composition.of(*shuffled) == merged
    assert Composition.of(ComposedEvent(events=tuple(items))) == merged
    assert Composition.of(merged.to_event()) == merged


def test_equal_pairs_are_merged_whatever_the_number_type() -> None:
    one = GaussianEvent(noise_multiplier=1, sampling_probability=1, count=2)
    other = GaussianEvent(noise_multiplier=1.0, count=3)
    assert Composition.of(one, other).pairs == ((1.0, 1.0, 5),)
    assert Composition.of(one, other).releases == 5
    assert math.isinf(Composition.of(one, NonPrivateEvent()).releases)


def test_an_unknown_event_is_refused_even_nested() -> None:
    class Mystery:
        pass

    hidden = ComposedEvent(events=(NoOpEvent(), ComposedEvent(events=(Mystery(),))))  # type: ignore[arg-type]
    with pytest.raises(UnsupportedEvent, match="Mystery"):
        Composition.of(hidden)


def test_a_part_is_within_the_whole() -> None:
    def take(n: int, z: float = 1.0) -> Composition:
        return Composition.of(GaussianEvent(noise_multiplier=z, count=n))

    assert Composition().within(take(1))
    assert take(3).within(take(3))
    assert not take(4).within(take(3))
    assert not take(1, z=2.0).within(take(3))
    assert not Composition.of(NonPrivateEvent()).within(take(3))
    assert take(3).within(take(3).plus(Composition.of(NonPrivateEvent())))


def test_the_stored_form_of_skellam_stays_readable() -> None:
    event = SkellamEvent(noise_multiplier=1.5, grid=1024, sampling_probability=0.5, count=3)
    assert event_from_json(SKELLAM) == event
    assert event.to_json() == SKELLAM


@given(st.lists(events, max_size=5))
def test_sums_by_kind_lose_nothing(items: list[PrivacyEvent]) -> None:
    merged = Composition.of(*items)
    counts = merged.counts()
    assert Composition.from_counts(counts) == merged
    assert list(counts) == sorted(counts)
    assert len({kind for kind, _ in counts}) == len(counts)


def test_kinds_differ_by_everything_but_the_count() -> None:
    one = SkellamEvent(noise_multiplier=1.0, grid=8, count=2)
    assert Composition.of(one, one).skellams == ((1.0, 1.0, 8, 4),)
    finer = SkellamEvent(noise_multiplier=1.0, grid=16)
    gaussian = GaussianEvent(noise_multiplier=1.0)
    assert len(Composition.of(one, finer, gaussian).counts()) == 3
    assert Composition.of(one, finer, gaussian).releases == 4
    assert not Composition.of(finer).within(Composition.of(one, gaussian))
    assert Composition.of(one).within(Composition.of(one, gaussian))


ONE = canonical_json(GaussianEvent(noise_multiplier=1.0).to_json())


@pytest.mark.parametrize(
    "rows",
    [
        [(ONE, 0)],
        [(ONE, -1)],
        [(canonical_json(GaussianEvent(noise_multiplier=1.0, count=2).to_json()), 1)],
        [(canonical_json(NonPrivateEvent().to_json()), 2)],
        [(canonical_json(NoOpEvent().to_json()), 1)],
        [("{}", 1)],
    ],
)
def test_a_damaged_sum_is_refused(rows: list[tuple[str, int]]) -> None:
    with pytest.raises(UnsupportedEvent):
        Composition.from_counts(rows)
