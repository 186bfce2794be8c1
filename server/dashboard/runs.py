"""What the run folders of a server say, read anew whenever a file changes."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from server.dashboard.files import FileCache, json_lines, json_object, rows, section
from server.dashboard.words import number
from server.fleetruns import ORDER, STATE
from server.prepared import IDENTITY, METRICS

SUMMARY = "summary.json"
AUDIT = "audit.json"
PAGES = ("report.html", "audit.html")
MOVING = ("ordered", "running", "waiting")
"""States of a run that goes on by itself."""
HALTED = ("stopped", "stopping", "failed")
"""States of a run that can be told to go on."""
VERDICTS = ("violation", "consistent", "inconclusive")

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Promise:
    """What a run says about privacy; epsilon is never without the rest.

    Attributes:
        mode: where noise is added; ``"none"`` for no privacy at all.
        unit: the privacy unit.
        relation: the neighbouring relation.
        delta: of every epsilon here.
        epsilon: spent so far, as the last round says; None where nothing is promised.
        cap: that the ledger enforces, if any.
        releases: noised releases so far.
        noise_source: where the noise comes from.
        noise_multiplier: of the plan; where it changes over the rounds, that of the first.
        noise_final: noise of the last rounds over that of the first; None where all have the same.
        vote_every: rounds from one vote of clients to the next; None where they do not vote.
        vote_noise: noise on a sum of votes, in votes.
        sampling_probability: of the plan.
        accountant: which one gave epsilon, once the run is finished.
    """

    mode: str
    unit: str | None
    relation: str | None
    delta: float | None
    epsilon: float | None
    cap: float | None
    releases: int | None
    noise_source: str | None
    noise_multiplier: float | None
    noise_final: float | None
    vote_every: float | None
    vote_noise: float | None
    sampling_probability: float | None
    accountant: str | None

    @property
    def private(self) -> bool:
        """Tell whether anything is promised."""
        return self.mode != "none"

    @property
    def seeded(self) -> bool:
        """Tell whether whoever knows the seed can take the noise away."""
        return self.private and self.noise_source == "seeded-simulation"


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One run folder.

    Attributes:
        name: of the folder.
        scenario: its name in the scenario file; None if ``run.json`` cannot be read.
        state: of a run on the fleet as its keeper says (see :mod:`server.fleetruns`), or
            ``"stopping"``; of another folder ``"open"`` (rounds are left), ``"completed"`` or
            ``"budget-exhausted"``; of either ``"damaged"``.
        reason: why it waits or has failed; may be empty.
        adapter: digest of the registered version, once there is one.
        rounds: finished ones.
        planned: rounds in all.
        population: clients.
        changed: seconds since 1970, when a round was last finished.
        promise: about privacy.
        verdict: of the audit report, if there is one.
        loss: the last that was measured.
        pages: report pages that are there.
    """

    name: str
    scenario: str | None
    state: str
    reason: str
    adapter: str | None
    rounds: int
    planned: int | None
    population: int | None
    changed: float
    promise: Promise
    verdict: str | None
    loss: float | None
    pages: tuple[str, ...]


class Runs:
    """The folder of run folders.

    Args:
        folder: ``runs/`` of the server.
        cache: shared with whatever else reads files.
    """

    def __init__(self, folder: Path, cache: FileCache) -> None:
        self._folder = folder
        self._cache = cache

    def names(self) -> list[str]:
        """Return the names of all runs, ascending."""
        return sorted(path.name for path in self._folders())

    def all(self) -> list[Run]:
        """Return every run, running ones first, then the one that changed last."""
        found = [self._read(path) for path in self._folders()]
        return sorted(found, key=lambda run: (run.state != "running", -run.changed, run.name))

    def get(self, name: str) -> Run | None:
        """Return one run; None for a name that is not exactly that of a run folder."""
        path = self.path(name)
        return None if path is None else self._read(path)

    def path(self, name: str) -> Path | None:
        """Return the folder of a run, looked up among what is there and never built from a name."""
        return next((path for path in self._folders() if path.name == name), None)

    def metrics(self, name: str) -> Sequence[Mapping[str, Any]]:
        """Return the finished rounds of a run."""
        path = self.path(name)
        return [] if path is None else self._cache.get(path / METRICS, _rounds) or []

    def summary(self, name: str) -> Mapping[str, Any]:
        """Return the small parts of a run's summary; empty while it runs."""
        path = self.path(name)
        return {} if path is None else self._cache.get(path / SUMMARY, _small_summary) or {}

    def audit(self, name: str) -> Mapping[str, Any]:
        """Return the small parts of a run's audit report; empty if there is none."""
        path = self.path(name)
        return {} if path is None else self._cache.get(path / AUDIT, _small_audit) or {}

    def page(self, name: str, page: str) -> Path | None:
        """Return a report page of a run, if it is there."""
        path = self.path(name)
        if path is None or page not in PAGES:
            return None
        file = path / page
        return file if file.is_file() and not file.is_symlink() else None

    def _folders(self) -> Iterator[Path]:
        """Yield the folders of runs; links lead elsewhere and are left out."""
        if not self._folder.is_dir():
            return
        for path in self._folder.iterdir():
            if _NAME.fullmatch(path.name) and path.is_dir() and not path.is_symlink():
                yield path

    def _read(self, path: Path) -> Run:
        """Read one run."""
        identity = self._cache.get(path / IDENTITY, _identity) or {}
        metrics = self._cache.get(path / METRICS, _rounds) or []
        summary = self._cache.get(path / SUMMARY, _small_summary) or {}
        audit = self._cache.get(path / AUDIT, _small_audit) or {}
        order = self._cache.get(path / ORDER, json_object) or {}
        progress = self._cache.get(path / STATE, json_object) or {}
        state = "damaged"
        if order and identity:
            state = _fleet_state(order, progress)
        elif identity or summary:
            state = str(summary.get("status", "completed")) if summary else "open"
        losses = [loss for row in metrics if (loss := number(row.get("loss"))) is not None]
        return Run(
            name=path.name,
            scenario=identity.get("scenario") or summary.get("scenario"),
            state=state,
            reason=_text(progress.get("reason")) or "",
            adapter=_text(progress.get("adapter")),
            rounds=len(metrics),
            planned=identity.get("rounds"),
            population=identity.get("population"),
            changed=_changed(path),
            promise=_promise(identity, metrics, section(summary, "privacy")),
            verdict=verdict_of(audit) if audit else None,
            loss=losses[-1] if losses else None,
            pages=tuple(name for name in PAGES if (path / name).is_file()),
        )


