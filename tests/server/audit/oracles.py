"""Ground truth for the audits: a Gaussian mechanism of known epsilon, and small honest models.

The texts that the builders make up are short and recognisable, so that a test can search a finding
for them: see :func:`leaked`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from scipy import optimize, stats

from server.audit.canaries import CanaryTexts, PlantedCanaries
from server.audit.protocol import (
    Audit,
    AuditContext,
    Claim,
    Control,
    Effort,
    Evidence,
    Finding,
    Floats,
    Terms,
)
from server.audit.target import Passage, Reading, Target


def gaussian_delta(epsilon: float, mu: float) -> float:
    """Delta of a mu-GDP mechanism at epsilon (Dong, Roth and Su 2019, corollary 2.13)."""
    first = stats.norm.cdf(-epsilon / mu + mu / 2)
    second = math.exp(epsilon + stats.norm.logcdf(-epsilon / mu - mu / 2))
    return float(first - second)


def gaussian_epsilon(mu: float, delta: float) -> float:
    """Epsilon of a mu-GDP mechanism at delta, exactly."""
    return float(optimize.brentq(lambda e: gaussian_delta(e, mu) - delta, 0, 200, xtol=1e-12))


def gaussian_mu(epsilon: float, delta: float) -> float:
    """The mu whose Gaussian mechanism has this epsilon at delta."""
    return float(optimize.brentq(lambda m: gaussian_delta(epsilon, m) - delta, 1e-3, 50))


def reading(loss: float, tokens: int = 1) -> Reading:
    """A reading of so many nats, spread over tokens in growing shares.

    The rank of a token is the largest that its probability allows, less than its inverse.
    """
    shares = np.arange(1.0, tokens + 1)
    log_probability = -loss * shares / shares.sum()
    return Reading(
        log_probability=log_probability,
        expected=np.full(tokens, -3.0),
        spread=np.ones(tokens),
        rank=np.exp(np.nan_to_num(-log_probability).clip(max=14.0)).astype(np.int64) - 1,
        log_mass=np.full(tokens, -0.5),
    )


class FakeTarget(Target):
    """A model whose losses are given for each passage, and its continuations for each prompt.

    Args:
        base: nats of each passage under the base model.
        tuned: nats of each passage with the adapter.
        base_writes: what the base model writes after a prompt; nothing where a prompt is missing.
        tuned_writes: the same with the adapter.
        tokens: scored tokens of every passage.
    """

    def __init__(
        self,
        base: Mapping[Passage, float],
        tuned: Mapping[Passage, float],
        *,
        base_writes: Mapping[str, str] | None = None,
        tuned_writes: Mapping[str, str] | None = None,
        tokens: int = 1,
    ) -> None:
        self.losses = {False: dict(base), True: dict(tuned)}
        self.writes = {False: dict(base_writes or {}), True: dict(tuned_writes or {})}
        self.tokens = tokens
        self.reads: list[tuple[bool, Passage]] = []

    def read(self, passages: Sequence[Passage], *, adapter: bool) -> list[Reading]:
        self.reads.extend((adapter, passage) for passage in passages)
        return [reading(self.losses[adapter][passage], self.tokens) for passage in passages]

    def write(
        self,
        prompts: Sequence[str],
        *,
        adapter: bool,
        max_tokens: int,
        temperature: float = 0.0,
        seed: int = 0,
    ) -> list[str]:
        written = [self.writes[adapter].get(prompt, "") for prompt in prompts]
        return [" ".join(text.split(" ")[:max_tokens]) for text in written]


def passages(kind: str, count: int) -> tuple[Passage, ...]:
    return tuple(
        Passage(text=f"{kind}-zqx-{index}", prompt=f"{kind} ask") for index in range(count)
    )


def canaries(
    n_in: int = 50,
    n_out: int = 50,
    *,
    kind: str = "secret",
    references: int = 256,
    repeats: int = 1,
) -> CanaryTexts:
    """Canaries of one kind; every text holds ``zqx``."""
    return CanaryTexts(
        kind=kind,
        included=passages(f"{kind} in", n_in),
        held_out=passages(f"{kind} out", n_out),
        references=passages(f"{kind} reference", references),
        repeats=repeats,
    )


def planted(*kinds: CanaryTexts) -> PlantedCanaries:
    return PlantedCanaries(kinds=kinds, commitment="ab" * 32, coins="f0", salt="01", committed=True)


NO_CLAIM = Claim(mode="none", epsilon=None, delta=None, unit=None, neighboring_relation=None)


def client_claim(epsilon: float, applicable: float | None, delta: float = 1e-5) -> Claim:
    """A claim at client level; ``applicable`` is the epsilon of replacing one client."""
    return Claim(
        mode="client-central",
        epsilon=epsilon,
        delta=delta,
        unit="client",
        neighboring_relation="add-or-remove-one",
        epsilon_applicable=applicable,
    )


def example_claim(epsilon: float, delta: float = 1e-5) -> Claim:
    claim = client_claim(epsilon, epsilon, delta)
    return replace(claim, mode="example", unit="example")


def model(texts: PlantedCanaries, *, gain: float, seed: int = 0, tokens: int = 1) -> FakeTarget:
    """A model in which included canaries gained so many nats, in noise of one nat."""
    rng = np.random.default_rng(seed)
    everything = [
        passage
        for kind in texts.kinds
        for passage in (*kind.included, *kind.held_out, *kind.references)
    ]
    base = {passage: 40 + 0.01 * float(rng.standard_normal()) for passage in everything}
    included = {passage for kind in texts.kinds for passage in kind.included}
    tuned = {
        passage: loss - gain * (passage in included) - float(rng.standard_normal())
        for passage, loss in base.items()
    }
    return FakeTarget(base, tuned, tokens=tokens)


def context(
    *kinds: CanaryTexts,
    gain: float,
    claim: Claim = NO_CLAIM,
    seed: int = 0,
    effort: Effort = "smoke",
    tokens: int = 1,
    artefacts: Sequence[object] = (),
) -> AuditContext:
    """A context with canaries, and a model that learned them by ``gain`` nats."""
    texts = planted(*(kinds or (canaries(),)))
    target = model(texts, gain=gain, seed=seed, tokens=tokens)
    return AuditContext(
        claim=claim, seed=seed, effort=effort, artefacts=(target, texts, *artefacts)
    )


def caught(*, detected: bool | None = True, comparable: bool = True) -> Control:
    """A positive control: by default one where the attack worked."""
    return Control(source="the twin", detected=detected, comparable=comparable)


def terms(
    claim: Claim = NO_CLAIM, *, seed: int = 0, alpha: float = 0.05, control: Control | None = None
) -> Terms:
    return Terms(claim=claim, seed=seed, alpha=alpha, control=control)


def run(audit: Audit, around: AuditContext, *, control: Control | None = None) -> Finding:
    """Measure, send the evidence through JSON, conclude; as a stored report would be verified.

    The finding is concluded twice, from the evidence and from the JSON of the finding itself, and
    must come out the same both times.
    """
    agreed = terms(around.claim, seed=around.seed, control=control)
    finding = audit.conclude(through_json(audit.measure(around)), agreed)
    again = audit.conclude(through_json(finding.evidence), agreed)
    assert again.to_dict() == finding.to_dict()
    return finding


def through_json(evidence: Evidence) -> dict[str, Any]:
    """Return evidence as a report gives it back; refuses NaN and infinity."""
    found: dict[str, Any] = json.loads(json.dumps(dict(evidence), allow_nan=False))
    return found


def leaked(finding: Finding, *texts: str) -> list[str]:
    """Return which of the texts stand in a finding, ``zqx`` of the made-up ones among them."""
    written = json.dumps(finding.to_dict(), ensure_ascii=False).casefold()
    return [text for text in ("zqx", *texts) if text.casefold() in written]


def gaussian_scores(m: int, mu: float, rng: np.random.Generator) -> tuple[Floats, Floats]:
    """Scores of included and held-out canaries, each bit released by a mu-GDP mechanism."""
    coins = rng.random(m) < 0.5
    scores = mu * coins + rng.standard_normal(m)
    return scores[coins], scores[~coins]
