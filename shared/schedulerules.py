"""Which schedules of learning rate and noise a scenario may have, each rule with its reason."""

from __future__ import annotations

from collections.abc import Iterator

from shared.config import ExampleSection, PrivacySection, RunConfig
from shared.errors import Problem
from shared.privacy.noiseschedule import LARGEST_FINAL, SMALLEST_FINAL
from shared.problems import conflict


def schedule_problems(config: RunConfig) -> Iterator[Problem]:
    """Check what changes over the rounds."""
    warmup, rounds = config.clients.warmup_rounds, config.run.rounds
    if not warmup < rounds:
        yield conflict(
            key="clients.warmup_rounds",
            message=f"found {warmup} of {rounds} rounds: the client learning rate would never be "
            "reached.",
        )
    if config.privacy.mode != "none":
        yield from _noise(config)


def _noise(config: RunConfig) -> Iterator[Problem]:
    """Check noise that changes over the rounds."""
    privacy = config.privacy
    yield from _stairs("privacy", privacy)
    yield from _stairs("example", config.example)
    if privacy.noise_schedule == "constant":
        return
    reasons = {
        "mode client-distributed": (
            privacy.mode == "client-distributed",
            "one grid and one size of share are chosen for the noise of all rounds",
        ),
        "correlated noise": (
            privacy.mechanism == "correlated",
            "its rows are one release, whose sensitivity is that of equal rows",
        ),
        "clipping_quantile": (
            privacy.clipping_quantile is not None,
            "the noise of update and count is split for one noise multiplier",
        ),
        "audit.client_canaries": (
            config.audit.client_canaries > 0,
            "their statistic weighs every round alike",
        ),
    }
    for what, (used, why) in reasons.items():
        if used:
            yield conflict(
                key="privacy.noise_schedule",
                message=f"cannot be used together with {what}: {why}.",
            )


def _stairs(section: str, said: PrivacySection | ExampleSection) -> Iterator[Problem]:
    """Check that a schedule of noise is said in full."""
    final = said.noise_final
    if (said.noise_schedule == "constant") != (final is None):
        yield conflict(
            key=f"{section}.noise_final",
            message="goes with a noise_schedule that is not constant, and only with one.",
        )
    if final is not None and not SMALLEST_FINAL <= final <= LARGEST_FINAL:
        yield Problem(
            key=f"{section}.noise_final",
            message=f"found {final:g}, expected {SMALLEST_FINAL:g} to {LARGEST_FINAL:g}.",
        )
