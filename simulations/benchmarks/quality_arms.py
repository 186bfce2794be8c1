"""What the benchmark ``quality`` compares: every scenario with every policy at every epsilon.

Policies are read from the fields of ``[aggregation]`` in shared/config.py: each field that takes
words is an axis with all its words, so that a new one is measured as soon as a scenario can say it.
Codes of updates, factors that are shared, and a server that takes plain means are axes too, of
which only the first value is measured unless others are asked for. A policy that knows no server
optimizer always has plain means. What the rules of scenarios refuse is named with their reason and
left out. Rules against attackers have a benchmark of their own, ``robust``.
"""

from __future__ import annotations

import itertools
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from shared.config import RunConfig
from shared.configaggregation import AggregationSection
from shared.configfile import ResolvedConfig
from shared.configlink import LinkSection
from shared.configrobust import RobustKeys
from shared.errors import ConflictingSettings, DataFileNotFound
from shared.policies import POLICIES
from simulations.basepath import DEMO
from simulations.benchmarks.quality_select import Axes, selected
from simulations.catalog import open_scenario
from simulations.dataset import BUILTIN_PREFIX

SCENARIOS = ("quickstart", "shakespeare", "medquad")
QUICK_SCENARIO = "quickstart"
EPSILONS = (1.0, 3.0, 8.0)
QUICK_EPSILONS = (8.0,)
SEEDS, QUICK_SEEDS = 3, 2
NO_PRIVACY = "none"
LINK, SHARE, SERVER = "link", "share", "server"
PLAIN_MEANS = "mean"
# What a field of [aggregation] says elsewhere, or only of settings that these scenarios have not.
_ELSEWHERE = {*RobustKeys.model_fields, "share", "columns"}
_HUB = "hf:"

