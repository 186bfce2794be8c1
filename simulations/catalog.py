"""Finding scenarios: by name among the built-in ones, or by path."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from shared.configfile import ResolvedConfig, load_config
from shared.errors import ScenarioNotFound
from shared.registry import suggestion

FOLDER = Path(__file__).parent / "scenarios"


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """A built-in scenario.

    Attributes:
        name: what ``fedslm simulate NAME`` takes.
        path: its file.
        about: its second comment line.
    """

    name: str
    path: Path
    about: str


def scenarios() -> list[Scenario]:
    """Return the built-in scenarios by name."""
    found = []
    for path in sorted(FOLDER.glob("*.toml")):
        lines = path.read_text(encoding="utf-8").splitlines()
        comments = [line.removeprefix("#").strip() for line in lines if line.startswith("#")]
        found.append(Scenario(name=path.stem, path=path, about=comments[1]))
    return found


def find_scenario(name: str) -> tuple[Path, str]:
    """Return the file of a scenario and how to name it in messages.

    Args:
        name: a built-in name, or the path of a TOML file.

    Raises:
        ScenarioNotFound: if it is neither; suggests the nearest built-in name.
    """
    known = {scenario.name: scenario.path for scenario in scenarios()}
    if name in known:
        return known[name], name
    path = Path(name)
    if path.is_file():
        return path, name
    hint = suggestion(name, known) or "List the built-in ones with: fedslm simulate --list"
    msg = f"No scenario and no file is called {name!r}."
    raise ScenarioNotFound(msg, hint=hint)


def open_scenario(name: str, overrides: Sequence[str] = ()) -> ResolvedConfig:
    """Load a scenario by name or path with overrides; errors as the loaders'."""
    path, source = find_scenario(name)
    return load_config(path, overrides, source=source)
