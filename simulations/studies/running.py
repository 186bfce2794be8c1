"""Run a study: every arm with every seed, what is finished already left alone."""

from __future__ import annotations

import json
import time
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from shared import validate
from shared.configfile import ResolvedConfig, load_config, resolve
from shared.files import disk_errors, write_json, write_text
from simulations.benchmarks.machine import describe_machine
from simulations.benchmarks.training import Silence
from simulations.simulate import simulate
from simulations.studies.bases import make_base
from simulations.studies.markdown import as_markdown
from simulations.studies.measuring import measure
from simulations.studies.protocol import Arm, Row, Run, Study
from simulations.svg import as_file

SCHEMA = 1
SEEDS, QUICK_SEEDS = 3, 1
RUNS, MEASURED = "runs", "measured"
REPORT = "study.json"
PAGE = "study.md"


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a study came to.

    Attributes:
        report: the contents of ``study.json``.
        rows: the table.
        folder: where everything is.
    """

    report: dict[str, Any]
    rows: Sequence[Row]
    folder: Path


@dataclass(slots=True, kw_only=True)
class _Pace:
    """Guesses the time left from the runs of this process."""

    total: int
    done: int = 0
    ran: int = 0
    began: float = field(default_factory=time.monotonic)

    def left(self) -> str:
        """Return the time left, in words; nothing while it cannot be guessed."""
        if self.ran == 0 or self.done == self.total:
            return ""
        seconds = (time.monotonic() - self.began) / self.ran * (self.total - self.done)
        return f", about {max(1, round(seconds / 60))} min left"


def run_study(
    study: Study,
    *,
    folder: Path,
    quick: bool = False,
    seeds: int | None = None,
    note: Callable[[str], None],
) -> Outcome:
    """Run what is missing of a study, and write its table, plots and numbers.

    Args:
        study: the study.
        folder: where runs and results are; an unfinished study there is gone on with.
        quick: tiny sizes: whether it works, not what it shows.
        seeds: how many, from the scenario's own upwards; default 3, or 1 if quick.
        note: is told one line at a time what is being done.

    Returns:
        The table and the contents of ``study.json``.

    Raises:
        InvalidValue: for a number of seeds that is not positive.
        FedSLMError: any error of a run or its audits; finished runs stay.
    """
    began = time.monotonic()
    count = (QUICK_SEEDS if quick else SEEDS) if seeds is None else seeds
    validate.positive_integer(seeds=count)
    with disk_errors(folder):
        (folder / MEASURED).mkdir(parents=True, exist_ok=True)
    arms = study.arms(quick)
    pace = _Pace(total=len(arms) * count)
    runs = list(_runs(study, arms, folder=folder, quick=quick, count=count, note=note, pace=pace))
    rows = study.rows(arms, runs)
    plots = study.draw(rows, runs)
    report = {
        "schema": SCHEMA,
        "study": study.name,
        "question": study.question,
        "command": _command(study, quick=quick, count=count),
        "quick": quick,
        "seeds": sorted({int(run["seed"]) for run in runs}),
        "rows": [row.to_dict() for row in rows],
        "runs": [{key: value for key, value in run.items() if key != "canaries"} for run in runs],
        "plots": [f"{stem}.svg" for stem in plots],
        "runs_made_now": pace.ran,
        "seconds": round(time.monotonic() - began, 1),
        "machine": describe_machine(),
    }
    for stem, element in plots.items():
        title = f"{study.name}: {stem.replace('-', ' ')}"
        write_text(folder / f"{stem}.svg", as_file(element, title=title))
    write_json(folder / REPORT, report)
    write_text(folder / PAGE, as_markdown(report, rows, study.columns))
    return Outcome(report=report, rows=rows, folder=folder)


def resolve_arm(
    study: Study, arm: Arm, *, quick: bool, number: int, base: str | None
) -> ResolvedConfig:
    """Return the scenario of one arm with one seed.

    Args:
        study: the study.
        arm: the arm.
        quick: with the study's tiny sizes.
        number: 0 for the scenario's own seed, 1 for the next, and so on.
        base: the model folder of an arm with a shape of its own.
    """
    source = study.scenario.name
    seed = load_config(study.scenario, source=source).config.run.seed + number
    tables = tomllib.loads(study.scenario.read_text(encoding="utf-8"))
    values = {**(study.quick if quick else {}), **arm.overrides, "run.seed": seed}
    if base is not None:
        values["model.base"] = base
    for key in [key for key, value in values.items() if value is None]:
        section, _, leaf = key.partition(".")
        tables.get(section, {}).pop(leaf, None)
        del values[key]
    texts = [f"{key}={json.dumps(value)}" for key, value in values.items()]
    return resolve(tables, texts, source=source)


def _runs(
    study: Study,
    arms: Sequence[Arm],
    *,
    folder: Path,
    quick: bool,
    count: int,
    note: Callable[[str], None],
    pace: _Pace,
) -> Iterator[Run]:
    """Yield what was measured of every arm with every seed, running what is missing."""
    for number in range(count):
        for arm in arms:
            base = None if arm.shape is None else make_base(arm.shape, folder, note=note)
            resolved = resolve_arm(study, arm, quick=quick, number=number, base=base)
            seed = resolved.config.run.seed
            place = f"run {pace.done + 1} of {pace.total}: {arm.label}, seed {seed}"
            kept = folder / MEASURED / f"{arm.name}-seed{seed}.json"
            found = _known(kept, resolved.config.digest())
            pace.done += 1
            if found is not None:
                note(f"{place}: kept")
            else:
                note(place)
                began = time.monotonic()
                found = _run(arm, resolved, folder)
                write_json(kept, found)
                pace.ran += 1
                note(f"{place}: {time.monotonic() - began:.0f} s{pace.left()}")
            yield found


def _run(arm: Arm, resolved: ResolvedConfig, folder: Path) -> dict[str, Any]:
    """Run one arm with one seed, or go on with it, and measure it."""
    seed = resolved.config.run.seed
    run_dir = folder / RUNS / f"{arm.name}-seed{seed}"
    run_dir.parent.mkdir(parents=True, exist_ok=True)
    simulate(resolved, folder=run_dir, resume=True, progress=Silence(), base_dir=folder)
    return {
        "schema": SCHEMA,
        "arm": arm.name,
        "label": arm.label,
        "seed": seed,
        "config_digest": resolved.config.digest(),
        **measure(run_dir, base_dir=folder),
    }


def _known(file: Path, digest: str) -> dict[str, Any] | None:
    """Return what was measured of a finished run of this very scenario, or None."""
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    same = isinstance(value, Mapping) and (value.get("schema"), value.get("config_digest")) == (
        SCHEMA,
        digest,
    )
    return dict(value) if same else None


def _command(study: Study, *, quick: bool, count: int) -> str:
    """Return the command line that repeats a study."""
    text = f"fedslm study run {study.name}"
    if quick:
        text += " --quick"
    return text if count == (QUICK_SEEDS if quick else SEEDS) else f"{text} --seeds {count}"
