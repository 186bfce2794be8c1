"""The state of runs, read from their folders as they are now; a damaged folder stops nobody."""

from __future__ import annotations

import json
import math
import os
import stat
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast, get_args

from server.control.refusals import NotThere
from server.home import ServerHome
from shared.errors import InvalidValue

# The files of a run folder; whoever writes them imports Flower and scipy, which is not needed here.
IDENTITY = "run.json"
METRICS = "metrics.jsonl"
SUMMARY = "summary.json"
AUDIT = "audit.json"
ORDER = "order.json"
PROGRESS = "fleet.json"
SIGNATURE = "audit.sig.json"

# A larger file is not one that a run wrote.
_MAX_FILE = 16_000_000
MAX_AUDIT_BYTES = 3_000_000
_CACHED = 256

State = Literal[
    "prepared",
    "ordered",
    "running",
    "waiting",
    "stopped",
    "completed",
    "budget-exhausted",
    "failed",
    "damaged",
]
_FLEET_STATES = frozenset(get_args(State)) - {"prepared", "damaged"}


@dataclass(frozen=True, slots=True, kw_only=True)
class RunState:
    """What is known about one run.

    Attributes:
        name: of its folder.
        state: of a run on the fleet what its keeper says (:mod:`server.fleetruns`); of another
            folder ``"prepared"`` before the first round has finished, then ``"running"``, and what
            its summary says once that is written. ``"damaged"`` without a plan.
        mode: of the plan.
        rounds_done: finished rounds.
        rounds_planned: of the plan.
        epsilon: of the run's worst subject after the last finished round; ``None`` where nothing
            bounds it or nothing was released.
        delta: of that epsilon; ``None`` in mode none.
        unit: the privacy unit, or empty.
        relation: the neighbouring relation, or empty.
        releases: noised releases about that subject.
        cap: of that epsilon.
        verdict: of the audit; empty without one.
        config_digest: of the scenario.
        changed: when a file of it was last written, Unix seconds.
        rounds: the records of the finished rounds.
    """

    name: str
    state: State
    mode: str
    rounds_done: int
    rounds_planned: int
    epsilon: float | None
    delta: float | None
    unit: str
    relation: str
    releases: int | None
    cap: float | None
    verdict: str
    config_digest: str
    changed: float
    rounds: tuple[Mapping[str, Any], ...]


