"""Runs on a fleet: what the operator ordered, what became of it, and where it stands.

Three files in a run folder, each with one writer: ``order.json`` (the operator's command),
``fleet.json`` (the keeper of runs) and ``outcome.json`` (the ServerApp, when it ends). Orders need
no running server: they are carried out when there is one.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Literal

from server.home import ServerHome
from server.prepared import IDENTITY, read_metrics
from shared.canonical import canonical_json
from shared.errors import NotResumable, UsageError
from shared.files import write_json

ORDER: Final = "order.json"
STATE: Final = "fleet.json"
OUTCOME: Final = "outcome.json"
LOCK: Final = ".lock"
ADAPTER: Final = "adapter"

State = Literal[
    "ordered", "running", "waiting", "stopped", "completed", "budget-exhausted", "failed"
]
FINAL: Final[frozenset[State]] = frozenset({"completed", "budget-exhausted", "failed"})

_SCHEMA = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOrder:
    """What the operator wants of a run.

    Attributes:
        wanted: "running" or "stopped".
        base_model: as the scenario names it.
        base_digest: of the base that the adapter's shapes were taken from.
        ordered_at: when, UTC.
    """

    wanted: Literal["running", "stopped"]
    base_model: str
    base_digest: str
    ordered_at: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RunProgress:
    """What the keeper knows about a run.

    Attributes:
        state: see the module.
        flower_run: Flower's number of the newest attempt; None before the first.
        attempts: attempts since a round was last released.
        rounds: released rounds when the newest attempt began.
        next_try: Unix seconds before which a waiting run is not started again.
        reason: why it waits or failed; a sentence.
        adapter: digest of the registered version, once there is one.
        ordered_at: of the order that a failed run failed under.
    """

    state: State = "ordered"
    flower_run: int | None = None
    attempts: int = 0
    rounds: int = 0
    next_try: float = 0.0
    reason: str = ""
    adapter: str | None = None
    ordered_at: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How an attempt ended, in the ServerApp's own words.

    Attributes:
        state: "completed", "budget-exhausted" or "failed".
        code: of the error; empty if there was none.
        message: of the error.
        rounds: finished rounds.
    """

    state: Literal["completed", "budget-exhausted", "failed"]
    code: str
    message: str
    rounds: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RunView:
    """A run as it stands.

    Attributes:
        name: of its folder.
        scenario: name in the scenario file.
        state: see :class:`RunProgress`.
        wanted: what the operator wants.
        round: finished rounds.
        rounds: planned rounds.
        population: clients.
        reason: why it waits or failed.
        epsilon: spent; None without privacy or before the first round.
        delta: of that epsilon.
        loss: last measured.
        adapter: digest of the registered version.
    """

    name: str
    scenario: str
    state: State
    wanted: str
    round: int
    rounds: int
    population: int
    reason: str
    epsilon: float | None
    delta: float | None
    loss: float | None
    adapter: str | None

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form."""
        return asdict(self)


class FleetRuns:
    """The runs of a server's folder.

    Args:
        home: the folder.
    """

    def __init__(self, home: ServerHome) -> None:
        self._home = home

    def names(self) -> tuple[str, ...]:
        """Return the names of all runs that were ordered, ascending."""
        found = self._home.runs.glob(f"*/{ORDER}")
        return tuple(sorted(path.parent.name for path in found))

    def folder(self, name: str) -> Path:
        """Return the folder of a run that was ordered.

        Raises:
            UsageError: if there is none of this name.
            InvalidValue: for a name that none could have.
        """
        folder = self._home.run_folder(name)
        if not (folder / ORDER).is_file():
            known = ", ".join(self.names()[:10]) or "none"
            msg = f"There is no run {name!r} on this server."
            raise UsageError(msg, hint=f"Known: {known}.")
        return folder

    def order(self, name: str, *, base_model: str, base_digest: str) -> None:
        """Order that a prepared folder be run.

        Raises:
            NotResumable: if the folder holds no prepared run.
        """
        folder = self._home.run_folder(name)
        if not (folder / IDENTITY).is_file():
            msg = f"runs/{name} holds no prepared run."
            raise NotResumable(msg, hint="Make one with: fedslm server start-run SCENARIO")
        order = RunOrder(
            wanted="running", base_model=base_model, base_digest=base_digest, ordered_at=_now()
        )
        write_json(folder / ORDER, {"schema": _SCHEMA, **asdict(order)})

    def want(self, name: str, wanted: Literal["running", "stopped"]) -> RunView:
        """Order that a run stop, or go on from its checkpoint.

        Raises:
            UsageError: if there is no such run, or it is over.
        """
        folder = self.folder(name)
        progress = self.progress(name)
        if progress.state in FINAL - {"failed"}:
            msg = f"Run {name!r} is over ({progress.state})."
            raise UsageError(msg, hint="Start another one.")
        order = asdict(self.read_order(name)) | {"wanted": wanted, "ordered_at": _now()}
        write_json(folder / ORDER, {"schema": _SCHEMA, **order})
        return self.view(name)

    def read_order(self, name: str) -> RunOrder:
        """Return what the operator wants of a run."""
        return read_order(self.folder(name) / ORDER)

    def progress(self, name: str) -> RunProgress:
        """Return what the keeper wrote about a run."""
        found = _read(self.folder(name) / STATE)
        return RunProgress() if found is None else RunProgress(**found)

    def set_progress(self, name: str, progress: RunProgress) -> None:
        """Write what is known about a run; for the keeper alone."""
        write_json(self.folder(name) / STATE, {"schema": _SCHEMA, **asdict(progress)})

    def outcome(self, name: str) -> Outcome | None:
        """Return how the newest attempt ended; None if it did not say."""
        found = _read(self.folder(name) / OUTCOME)
        return None if found is None else Outcome(**found)

    def rounds(self, name: str) -> list[dict[str, Any]]:
        """Return the metrics of the finished rounds of a run."""
        return read_metrics(self.folder(name))

    def released(self, name: str) -> int:
        """Return how many rounds of a run were finished and not lost."""
        return sum(not record.get("aborted") for record in self.rounds(name))

    def view(self, name: str) -> RunView:
        """Return a run as it stands."""
        folder = self.folder(name)
        identity = _identity(folder)
        progress = self.progress(name)
        metrics = self.rounds(name)
        last = metrics[-1] if metrics else {}
        losses = [r["loss"] for r in metrics if r.get("loss") is not None]
        return RunView(
            name=name,
            scenario=str(identity["config"]["run"]["name"]),
            state=progress.state,
            wanted=self.read_order(name).wanted,
            round=int(last.get("round", 0)),
            rounds=int(identity["config"]["run"]["rounds"]),
            population=int(identity["population"]),
            reason=progress.reason,
            epsilon=last.get("epsilon"),
            delta=last.get("delta"),
            loss=losses[-1] if losses else None,
            adapter=progress.adapter,
        )

    def all(self) -> tuple[RunView, ...]:
        """Return every run as it stands; a damaged folder is left out."""
        found = []
        for name in self.names():
            with suppress(NotResumable):
                found.append(self.view(name))
        return tuple(found)

    def run_config(self, name: str) -> dict[str, str]:
        """Return what Flower's run configuration says about a run.

        Paths are relative to the server's folder, where ServerApps run: the configuration goes to
        every node, and says nothing about where the server keeps things.
        """
        identity = _identity(self.folder(name))
        home = self._home
        return {
            "run-folder": f"{home.runs.name}/{name}",
            "ledger": home.ledger.name,
            "ledger-key": f"{home.keys.name}/{home.ledger_key.name}",
            "fleet": home.fleet_database.name,
            "scenario": canonical_json(identity["config"]),
            "plan": canonical_json(identity["plan"]),
        }


def read_order(path: Path) -> RunOrder:
    """Read an order.

    Raises:
        NotResumable: if it is missing or damaged.
    """
    found = _read(path)
    if found is None:
        msg = f"{path.name} is missing or damaged."
        raise NotResumable(msg, hint="Order the run again.")
    return RunOrder(**found)


def write_outcome(folder: Path, outcome: Outcome) -> None:
    """Say how an attempt ended; for the ServerApp alone."""
    write_json(folder / OUTCOME, {"schema": _SCHEMA, **asdict(outcome)})


def _identity(folder: Path) -> Mapping[str, Any]:
    """Return what a run is.

    Raises:
        NotResumable: if ``run.json`` is missing or damaged.
    """
    try:
        found = json.loads((folder / IDENTITY).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        msg = f"runs/{folder.name}/{IDENTITY} is missing or damaged."
        raise NotResumable(msg, hint="Start another run.") from error
    return dict(found)


def _read(path: Path) -> dict[str, Any] | None:
    """Return one of our small files without its schema; None if it is not there or damaged."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return {key: value for key, value in found.items() if key != "schema"}


def _now() -> str:
    """Return the time, UTC."""
    return datetime.now(tz=UTC).isoformat(timespec="milliseconds")