def _fleet_state(order: Mapping[str, Any], progress: Mapping[str, Any]) -> str:
    """Return the state of a run on the fleet; one that was told to stop is stopping."""
    state = _text(progress.get("state")) or "ordered"
    if order.get("wanted") == "stopped" and state in MOVING:
        return "stopping"
    return state


def verdict_of(report: Mapping[str, Any]) -> str:
    """Return a verdict; whatever is none of the three words is inconclusive."""
    found = report.get("verdict")
    return str(found) if found in VERDICTS else "inconclusive"


def _promise(
    identity: Mapping[str, Any],
    metrics: Sequence[Mapping[str, Any]],
    finished: Mapping[str, Any],
) -> Promise:
    """Collect what is said about privacy: by the summary, else the last round, else the plan."""
    plan = section(identity, "plan")
    last = metrics[-1] if metrics else {}

    def known(key: str) -> Any:  # noqa: ANN401 from JSON
        return next((t[key] for t in (finished, last, plan) if t.get(key) is not None), None)

    mode = str(known("mode") or "none") if identity or finished else "unknown"
    releases = number(known("releases"))
    return Promise(
        mode=mode,
        unit=_text(known("unit")),
        relation=_text(known("neighboring_relation")),
        delta=number(known("delta")),
        epsilon=number(known("epsilon")) if finished or metrics else 0.0,
        cap=number(known("cap")),
        releases=int(releases) if releases is not None else 0,
        noise_source=_text(known("noise_source")),
        noise_multiplier=number((finished or plan).get("noise_multiplier")),
        noise_final=number(section(plan, "schedule").get("final")),
        vote_every=number(section(plan, "vote").get("every")),
        vote_noise=number(section(plan, "vote").get("noise_multiplier")),
        sampling_probability=number(known("sampling_probability")),
        accountant=_text(known("accountant")),
    )


def _text(value: object) -> str | None:
    """Return a text, or None for anything else."""
    return value if isinstance(value, str) else None


def _changed(path: Path) -> float:
    """Return when the run last wrote a round or its summary, else when it was prepared."""
    for name in (SUMMARY, METRICS, IDENTITY):
        file = path / name
        if file.exists():
            return file.stat().st_mtime
    return path.stat().st_mtime


def _identity(data: bytes) -> dict[str, Any]:
    """Return what is shown of ``run.json``."""
    found = json_object(data)
    config = section(found, "config")
    planned = number(section(config, "run").get("rounds"))
    population = number(found.get("population"))
    plan = found.get("plan")
    if isinstance(plan, str):
        plan = json_object(plan.encode())
    if not config or not isinstance(plan, Mapping):
        return {}
    return {
        "scenario": _text(section(config, "run").get("name")),
        "rounds": None if planned is None else int(planned),
        "population": None if population is None else int(population),
        "plan": plan,
        "base": _text(section(config, "model").get("base")),
        "quantization": _text(section(config, "model").get("quantization")),
        "policy": _text(section(config, "aggregation").get("policy")),
        "scope": _text(section(config, "data").get("path")),
    }


def _rounds(data: bytes) -> list[dict[str, Any]]:
    """Return the finished rounds: those that have a number."""
    return [row for row in json_lines(data) if number(row.get("round")) is not None]


def _small_summary(data: bytes) -> dict[str, Any]:
    """Return a summary without its audit, which may be large."""
    found = json_object(data)
    found.pop("audit", None)
    return found


def _small_audit(data: bytes) -> dict[str, Any]:
    """Return an audit report without evidence, which may be large."""
    found = json_object(data)
    if not found:
        return {}
    kept = (
        "audit",
        "verdict",
        "strength",
        "metric",
        "value",
        "interval",
        "explanation",
        "detected",
        "positive_control",
        "alpha",
        "ceiling",
        "baseline",
    )
    head = (
        "verdict",
        "profile",
        "epsilon_claimed",
        "delta",
        "unit",
        "neighboring_relation",
        "mode",
    )
    findings = [{key: row.get(key) for key in kept} for row in rows(found, "findings")]
    return {**{key: found.get(key) for key in head}, "findings": findings}
