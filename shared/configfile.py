"""Reading, overriding and writing scenario files.

Precedence: defaults < file < ``--set section.key=value``. Every value remembers where it came
from; all problems of a scenario are reported at once, each with its key path and, for a near miss,
a suggestion.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from shared.config import RunConfig, sections
from shared.configrules import find_conflicts
from shared.errors import (
    ConfigError,
    ConflictingSettings,
    EmptyPopulation,
    InvalidValue,
    Problem,
    UnknownKey,
)
from shared.problems import expected
from shared.registry import suggestion

Tables = dict[str, dict[str, Any]]

_BY_TELLING: tuple[type[ConfigError], ...] = (
    UnknownKey,
    EmptyPopulation,
    ConflictingSettings,
    InvalidValue,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ResolvedConfig:
    """A validated scenario with the origin of each value.

    Attributes:
        config: the scenario.
        origins: ``"section.key"`` to ``"default"``, ``"file"`` or ``"--set"``.
        source: the file or built-in scenario it was read from.
    """

    config: RunConfig
    origins: Mapping[str, str]
    source: str

    def to_toml(self) -> str:
        """Write the scenario as TOML, each line with its origin as a comment."""
        lines = [f"# resolved from {self.source}", f"# digest {self.config.digest()}"]
        for name in sections():
            section = getattr(self.config, name)
            lines.append(f"\n[{name}]")
            for key in type(section).model_fields:
                value = getattr(section, key)
                origin = self.origins.get(f"{name}.{key}", "default")
                if value is None:
                    lines.append(f"# {key} is not set  ({origin})")
                else:
                    lines.append(f"{key} = {_toml_value(value)}  # {origin}")
        return "\n".join(lines) + "\n"


def load_config(
    path: Path, overrides: Sequence[str] = (), *, source: str | None = None
) -> ResolvedConfig:
    """Read a scenario file, apply overrides and validate the whole.

    Args:
        path: a TOML file.
        overrides: ``section.key=value`` strings; values are TOML, bare words are strings.
        source: how to name the file in messages; default its path as given.

    Raises:
        ConfigError: with every problem found (a subclass where all are of one kind).
    """
    label = source or str(path)
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        msg = f"{label} is not valid TOML: {error}."
        raise InvalidValue(msg, hint="Fix the line it names.") from error
    except OSError as error:
        msg = f"{label} cannot be read ({error.strerror})."
        raise ConfigError(msg, hint="Check the path and its permissions.") from error
    return resolve(tables, overrides, source=label)


def resolve(
    tables: Mapping[str, Any], overrides: Sequence[str] = (), *, source: str
) -> ResolvedConfig:
    """Merge tables with overrides and validate; see :func:`load_config`."""
    merged: Tables = {}
    origins: dict[str, str] = {}
    problems: list[Problem] = []
    for name, table in tables.items():
        if not isinstance(table, Mapping):
            problems.append(Problem(key=name, message="found a value, expected a [section]."))
            continue
        merged[name] = dict(table)
        origins.update({f"{name}.{key}": "file" for key in table})
    for override in overrides:
        key, value = parse_override(override)
        section, _, leaf = key.partition(".")
        merged.setdefault(section, {})[leaf] = value
        origins[key] = "--set"
    problems += _unknown_keys(merged)
    config = _validate(merged, problems)
    return ResolvedConfig(config=config, origins=origins, source=source)


def parse_override(text: str) -> tuple[str, Any]:
    """Split ``section.key=value`` and read the value as TOML, or as a bare string.

    Examples:
        >>> parse_override("privacy.mode=none")
        ('privacy.mode', 'none')
        >>> parse_override("lora.r=8")
        ('lora.r', 8)

    Raises:
        InvalidValue: if there is no ``=`` or no ``section.key`` before it.
    """
    key, equals, raw = text.partition("=")
    key = key.strip()
    if not equals or key.count(".") != 1 or not all(key.split(".")):
        msg = f"--set {text!r}, expected section.key=value."
        raise InvalidValue(msg, hint="For example: --set clients.cohort=50")
    try:
        return key, tomllib.loads(f"value = {raw}")["value"]
    except tomllib.TOMLDecodeError:
        return key, raw.strip()


def parse_json(text: str) -> RunConfig:
    """Read the JSON form of a scenario, as it travels to clients and lies in a run folder.

    Raises:
        ConfigError: as :func:`load_config`.
    """
    try:
        tables = json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        msg = "A scenario in JSON form cannot be parsed."
        raise InvalidValue(msg) from error
    if not isinstance(tables, dict):
        msg = "A scenario in JSON form is not an object."
        raise InvalidValue(msg)
    for table in tables.values():
        if isinstance(table, dict):
            for key in [k for k, v in table.items() if v is None]:
                del table[key]
    return resolve(tables, source="message").config


def _unknown_keys(tables: Tables) -> list[Problem]:
    """Find sections and keys that do not exist, with suggestions."""
    known = sections()
    problems = []
    for name, table in tables.items():
        if name not in known:
            hint = suggestion(name, known)
            problems.append(
                Problem(key=name, message="unknown section.", hint=hint, code=UnknownKey.code)
            )
            continue
        fields = known[name].model_fields
        problems += [
            Problem(
                key=f"{name}.{key}",
                message="unknown key.",
                hint=_key_hint(key, name),
                code=UnknownKey.code,
            )
            for key in table
            if key not in fields
        ]
    return problems


def _key_hint(key: str, section: str) -> str:
    """Suggest a key of the same section, else the section where the key exists."""
    known = sections()
    near = suggestion(key, known[section].model_fields)
    if near:
        return near
    homes = [name for name, model in known.items() if key in model.model_fields]
    return f"Did you mean '{homes[0]}.{key}'?" if homes else ""


def _validate(tables: Tables, problems: list[Problem]) -> RunConfig:
    """Build the config or raise one error that names every problem."""
    reported = {p.key for p in problems}
    try:
        config = RunConfig.model_validate(tables)
    except ValidationError as error:
        problems += _from_pydantic(error, reported, tables)
        raise _config_error(problems) from None
    conflicts = find_conflicts(config)
    if problems or conflicts:
        raise _config_error([*problems, *conflicts])
    return config


def _from_pydantic(error: ValidationError, reported: set[str], tables: Tables) -> list[Problem]:
    """Translate pydantic's errors into problems, one per key."""
    problems: dict[str, Problem] = {}
    for item in error.errors(include_url=False):
        key = ".".join(str(part) for part in item["loc"][:2])
        if key in reported or item["type"] == "extra_forbidden" or key in problems:
            continue
        if item["type"] == "missing":
            message = "is missing; it has no default."
        else:
            section, _, leaf = key.partition(".")
            found = tables.get(section, {}).get(leaf)
            message = f"found {found!r}, expected: {expected(item)}."
        problems[key] = Problem(key=key, message=message)
    return list(problems.values())


def _config_error(problems: list[Problem]) -> ConfigError:
    """Write one message and choose the most telling class among the problems' codes."""
    codes = {problem.code for problem in problems}
    cls = next(c for c in _BY_TELLING if c.code in codes)
    count = len(problems)
    head = "The scenario has 1 problem" if count == 1 else f"The scenario has {count} problems"
    body = "\n".join(f"  {problem}" for problem in problems)
    return cls(f"{head}:\n{body}", problems=problems)


def _toml_value(value: object) -> str:
    """Write one value as TOML; strings are JSON strings, which TOML reads alike."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, Mapping):
        pairs = (f"{json.dumps(key)} = {_toml_value(item)}" for key, item in value.items())
        return "{" + ", ".join(pairs) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_toml_value(v) for v in value) + "]"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, float):
        text = repr(value)
        return text if any(c in text for c in ".e") else f"{text}.0"
    return str(value)