class RunStates:
    """Reads run folders.

    Args:
        home: the server's folder.
    """

    def __init__(self, home: ServerHome) -> None:
        self._home = home
        self._cache: OrderedDict[tuple[str, str], tuple[tuple[int, int], object]] = OrderedDict()

    def names(self) -> list[str]:
        """Return the names of all runs, ascending; links and other things are left out."""
        try:
            with os.scandir(self._home.runs) as entries:
                found = [e.name for e in entries if e.is_dir(follow_symlinks=False)]
        except FileNotFoundError:
            return []
        return sorted(name for name in found if self._is_run(name))

    def newest(self, count: int) -> list[RunState]:
        """Return the runs that changed last, newest first."""
        names = sorted(self.names(), key=self._changed, reverse=True)[:count]
        return [self.state(name) for name in names]

    def state(self, name: str) -> RunState:
        """Return what is known about a run.

        Raises:
            NotThere: if there is none of this name.
        """
        folder = self.folder(name)
        identity = self._object(folder, IDENTITY)
        audit = self._object(folder, AUDIT)
        rounds = self._rounds(folder)
        plan = _mapping(identity.get("plan"))
        last = rounds[-1] if rounds else {}
        return RunState(
            name=name,
            state=self._state(folder, identity, rounds),
            mode=_text(plan.get("mode")),
            rounds_done=len(rounds),
            rounds_planned=_count(plan.get("rounds")) or 0,
            epsilon=_real(last.get("epsilon")),
            delta=_real(plan.get("delta")),
            unit=_text(plan.get("unit")),
            relation=_text(plan.get("neighboring_relation")),
            releases=_count(last.get("releases")),
            cap=_real(plan.get("cap")),
            verdict=_text(audit.get("verdict")),
            config_digest=_text(identity.get("config_digest")),
            changed=self._changed(name),
            rounds=rounds,
        )

    def audit(self, name: str) -> tuple[bytes, bytes]:
        """Return the audit report of a run and its signature, as they lie there.

        Raises:
            NotThere: if the run has none.
        """
        folder = self.folder(name)
        report = _read(folder / AUDIT, MAX_AUDIT_BYTES)
        if report is None:
            msg = f"run {name} has no audit report."
            raise NotThere(msg)
        return report, _read(folder / SIGNATURE, MAX_AUDIT_BYTES) or b""

    def folder(self, name: str) -> Path:
        """Return the folder of a run.

        Raises:
            NotThere: if there is none, or the name could not be one's.
        """
        if not self._is_run(name):
            msg = "there is no run of this name."
            raise NotThere(msg)
        return self._home.run_folder(name)

    def _is_run(self, name: str) -> bool:
        """Tell whether a name is that of a run's own folder."""
        try:
            folder = self._home.run_folder(name)
        except InvalidValue:
            return False
        return not folder.is_symlink() and (folder / IDENTITY).is_file()

    def _changed(self, name: str) -> float:
        """Return when a run last wrote."""
        folder = self._home.run_folder(name)
        times = [_times(folder / file)[0] for file in (IDENTITY, METRICS, PROGRESS, SUMMARY, AUDIT)]
        return max(times) / 1e9

    def _state(
        self, folder: Path, identity: Mapping[str, Any], rounds: tuple[Mapping[str, Any], ...]
    ) -> State:
        """Say how far a run is."""
        if not _mapping(identity.get("plan")):
            return "damaged"
        if self._object(folder, ORDER):
            return _known(self._object(folder, PROGRESS).get("state"), otherwise="ordered")
        told = self._object(folder, SUMMARY).get("status")
        return _known(told, otherwise="running" if rounds else "prepared")

    def _object(self, folder: Path, name: str) -> Mapping[str, Any]:
        """Return a JSON object of a run; empty if it is missing or damaged."""
        found = self._cached(folder, name, _parse_object)
        return found if isinstance(found, Mapping) else {}

    def _rounds(self, folder: Path) -> tuple[Mapping[str, Any], ...]:
        """Return the finished rounds; a torn last line is left out."""
        found = self._cached(folder, METRICS, _parse_lines)
        return found if isinstance(found, tuple) else ()

    def _cached(self, folder: Path, name: str, parse: Callable[[bytes], object]) -> object:
        """Return a parsed file, read again only if it changed."""
        path, key = folder / name, (folder.name, name)
        stamp = _times(path)
        known = self._cache.get(key)
        if known is not None and known[0] == stamp:
            return known[1]
        data = _read(path, _MAX_FILE)
        value = None if data is None else parse(data)
        self._cache[key] = (stamp, value)
        while len(self._cache) > _CACHED:
            self._cache.popitem(last=False)
        return value


def _known(state: object, *, otherwise: State) -> State:
    """Return a state that a keeper or a summary wrote; another one if it is none of ours."""
    return cast(State, state) if isinstance(state, str) and state in _FLEET_STATES else otherwise


def _times(path: Path) -> tuple[int, int]:
    """Return when a file changed (nanoseconds) and its size; zeros without one."""
    try:
        found = path.stat(follow_symlinks=False)
    except OSError:
        return 0, 0
    return found.st_mtime_ns, found.st_size


def _read(path: Path, limit: int) -> bytes | None:
    """Return a regular file of bounded size; None for anything else."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None
    with os.fdopen(descriptor, "rb") as stream:
        facts = os.fstat(stream.fileno())
        if not (stat.S_ISREG(facts.st_mode) and facts.st_size <= limit):
            return None
        data = stream.read(limit + 1)
    return data if len(data) <= limit else None


def _parse_object(data: bytes) -> Mapping[str, Any] | None:
    """Parse a JSON object."""
    try:
        found = json.loads(data)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _parse_lines(data: bytes) -> tuple[Mapping[str, Any], ...]:
    """Parse one JSON object a line, up to the first line that is none."""
    records: list[Mapping[str, Any]] = []
    for line in data.splitlines():
        found = _parse_object(line)
        if found is None:
            break
        records.append(found)
    return tuple(records)


def _mapping(value: object) -> Mapping[str, Any]:
    """Return a mapping; empty for anything else."""
    return value if isinstance(value, Mapping) else {}


def _text(value: object) -> str:
    """Return short text; empty for anything else."""
    return value[:200] if isinstance(value, str) else ""


def _real(value: object) -> float | None:
    """Return a finite number."""
    if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        return float(value)
    return None


def _count(value: object) -> int | None:
    """Return a number of things."""
    good = isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**32
    return int(str(value)) if good else None
