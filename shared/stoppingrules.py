"""How a run may decide to stop under which guarantee, each refusal with its reason."""

from __future__ import annotations

from collections.abc import Iterator

from shared.config import RunConfig
from shared.errors import Problem
from shared.problems import conflict

_INSTEAD = (
    'Set stopping.on to "public": the loss on public text costs nothing. In client-central, "vote" '
    "asks the clients, under noise that is charged."
)


def stopping_problems(config: RunConfig) -> Iterator[Problem]:
    """Yield every rule about ``[stopping]`` that a scenario breaks."""
    stopping, private = config.stopping, config.privacy.mode != "none"
    if not stopping.used:
        if stopping.on != "loss":
            yield conflict(
                key="stopping.on",
                message=f"{stopping.on!r} has nothing to decide: stopping.patience is 0.",
                hint="Set stopping.patience, or leave stopping.on out.",
            )
        return
    if stopping.on == "loss" and private:
        yield conflict(
            key="stopping.patience",
            message=f"cannot be used together with {config.privacy.mode}: a decision to stop "
            "would look at clients' held-out losses, and no event pays for that.",
            hint=_INSTEAD,
        )
    if stopping.on != "loss" and not stopping.every < config.run.rounds:
        yield conflict(
            key="stopping.every",
            message=f"found {stopping.every} of {config.run.rounds} rounds: nobody would look "
            "before the last.",
        )
    if stopping.on == "public" and config.task.classifies:
        yield conflict(
            key="stopping.on",
            message='"public" cannot be used together with a classification task: public text '
            "has no labels.",
        )
    if stopping.on != "loss" and config.aggregation.share == "A":
        yield conflict(
            key="stopping.on",
            message=f'{stopping.on!r} cannot be used together with aggregation.share "A": what is '
            "released says nothing without a client's own B, and that fits one A alone.",
        )
    if stopping.on == "vote" and private:
        yield from _vote(config)


def _vote(config: RunConfig) -> Iterator[Problem]:
    """Check votes of clients."""
    privacy, mode = config.privacy, config.privacy.mode
    if mode == "example":
        yield conflict(
            key="stopping.on",
            message='"vote" cannot be used together with example: each client would have to noise '
            "its own vote, which then says next to nothing; the server sees no sum without it.",
            hint='Set stopping.on to "public".',
        )
    if mode == "client-distributed":
        yield conflict(
            key="stopping.on",
            message='"vote" cannot be used together with client-distributed: the secure sum adds '
            "updates alone, and a vote beside it would be seen by the server in clear.",
            hint='Set stopping.on to "public".',
        )
    if mode != "client-central":
        return
    if config.stopping.vote_noise_multiplier is None:
        yield conflict(
            key="stopping.vote_noise_multiplier",
            message='"vote" needs it; no default.',
            hint="A tenth of the expected cohort lets a clear majority be seen.",
        )
    if privacy.mechanism == "correlated":
        yield conflict(
            key="stopping.on",
            message='"vote" cannot be used together with correlated noise: the whole run is one '
            "release there, counted on no sampling, and votes are releases of single rounds.",
            hint='Set stopping.on to "public", or privacy.mechanism to "gaussian".',
        )
    if config.example.used:
        yield conflict(
            key="stopping.on",
            message='"vote" cannot be used together with [example]: a vote is about single '
            "held-out records, and the server would see it without the noise that protects them.",
            hint='Set stopping.on to "public", or leave [example] out.',
        )
    if config.data.holdout == 0:
        yield conflict(
            key="data.holdout",
            message='found 0: clients that hold nothing out have nothing to vote by ("vote").',
        )
