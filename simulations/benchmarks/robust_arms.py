"""What the benchmark ``robust`` compares: defences under attacks, by share of attackers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from shared.configfile import ResolvedConfig, resolve
from simulations.benchmarks.quality_select import Axes, selected

# Every client takes part in every round, so that a share of the clients is that of each round.
SCENARIO: Mapping[str, Mapping[str, object]] = {
    "run": {"name": "robust", "rounds": 8},
    "model": {"base": "demo"},
    "lora": {"r": 4, "alpha": 8.0},
    "data": {"path": "builtin:clinics", "records": 8, "max_length": 64, "holdout": 0.25},
    "clients": {
        "population": 20,
        "cohort": 20.0,
        "local_steps": 3,
        "batch_size": 4,
        "learning_rate": 1.0,
    },
    "privacy": {"mode": "none"},
    "aggregation": {"policy": "ffa"},
    "attack": {"prompts": 14},
    "audit": {"profile": "none", "releases": False},
    "evaluation": {"every": 8, "clients": 1, "final_clients": 20},
    "performance": {"workers": 1, "threads": 1},
}
QUICK: Mapping[str, object] = {
    "run.rounds": 1,
    "clients.local_steps": 1,
    "clients.population": 10,
    "clients.cohort": 10.0,
    "data.records": 4,
    "evaluation.final_clients": 2,
    "attack.prompts": 2,
}

# A defender that assumes the largest share that is tried, whatever there is.
ASSUMED = 0.3
BOUND = 3.0
NO_ATTACK = "none"
ATTACKS: Mapping[str, Mapping[str, object]] = {
    "label-flip": {},
    "sign-flip": {"attack.scale": 4.0},
    "scaled": {"attack.scale": 50.0},
    "backdoor": {"attack.scale": 3.0},
}
DEFENCES: Mapping[str, Mapping[str, object]] = {
    "mean": {},
    "norm-bound": {"aggregation.norm_bound": BOUND},
    **{
        rule: {"aggregation.robust": rule, "aggregation.attackers": ASSUMED}
        for rule in ("median", "trimmed-mean", "krum", "multi-krum", "geometric-median")
    },
}
SHARES = (0.1, 0.3)
SEEDS = (7, 8, 9)
QUICK_AXES: Axes = {
    "defence": ("mean", "trimmed-mean"),
    "attack": (NO_ATTACK, "backdoor"),
    "share": ("0", "0.3"),
    "seed": ("7",),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Arm:
    """One run.

    Attributes:
        defence: name of a defence.
        attack: kind of attack, or "none".
        share: of the clients that attack; 0 without an attack.
        seed: of the run.
        resolved: the scenario.
    """

    defence: str
    attack: str
    share: float
    seed: int
    resolved: ResolvedConfig

    @property
    def group(self) -> tuple[str, str, float]:
        """What runs with other seeds have in common."""
        return self.defence, self.attack, self.share

    @property
    def name(self) -> str:
        """The name of its run folder."""
        return f"{self.defence}-{self.attack}-{100 * self.share:.0f}-seed-{self.seed}"

    def __str__(self) -> str:
        """Return it in words."""
        return f"{self.defence}, {self.attack} by {self.share:.0%}, seed {self.seed}"


def axes_of(*, quick: bool) -> Axes:
    """Return the values of every axis, in words."""
    if quick:
        return QUICK_AXES
    return {
        "defence": tuple(DEFENCES),
        "attack": (NO_ATTACK, *ATTACKS),
        "share": ("0", *(f"{share:g}" for share in SHARES)),
        "seed": tuple(map(str, SEEDS)),
    }


def arms(only: Sequence[str], *, quick: bool) -> list[Arm]:
    """Return the runs to do, seed by seed, so that what was interrupted can be compared.

    Args:
        only: words that leave runs out, such as ``krum``, ``share=0.3`` or ``seed=7``.
        quick: with the smallest sizes.

    Raises:
        InvalidValue: for a word that names nothing.
    """
    left = selected(axes_of(quick=quick), only)
    return [
        _arm(defence, attack, float(share), int(seed), quick=quick)
        for seed in left["seed"]
        for attack in left["attack"]
        for share in left["share"]
        if (attack == NO_ATTACK) == (float(share) == 0.0)
        for defence in left["defence"]
    ]


def _arm(defence: str, attack: str, share: float, seed: int, *, quick: bool) -> Arm:
    """Return one run.

    Without attackers the backdoor is tried too: what it is answered by itself is what its success
    under an attack is to be compared with.
    """
    values: dict[str, object] = {"run.seed": seed, **(QUICK if quick else {})}
    values |= DEFENCES[defence]
    values |= {"attack.kind": "backdoor" if attack == NO_ATTACK else attack}
    values |= {"attack.share": share, **ATTACKS.get(attack, {})}
    sets = [f"{key}={value}" for key, value in values.items()]
    resolved = resolve(SCENARIO, sets, source="robust")
    return Arm(defence=defence, attack=attack, share=share, seed=seed, resolved=resolved)
