"""Time to the first token and the rate after it, from given times."""

from __future__ import annotations

import resource

import pytest

from client.latency import Latency, peak_rss_bytes


def test_the_first_token_and_the_rate_of_the_others_are_apart() -> None:
    found = Latency.of([10.0, 10.5, 10.75, 11.0, 11.5], 12.0)
    assert found.first_token_seconds == 0.5
    assert found.tokens_per_second == 3.0  # three tokens in one second
    assert found.seconds == 2.0
    assert found.line().startswith("first token 500 ms, 3.0 tokens/s, 2.00 s in all, peak ")


@pytest.mark.parametrize(
    ("marks", "first"), [([1.0], None), ([1.0, 1.25], 0.25), ([1.0, 1.25, 1.25], 0.25)]
)
def test_too_few_tokens_have_no_rate(marks: list[float], first: float | None) -> None:
    found = Latency.of(marks, 2.0)
    assert (found.first_token_seconds, found.tokens_per_second, found.seconds) == (first, None, 1.0)
    assert "no rate" in found.line()


def test_memory_is_the_systems_own_figure() -> None:
    found = Latency.of([0.0], 1.0).to_dict()["peak_rss_bytes"]
    assert 1 << 20 < found <= peak_rss_bytes()
    assert found <= resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
