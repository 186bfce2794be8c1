"""Starting runs by the same command that an operator would type."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from shared.errors import FleetError, InvalidValue

_SCENARIO = re.compile(r"[a-z0-9][a-z0-9-]{0,63}")
_SECONDS = 300.0
_LONGEST_NOTE = 400


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """A built-in scenario: its name, and what it is about."""

    name: str
    about: str


class Controls(Protocol):
    """How runs are started."""

    def scenarios(self) -> Sequence[Scenario]:
        """Return the scenarios that can be started."""
        ...

    def start(self, scenario: str) -> str:
        """Prepare and order a run; return its name."""
        ...


class CommandControls:
    """Runs ``fedslm`` in a process of its own, one command at a time.

    The dashboard belongs to the server's package, which may not reach up to the command line; and a
    run is prepared with libraries that a web server should not load.

    Args:
        home: the server's folder.
        command: how ``fedslm`` is started.
    """

    def __init__(self, home: Path, *, command: Sequence[str] | None = None) -> None:
        self._home = home
        self._command = tuple(command or (sys.executable, "-m", "simulations.cli"))
        self._one = threading.Lock()
        self._known: tuple[Scenario, ...] | None = None

    def scenarios(self) -> Sequence[Scenario]:
        """Return the built-in scenarios; none if they cannot be listed."""
        if self._known is None:
            try:
                found = json.loads(self._run("simulate", "--list", "--json"))["scenarios"]
                self._known = tuple(
                    Scenario(name=str(row["name"]), about=str(row["about"])) for row in found
                )
            except (FleetError, ValueError, KeyError, TypeError):
                return ()
        return self._known

    def start(self, scenario: str) -> str:
        """Prepare and order a run of a built-in scenario.

        Raises:
            InvalidValue: for a name that is not one of a built-in scenario.
            FleetError: with what the command said, if it fails.
        """
        known = [one.name for one in self.scenarios()]
        if _SCENARIO.fullmatch(scenario) is None or scenario not in known:
            msg = f"scenario={scenario[:64]!r}, expected one of the list."
            raise InvalidValue(msg, hint="Choose a scenario from the list.")
        return _said(self._run("server", "start-run", scenario, "--dir", str(self._home), "--json"))

    def _run(self, *arguments: str) -> str:
        """Run one command and return its output.

        Raises:
            FleetError: if it fails, does not end, or another one is under way.
        """
        if not self._one.acquire(blocking=False):
            msg = "another command is under way."
            raise FleetError(msg, hint="Wait until it has ended and try again.")
        try:
            done = subprocess.run(  # noqa: S603 our own program; arguments are checked
                [*self._command, *arguments],
                capture_output=True,
                text=True,
                check=False,
                timeout=_SECONDS,
                stdin=subprocess.DEVNULL,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            msg = f"the command did not end within {_SECONDS:.0f} s or could not be started."
            raise FleetError(msg, hint="Try it in a terminal.") from error
        finally:
            self._one.release()
        if done.returncode != 0:
            raise FleetError(_problem(done), hint="Try it in a terminal to see more.")
        return done.stdout


def _problem(done: subprocess.CompletedProcess[str]) -> str:
    """Return what a failed command said: our own errors are safe to show."""
    for text in (done.stdout, done.stderr):
        try:
            found = json.loads(text)
        except ValueError:
            continue
        if isinstance(found, dict) and isinstance(found.get("message"), str):
            return str(found["message"])[:_LONGEST_NOTE]
    return f"the command ended with code {done.returncode}."


def _said(text: str) -> str:
    """Return the name of the run that a command has printed, or an empty string."""
    try:
        found: Any = json.loads(text)
    except ValueError:
        return ""
    name = found.get("name") if isinstance(found, dict) else None
    return str(name)[:100] if isinstance(name, str) else ""