# What is measured and attacked on the way costs time and trains nothing. There is one process with
# one thread, so that its clock has all of a round.
PLAIN: Mapping[str, object] = {
    "audit.profile": "none",
    "audit.canaries": 0,
    "audit.releases": False,
    "evaluation.clients": 1,
    "performance.workers": 1,
    "performance.threads": 1,
}
MEANS: Mapping[str, object] = {
    "server.optimizer": "mean",
    "server.learning_rate": 1.0,
    "server.schedule": "constant",
}
QUICK: Mapping[str, object] = {
    "run.rounds": 2,
    "clients.population": 24,
    "clients.cohort": 8.0,
    "data.records": 8,
    "evaluation.final_clients": 12,
    "model.quantization": "none",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One run.

    Attributes:
        scenario: name of a built-in scenario.
        choices: fields of ``[aggregation]``, and of the optional axes what is not usual.
        epsilon: the target; None is the non-private twin.
        seed: of the run.
        resolved: the scenario with all that; None where the rules refuse it.
        refusal: the rules' reason; empty where they accept it.
    """

    scenario: str
    choices: Mapping[str, str]
    epsilon: float | None
    seed: int
    resolved: ResolvedConfig | None
    refusal: str

    @property
    def arm(self) -> tuple[str, ...]:
        """What runs with other seeds have in common."""
        return (self.scenario, *self.choices.values(), word(self.epsilon))

    @property
    def name(self) -> str:
        """The name of its run folder."""
        return "-".join([*self.arm[:-1], f"epsilon-{self.arm[-1]}", f"seed-{self.seed}"])

    def __str__(self) -> str:
        """Return it in words."""
        protected = "not private" if self.epsilon is None else f"epsilon {self.epsilon:g}"
        return ", ".join([self.scenario, *self.choices.values(), protected, f"seed {self.seed}"])


def choices() -> dict[str, tuple[str, ...]]:
    """Return the words that each field of ``[aggregation]`` takes; other fields are left out."""
    found = {}
    for name, field in AggregationSection.model_fields.items():
        if name in _ELSEWHERE:
            continue
        words = tuple(_words(field.annotation))
        if words:
            found[name] = words
    return found


def optional() -> dict[str, tuple[str, ...]]:
    """Return the axes of which one value is measured unless others are named: the first."""
    return {
        LINK: tuple(_words(LinkSection.model_fields["up"].annotation)),
        SHARE: tuple(_words(AggregationSection.model_fields["share"].annotation)),
        SERVER: ("scenario", PLAIN_MEANS),
    }


def kinds_of(policy: str) -> str:
    """Return the factors that a policy moves, such as ``"AB"``."""
    return POLICIES[policy].moved


def axes_of(*, quick: bool) -> Axes:
    """Return the values of every axis, in words."""
    names = (QUICK_SCENARIO,) if quick else SCENARIOS
    epsilons = QUICK_EPSILONS if quick else EPSILONS
    count = QUICK_SEEDS if quick else SEEDS
    firsts = sorted({open_scenario(name).config.run.seed for name in names})
    seeds = dict.fromkeys(str(first + number) for number in range(count) for first in firsts)
    return {
        "scenario": names,
        **choices(),
        **optional(),
        "epsilon": (*map(word, epsilons), NO_PRIVACY),
        "seed": tuple(seeds),
    }


def cases(only: Sequence[str], *, quick: bool) -> list[Case]:
    """Return the runs to do, seed by seed, so that what was interrupted can be compared.

    Args:
        only: words that leave cases out; of optional axes the first value is taken unless named.
        quick: with the smallest sizes.

    Raises:
        InvalidValue: for a word that names nothing.
    """
    left = selected(axes_of(quick=quick), only)
    fields, extras = list(choices()), _extras(left, only)
    found = [
        _case(name, _choices(fields, words, extra), epsilon, int(seed), quick=quick)
        for seed in left["seed"]
        for name in left["scenario"]
        for words in itertools.product(*(left[field] for field in fields))
        for extra in extras
        for epsilon in map(_epsilon, left["epsilon"])
    ]
    return list({case.name: case for case in found}.values())


def _extras(left: Mapping[str, Sequence[str]], only: Sequence[str]) -> list[dict[str, str]]:
    """Return every combination of optional values that are named; the usual ones are left out."""
    named = {word.rpartition("=")[2] for word in only}
    axes = {
        axis: [word for word in left[axis] if word in named] or [words[0]]
        for axis, words in optional().items()
    }
    return [
        {
            axis: word
            for (axis, usual), word in zip(optional().items(), combination, strict=True)
            if word != usual[0]
        }
        for combination in itertools.product(*axes.values())
    ]


def _choices(
    fields: Sequence[str], words: Sequence[str], extra: Mapping[str, str]
) -> dict[str, str]:
    """Return what a case says of the axes."""
    found = dict(zip(fields, words, strict=True)) | dict(extra)
    if not POLICIES[found["policy"]].linear:
        found[SERVER] = PLAIN_MEANS
    return found


def require_files(wanted: Sequence[Case], *, base_dir: Path) -> None:
    """Look for the data and the base models of all cases before the first is run.

    Args:
        wanted: the cases.
        base_dir: what relative paths of the scenarios are relative to.

    Raises:
        DataFileNotFound: naming everything that is missing and what to do.
    """
    configs = {case.scenario: case.resolved.config for case in wanted if case.resolved is not None}
    missing = {name: list(_missing(config, base_dir)) for name, config in configs.items()}
    if not any(missing.values()):
        return
    what = "; ".join(f"{name}: {', '.join(paths)}" for name, paths in missing.items() if paths)
    there = " ".join(f"--only {name}" for name, paths in missing.items() if not paths)
    hint = "Paths are relative to the working directory: put the files there"
    hint += f", or leave their scenarios out with {there or f'--only {QUICK_SCENARIO}'}."
    msg = f"Files of the scenarios are missing: {what}."
    raise DataFileNotFound(msg, hint=hint)


def word(epsilon: float | None) -> str:
    """Return an epsilon as a word of the command line."""
    return NO_PRIVACY if epsilon is None else f"{epsilon:g}"


def _epsilon(text: str) -> float | None:
    """Return the epsilon that a word of the command line names."""
    return None if text == NO_PRIVACY else float(text)


def _words(annotation: object) -> Iterator[str]:
    """Yield the strings of every Literal in a type, in order."""
    for part in typing.get_args(annotation):
        if typing.get_origin(annotation) is Literal:
            yield from [part] if isinstance(part, str) else []
        else:
            yield from _words(part)


def _case(
    scenario: str, chosen: Mapping[str, str], epsilon: float | None, seed: int, *, quick: bool
) -> Case:
    """Resolve one case, or keep the reason why it cannot be."""
    sizes = QUICK if quick else {}
    rounds = sizes.get("run.rounds", open_scenario(scenario).config.run.rounds)
    values: dict[str, object] = {**PLAIN, **sizes, "run.seed": seed, "evaluation.every": rounds}
    for field, value in chosen.items():
        values |= MEANS if field == SERVER else {_key(field): value}
    values |= {"privacy.mode": "none"} if epsilon is None else {"privacy.epsilon": epsilon}
    resolved, refusal = None, ""
    try:
        resolved = open_scenario(scenario, [f"{key}={_toml(v)}" for key, v in values.items()])
    except ConflictingSettings as error:
        refusal = "; ".join(problem.message for problem in error.problems)
    return Case(
        scenario=scenario,
        choices=chosen,
        epsilon=epsilon,
        seed=seed,
        resolved=resolved,
        refusal=refusal,
    )


def _key(field: str) -> str:
    """Return the key of a scenario that a choice sets."""
    return "link.up" if field == LINK else f"aggregation.{field}"


def _toml(value: object) -> str:
    """Write a word or number as TOML."""
    if isinstance(value, bool):
        return "true" if value else "false"
    return f'"{value}"' if isinstance(value, str) else f"{value}"


def _missing(config: RunConfig, base_dir: Path) -> Iterator[str]:
    """Yield the paths of a scenario that lead nowhere."""
    data, base = config.data.path, config.model.base
    if not data.startswith((BUILTIN_PREFIX, _HUB)) and not (base_dir / data).is_file():
        yield data
    if base != DEMO and base.startswith((".", "/")) and not (base_dir / base).is_dir():
        yield base
