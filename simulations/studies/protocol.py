"""What a study is: some arms that differ in one thing, the same measurements, a table and plots.

Every arm is run once per seed. A seed changes data, canaries, coins and training together, and all
arms of one seed share them, so arms are compared on the same secrets.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from shared.errors import InvalidValue
from simulations.studies.numbers import Estimate

Value: TypeAlias = str | int | float | bool | tuple[str, ...] | None
"""A setting of a scenario; None leaves the setting out."""

Run: TypeAlias = Mapping[str, Any]
"""What :func:`simulations.studies.measuring.measure` found about one run; JSON values only."""

FOLDER = Path(__file__).parent
_SLUG = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*\Z")


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """The shape of a base model that a study pre-trains on the embedded public text.

    Attributes:
        hidden: width.
        layers: decoder layers.
        heads: attention heads.
        intermediate: width of the feed-forward layer.
        steps: optimizer steps.
        sequences: packed sequences of 256 tokens a step.
    """

    hidden: int
    layers: int
    heads: int
    intermediate: int
    steps: int
    sequences: int = 4

    @property
    def name(self) -> str:
        """A folder name that no other shape has."""
        return f"h{self.hidden}-l{self.layers}-f{self.intermediate}-s{self.steps}x{self.sequences}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Arm:
    """One setting of what a study varies.

    Attributes:
        name: lower-case words and digits joined by hyphens; part of folder names.
        label: what a person calls it.
        overrides: ``section.key`` of the scenario to its value.
        shape: of a base model to pre-train for it; None for the one that the scenario names.

    Raises:
        InvalidValue: for a name that is none.
    """

    name: str
    label: str
    overrides: Mapping[str, Value] = field(default_factory=dict)
    shape: Shape | None = None

    def __post_init__(self) -> None:
        """Refuse a name that would make an odd folder."""
        if not _SLUG.match(self.name):
            msg = f"arm={self.name!r}, expected lower-case words joined by hyphens."
            raise InvalidValue(msg)


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """One column of a study's table.

    Attributes:
        key: of a row's estimates.
        title: with the unit.
        digits: after the point.
    """

    key: str
    title: str
    digits: int = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One line of a study's table: estimates over seeds.

    Attributes:
        name: of the arm, or of a group of canaries.
        label: what a person calls it.
        estimates: mean, standard deviation and number of seeds, by column key.
    """

    name: str
    label: str
    estimates: Mapping[str, Estimate]

    def mean(self, key: str) -> float | None:
        """Return the mean of a column; None where nothing was measured."""
        found = self.estimates.get(key)
        return None if found is None else found.mean

    def sd(self, key: str) -> float:
        """Return the standard deviation of a column over seeds; 0 where there is none."""
        found = self.estimates.get(key)
        return 0.0 if found is None or found.sd is None else found.sd

    def to_dict(self) -> dict[str, object]:
        """Return the JSON form."""
        return {
            "name": self.name,
            "label": self.label,
            "estimates": {key: value.to_dict() for key, value in self.estimates.items()},
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Study:
    """A question, the arms that answer it, and how the answer is shown.

    Attributes:
        name: of the study and of its scenario file.
        question: one line.
        arms: the arms, given whether this is only a quick look.
        quick: further overrides of every arm in a quick look.
        rows: from arms and all runs to the table.
        columns: of the table.
        draw: from rows and runs to plots, by file stem.
    """

    name: str
    question: str
    arms: Callable[[bool], tuple[Arm, ...]]
    quick: Mapping[str, Value]
    rows: Callable[[Sequence[Arm], Sequence[Run]], list[Row]]
    columns: tuple[Column, ...]
    draw: Callable[[Sequence[Row], Sequence[Run]], Mapping[str, str]]

    @property
    def scenario(self) -> Path:
        """The scenario that the arms are changes of."""
        return FOLDER / f"{self.name}.toml"
