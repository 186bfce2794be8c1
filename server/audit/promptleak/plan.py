"""How much of the attack a profile asks for: prompts, attacks, injections."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from server.audit.promptleak.abuse import INJECTIONS, Injection
from server.audit.promptleak.attacks import ATTACKS, Attack, one_per_family
from server.audit.promptleak.prompts import OWN_PROMPTS, ServedPrompts, SystemPrompt, name_of
from server.audit.protocol import AuditContext, Effort
from shared.errors import InvalidValue

ALL = 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class GivenAttacks:
    """Extraction attacks from the user's own file.

    Args:
        attacks: what :func:`server.audit.promptleak.sets.load_attacks` returned.
        with_own: try our own set too.
    """

    attacks: tuple[Attack, ...] = field(repr=False)
    with_own: bool = True

    def __post_init__(self) -> None:
        """Refuse an empty set.

        Raises:
            InvalidValue: without attacks.
        """
        if not self.attacks:
            msg = "attacks=0, expected at least one."
            raise InvalidValue(msg)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Work:
    """How much is tried: prompts, attacks, injections, and the same under each defence."""

    prompts: int
    own: int
    given: int
    injections: int
    defended: int
    one_per_family: bool


_WORK: dict[Effort, _Work] = {
    "smoke": _Work(prompts=6, own=16, given=4, injections=5, defended=4, one_per_family=True),
    "release": _Work(
        prompts=32, own=ALL, given=120, injections=ALL, defended=8, one_per_family=False
    ),
    "extended": _Work(
        prompts=ALL, own=ALL, given=ALL, injections=ALL, defended=28, one_per_family=False
    ),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What this run tries."""

    prompts: tuple[SystemPrompt, ...]
    protected: tuple[bool, ...]
    names: tuple[str, ...]
    given: int
    too_short: int
    attacks: tuple[Attack, ...]
    injections: tuple[Injection, ...]
    defended: int


def plan_for(context: AuditContext) -> Plan:
    """Choose prompts, attacks and injections for an effort."""
    work = _WORK[context.effort]
    served = context.find(ServedPrompts)
    prompts = () if served is None else served.prompts
    names = (
        []
        if served is None
        else [name_of(prompt, i, served.salt) for i, prompt in enumerate(prompts)]
    )
    protected = [served is not None and served.protected] * len(prompts)
    if served is None or served.with_own:
        prompts += OWN_PROMPTS
        names += [f"own-{i + 1}" for i in range(len(OWN_PROMPTS))]
        protected += [False] * len(OWN_PROMPTS)
    usable = _usable(prompts)
    kept = _some(usable, work.prompts, seed=context.seed)
    injections = INJECTIONS if work.injections >= len(INJECTIONS) else _spread(work.injections)
    return Plan(
        prompts=tuple(prompts[i] for i in kept),
        protected=tuple(protected[i] for i in kept),
        names=tuple(names[i] for i in kept),
        given=len(prompts),
        too_short=sum(not prompt.long_enough for prompt in prompts),
        attacks=_attacks(context, work),
        injections=injections,
        defended=min(work.defended, len(kept)),
    )


def _usable(prompts: Sequence[SystemPrompt]) -> list[int]:
    """Return the indices of prompts that can be judged, each text once."""
    first: dict[str, int] = {}
    for i, prompt in enumerate(prompts):
        if prompt.long_enough:
            first.setdefault(" ".join(prompt.text.split()), i)
    return list(first.values())


def _some(indices: Sequence[int], most: int, *, seed: int) -> list[int]:
    """Return at most so many indices, drawn by seed, in order."""
    if len(indices) <= most:
        return list(indices)
    rng = np.random.default_rng(seed)
    return sorted(int(i) for i in rng.choice(np.array(indices), size=most, replace=False))


def _attacks(context: AuditContext, work: _Work) -> tuple[Attack, ...]:
    """Return the attacks of an effort: our own, then the user's."""
    given = context.find(GivenAttacks)
    own = one_per_family(ATTACKS) if work.one_per_family else ATTACKS
    if given is None:
        return own[: work.own]
    return (*(own[: work.own] if given.with_own else ()), *given.attacks[: work.given])


def _spread(count: int) -> tuple[Injection, ...]:
    """Return so many injections, of different families first."""
    first: dict[str, Injection] = {}
    for injection in INJECTIONS:
        first.setdefault(injection.family, injection)
    return tuple(first.values())[:count]
