"""Which ways of dealing with stragglers go with which guarantee, each refusal with its reason."""

from __future__ import annotations

import math
from collections.abc import Iterator

from shared.config import RunConfig
from shared.errors import Problem
from shared.problems import conflict


def straggler_conflicts(config: RunConfig) -> Iterator[Problem]:
    """Yield every rule about over-selection, the clock and the buffer that a scenario breaks."""
    yield from _over_selection(config)
    yield from _clock(config)
    if config.buffer.used:
        yield from _buffer(config)


def _over_selection(config: RunConfig) -> Iterator[Problem]:
    """Check over-selection."""
    key = "server.over_selection"
    if config.server.over_selection == 1.0:
        return
    if config.clients.cohort is None:
        yield conflict(
            key=key,
            message="needs clients.cohort: where everybody is asked, there is nobody more to ask.",
        )
    if config.privacy.mode == "client-distributed":
        yield conflict(
            key=key,
            message="cannot be used together with client-distributed: a secure sum over the first "
            "to answer would let one client decide who else is in it, and it has its own "
            "tolerance of dropouts.",
            hint="Ask for a larger clients.cohort and a smaller privacy.survivor_fraction.",
        )
    if config.privacy.mode == "client-central" and config.privacy.mechanism == "correlated":
        yield conflict(
            key=key,
            message="cannot be used together with correlated noise: cohorts take turns there, and "
            "a larger one would take part more often than the noise was made for.",
            hint="Ask for a larger clients.cohort.",
        )
    if config.buffer.used:
        yield conflict(
            key=key,
            message="cannot be used together with buffer.size: nobody waits for stragglers there.",
            hint="Choose buffer.concurrency.",
        )


def _clock(config: RunConfig) -> Iterator[Problem]:
    """Check the simulated clock."""
    clock = config.clock
    lengths = {name: len(getattr(clock, name)) for name in ("step_seconds", "upload", "download")}
    for name, length in lengths.items():
        if length != len(clock.shares):
            yield conflict(
                key=f"clock.{name}",
                message=f"has {length} values, expected one for each of {len(clock.shares)} "
                "clock.shares.",
            )
    if not clock.used:
        return
    if not math.isclose(math.fsum(clock.shares), 1.0, abs_tol=1e-6):
        yield Problem(
            key="clock.shares", message=f"sums to {math.fsum(clock.shares):g}, expected 1."
        )
    if config.clients.local_steps is None:
        yield conflict(
            key="clients.local_epochs",
            message="cannot be used together with a clock: the time of passes over the data "
            "depends on how much of it a client has, which nobody else may know.",
            hint="Set clients.local_steps.",
        )
    if config.privacy.mode == "client-distributed":
        yield conflict(
            key="clock.shares",
            message="cannot be used together with client-distributed: the phases of a secure sum "
            "are not timed.",
        )
    if clock.deadline_seconds is None and (clock.dropout > 0 or clock.available_share < 1):
        yield conflict(
            key="clock.deadline_seconds",
            message="is needed where devices may never answer or are not always there: the server "
            "would wait for ever.",
        )


def _buffer(config: RunConfig) -> Iterator[Problem]:
    """Check asynchronous rounds."""
    buffer, mode = config.buffer, config.privacy.mode
    if mode in {"client-central", "client-distributed"}:
        yield conflict(
            key="buffer.size",
            message=f"cannot be used together with {mode}: who is in a buffer is not a Poisson "
            "sample, one client's answer decides whose is next, and its noise and denominator are "
            "those of a cohort of fixed size.",
            hint='Use mode "example", where every client noises its own update, or synchronous '
            "rounds with server.over_selection.",
        )
    policy = config.policy_facts
    if policy.alternates or not policy.linear:
        yield conflict(
            key="buffer.size",
            message=f"cannot be used together with policy {config.policy!r}: updates of different "
            "rounds are added up, and must be changes of the same factors.",
            hint='Set aggregation.policy to "ffa" or "fedavg".',
        )
    if buffer.concurrency is None or buffer.size is None or buffer.concurrency < buffer.size:
        yield conflict(
            key="buffer.concurrency",
            message=f"found {buffer.concurrency}, expected at least buffer.size ({buffer.size}).",
        )
    population = config.clients.population
    if population and buffer.concurrency is not None and buffer.concurrency > population:
        yield Problem(
            key="buffer.concurrency",
            message=f"found {buffer.concurrency}, expected at most population ({population}).",
        )
