"""What only the operator knows about a deployment, read from a TOML file.

Whatever is left out is exported as "not stated by the operator", never guessed.
"""

from __future__ import annotations

import tomllib
from datetime import date
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, Strict, ValidationError

from shared.errors import InvalidValue, Problem, UnknownKey
from shared.registry import suggestion

NOT_STATED = "not stated by the operator"

Text = Annotated[str, Strict(), Field(min_length=1)]
Count = Annotated[int, Strict(), Field(ge=1)]


class Curator(BaseModel):
    """Who publishes the adapter."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Text
    type: Text = NOT_STATED


class About(BaseModel):
    """The operator's part of a registry record."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Text | None = Field(default=None, description="of the data product")
    slug: Text | None = Field(default=None, description="of its page in the registry")
    curators: tuple[Curator, ...] = Field(default=(), description="tables of name and type")
    intended_use: Text | None = Field(default=None, description="what the adapter is for")
    region: Text | None = Field(
        default=None, description="whom the data describe, whose law applies"
    )
    sector: Text | None = Field(default=None, description="Technology, Healthcare, ...")
    description: Text | None = Field(default=None, description="of the adapter, in a few sentences")
    publication_date: date | None = Field(default=None, description="of the first adapter")
    data_domain: Text | None = Field(default=None, description="which data sets could have been")
    data_source_type: Literal["Static", "Dynamic"] | None = Field(
        default=None, description='"Dynamic" if new data come in over time'
    )
    other_releases: Text | None = Field(
        default=None, description="anything else published from the same data, noised or not"
    )
    preprocessing: Text | None = Field(default=None, description="before the noise, and its cost")
    hyperparameter_tuning: Text | None = Field(
        default=None, description="on which data settings were chosen, and what that cost"
    )
    security: Text | None = Field(
        default=None, description="how the text on the clients is stored, and who may read it"
    )
    justification: Text | None = Field(default=None, description="why these choices")
    examples_per_person: Count | None = Field(
        default=None, description="bound on the examples that one person may own"
    )
    clients_per_person: Count | None = Field(
        default=None, description="bound on the clients that one person may own"
    )
    sources: Text | None = Field(default=None, description="where more can be read")
    registry_authors: tuple[Text, ...] = Field(default=(), description="who wrote the record")


def read_about(path: Path | None) -> About:
    """Read an operator's file.

    Args:
        path: a TOML file with the keys of :class:`About`, or None for nothing.

    Raises:
        InvalidValue: if the file cannot be read or is no TOML, or for a value of another type.
        UnknownKey: for a key that does not exist, with the nearest one that does.
    """
    if path is None:
        return About()
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        msg = f"--about {path.name}: cannot be read ({error.strerror})."
        raise InvalidValue(msg) from error
    except ValueError as error:
        msg = f"--about {path.name}: not TOML ({error})."
        raise InvalidValue(msg, hint='One line is: name = "Clinic notes".') from error
    try:
        return About.model_validate(values)
    except ValidationError as error:
        problems = [_problem(found["loc"], found["type"], found["msg"]) for found in error.errors()]
        kind = UnknownKey if problems[0].code == UnknownKey.code else InvalidValue
        msg = f"--about {path.name}: {'; '.join(str(problem) for problem in problems)}"
        raise kind(msg, problems=problems) from error


def _problem(location: tuple[int | str, ...], kind: str, message: str) -> Problem:
    """Say what is wrong with one key, without its value."""
    key = ".".join(map(str, location))
    if kind == "extra_forbidden":
        known = Curator.model_fields if key.startswith("curators.") else About.model_fields
        hint = suggestion(str(location[-1]), known)
        return Problem(key=key, message="unknown key.", hint=hint, code=UnknownKey.code)
    return Problem(key=key, message=f"{message}.")
