"""The simulator against the arithmetic it cannot avoid, and against Flower's own engine.

Three things are timed on the same clients, one SGD step each on one batch of all their records,
client-level noise: our in-process engine, through ``simulate`` with ledger, checkpoints and
metrics; a plain centralised LoRA loop without privacy on the same batches, between the rounds of
the same process; and Flower's Ray engine with as many actors as there are cores, which calls the
same ClientApp and does nothing else. One process and one thread each, unless a row says otherwise.

Every run has a process of its own. Flower's engine is not asked for more than 1,000 clients, and
the 30 M shape for no more than 100, to bound the time. The centralised loop takes one step on each
client's batch, so both sides see the same tokens in the same batches; an engine that trains several
clients in one pass may therefore be faster than it. Memory is what the kernel says is resident;
what a population costs is the largest size of a run, from its start to the end of its report, above
a process that imported the same and loaded the base.
"""

from __future__ import annotations

import os
import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path

from shared.errors import ClientFailed
from simulations.benchmarks.engine_rows import Row, row_of_rounds, spread
from simulations.benchmarks.engine_runs import M30, Found, Work, in_child
from simulations.benchmarks.footprintmodel import SMALL, write_base
from simulations.benchmarks.protocol import BenchResult, Check

SUMMARY = (
    "Client-rounds a second, start-up and memory of the simulator; Flower's Ray engine beside."
)

OVER_CENTRAL = 1.15
START_SECONDS = 3.0
ABOVE_BASE_MB = 200.0
POPULATION_MB = 20.0
FLAT_MB = 10.0
OVER_RAY_SMALL = 0.1
OVER_RAY_LARGE = 1.0
_ENOUGH = 100
_RUNS = "simulations.benchmarks.engine_runs"
_RAY = "simulations.benchmarks.engine_ray"
_SMALL_RUN = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """How much is measured.

    Attributes:
        demo: clients a round and rounds on the demo model.
        large: the same on the larger shape.
        ray_demo: clients a round and rounds on Flower's engine, demo model.
        ray_large: the same, larger shape; None leaves Flower's engine out.
        few: registered clients that the many are compared with.
        many: registered clients of the run whose memory is followed.
        cohort: clients a round out of them.
        flat_rounds: rounds of that run.
        settled: the round by which its caches are full.
    """

    demo: Sequence[tuple[int, int]]
    large: Sequence[tuple[int, int]]
    ray_demo: Sequence[tuple[int, int]]
    ray_large: tuple[int, int] | None
    few: int
    many: int
    cohort: int
    flat_rounds: int
    settled: int


FULL = Sizes(
    demo=((10, 9), (100, 5), (1_000, 3), (10_000, 1)),
    large=((10, 4), (100, 3)),
    ray_demo=((10, 8), (100, 5), (1_000, 3)),
    ray_large=(100, 3),
    few=1_000,
    many=1_000_000,
    cohort=100,
    flat_rounds=90,
    settled=45,
)
QUICK = Sizes(
    demo=((4, 3),),
    large=((2, 3),),
    ray_demo=(),
    ray_large=None,
    few=100,
    many=1_000_000,
    cohort=4,
    flat_rounds=6,
    settled=3,
)


def run(*, quick: bool) -> BenchResult:
    """Measure rounds, start-up and memory.

    Args:
        quick: a handful of clients, a smaller shape, and no Flower engine.
    """
    sizes = QUICK if quick else FULL
    shape = SMALL if quick else M30
    rows: list[Row] = []
    checks: list[Check] = []
    with tempfile.TemporaryDirectory() as name:
        base = Path(name) / "base"
        write_base(base, shape)
        measure = _Measure(sizes=sizes, base=str(base), shape=f"{shape.parameters / 1e6:.0f} M")
        for part in (measure.rounds, measure.flower, measure.start, measure.memory):
            found, promised = part()
            rows += found
            checks += promised
    return BenchResult(
        name="engine",
        parameters={
            "demo: records a client": measure.small.records,
            "demo: tokens a record, at most": measure.small.max_length,
            "shape: parameters": shape.parameters,
            "shape: records a client": measure.heavy.records,
            "shape: tokens a record, at most": measure.heavy.max_length,
            "policy": measure.small.resolved().config.policy,
            "cores": _cores(),
            "quick": quick,
        },
        rows=tuple(rows),
        checks=tuple(checks),
    )


def plot(result: BenchResult, path: Path) -> None:
    """Write the rates of a result as an SVG file.

    Raises:
        RunFolderError: if it cannot be written.
    """
    from shared.files import write_text
    from simulations.benchmarks.engine_plot import draw_rates

    write_text(path, draw_rates(result) + "\n")


Part = tuple[list[Row], list[Check]]


class _Measure:
    """Runs every case in a process of its own.

    Args:
        sizes: how much.
        base: folder of the larger model.
        shape: what rows call it.
    """

    def __init__(self, *, sizes: Sizes, base: str, shape: str) -> None:
        self._sizes = sizes
        self._shape = shape
        self.small = Work(what="rounds", population=10, cohort=10, rounds=1)
        self.heavy = replace(self.small, base=base, records=1)
        self._seconds: dict[tuple[str, int], float] = {}
        self._first_answer: float | None = None

    def rounds(self) -> Part:
        """Time rounds of our engine, with the centralised loop between them.

        Raises:
            ClientFailed: if not every client answered.
        """
        rows: list[Row] = []
        checks: list[Check] = []
        for model, work, cases in self._cases():
            for clients, rounds in cases:
                asked = replace(work, population=clients, cohort=clients, rounds=rounds)
                found = in_child(_RUNS, asked)
                _require_answers(found, clients=clients, rounds=rounds)
                row = row_of_rounds(f"{model}, rounds", clients, found)
                self._seconds[model, clients] = float(str(row["round_s"]))
                if self._first_answer is None:
                    self._first_answer = found["first_answer"]
                rows.append(row)
                if clients >= _ENOUGH or clients == max(cases)[0]:
                    name = f"{model}, {clients} clients a round: over the centralised loop"
                    ratio = float(str(row["over_central"]))
                    checks.append(Check(name=name, measured=ratio, limit=OVER_CENTRAL, unit="x"))
        return rows, checks

    def flower(self) -> Part:
        """Time Flower's engine on the same work, and a whole small run of both."""
        sizes, large = self._sizes, self._sizes.ray_large
        if large is None or find_spec("ray") is None:
            return [], []
        rows: list[Row] = []
        small: Found = {}
        for clients, rounds in sizes.ray_demo:
            asked = replace(self.small, population=clients, cohort=clients, rounds=rounds)
            found = in_child(_RAY, asked)
            small = small or found
            rows.append(self._row_of_ray("demo", clients, found))
            shared = replace(asked, what="alone", workers=_cores())
            rows.append(self._with_all_cores("demo", shared))
        clients, rounds = large
        asked = replace(self.heavy, population=clients, cohort=clients, rounds=rounds)
        theirs = self._row_of_ray(self._shape, clients, in_child(_RAY, asked))
        alone = replace(asked, what="alone")
        ours = self._with_all_cores(self._shape, replace(alone, workers=_cores()))
        threads = self._with_all_cores(self._shape, replace(alone, threads=_cores()))
        least = sizes.ray_demo[0][0]
        whole = replace(self.small, what="alone", population=least, cohort=least, rounds=_SMALL_RUN)
        mine, other = in_child(_RUNS, whole)["ended"][-1], small["ended"][_SMALL_RUN - 1]
        what = f"demo, {least} clients, {_SMALL_RUN} rounds from start to end"
        rows += [
            theirs,
            ours,
            threads,
            {"case": what, "clients": least, "whole_s": mine},
            {"case": f"{what}, Flower's Ray engine", "clients": least, "whole_s": other},
        ]
        over = float(str(ours["round_s"])) / float(str(theirs["round_s"]))
        return rows, [
            Check(name=f"{what}: over Ray", measured=mine / other, limit=OVER_RAY_SMALL, unit="x"),
            Check(
                name=f"{self._shape}, {clients} clients a round, {_cores()} workers: over Ray",
                measured=over,
                limit=OVER_RAY_LARGE,
                unit="x",
            ),
        ]

    def start(self) -> Part:
        """Time from the end of imports to the first client's answer.

        Raises:
            ClientFailed: if no client answered.
        """
        scenario = replace(self.small, what="quickstart", population=10, cohort=10, rounds=2)
        seconds = {
            "demo, start": self._first_answer,
            "quickstart, start": in_child(_RUNS, scenario)["first_answer"],
        }
        rows: list[Row] = []
        checks: list[Check] = []
        for case, found in seconds.items():
            if found is None:
                msg = f"{case}: no client answered, so there is no first answer to time."
                raise ClientFailed(msg)
            rows.append({"case": case, "start_s": found})
            name = f"{case}: to the first answer, after imports"
            checks.append(Check(name=name, measured=found, limit=START_SECONDS, unit="s"))
        return rows, checks

    def memory(self) -> Part:
        """Measure what a population costs above the base model, and follow it over rounds."""
        sizes, tiny = self._sizes, self._tiny()
        rest = in_child(_RUNS, replace(tiny, what="base", population=sizes.few, rounds=1))
        base = float(rest["memory"]["VmRSS"])
        few = in_child(_RUNS, replace(tiny, population=sizes.few, rounds=_SMALL_RUN))
        many = in_child(_RUNS, replace(tiny, population=sizes.many, rounds=sizes.flat_rounds))
        rows: list[Row] = [{"case": "demo, base loaded", "resident_mb": round(base, 1)}]
        for population, found in ((sizes.few, few), (sizes.many, many)):
            case = f"demo, {population} registered, {sizes.cohort} a round"
            rows.append({"case": case, "rounds": len(found["peaks"]), **_sizes_of(found, base)})
        resident = [float(value) for value in many["resident"]]
        shown = sorted({1, max(1, sizes.settled // 2), sizes.settled, sizes.flat_rounds})
        for done in shown:
            case = f"demo, {sizes.many} registered, after round {done}"
            rows.append({"case": case, "resident_mb": round(resident[done - 1], 1)})
        # Caches fill over the rounds, so populations are compared after as many of them.
        more = float(many["peaks"][_SMALL_RUN - 1]) - float(few["peaks"][_SMALL_RUN - 1])
        above = float(many["memory"]["VmHWM"]) - base
        grown = resident[-1] - resident[sizes.settled - 1]
        name = f"{sizes.many} registered clients above"
        return rows, [
            Check(name=f"{name} the base model", measured=above, limit=ABOVE_BASE_MB, unit="MB"),
            Check(name=f"{name} {sizes.few}", measured=more, limit=POPULATION_MB, unit="MB"),
            Check(
                name=f"growth from round {sizes.settled} to {sizes.flat_rounds}",
                measured=grown,
                limit=FLAT_MB,
                unit="MB",
            ),
        ]

    def _cases(self) -> list[tuple[str, Work, Sequence[tuple[int, int]]]]:
        """Return model, work and sizes of the timed rounds."""
        sizes = self._sizes
        return [("demo", self.small, sizes.demo), (self._shape, self.heavy, sizes.large)]

    def _tiny(self) -> Work:
        """Return work that is all overhead: one short record a client."""
        cohort = self._sizes.cohort
        return replace(self.small, what="alone", cohort=cohort, records=1, max_length=32)

    def _row_of_ray(self, model: str, clients: int, found: Found) -> Row:
        """Return the row of a case on Flower's engine."""
        seconds = [float(value) for value in found["rounds"]]
        middle = statistics.median(seconds[1:] or seconds)
        ours = self._seconds.get((model, clients))
        return {
            "case": f"{model}, rounds, Flower's Ray engine",
            "clients": clients,
            "timed": len(seconds[1:] or seconds),
            **spread(seconds),
            "clients_per_s": round(clients / middle, 2),
            "cold_s": round(seconds[0], 3),
            "start_s": round(float(found["connected"]), 2),
            "ours_over_ray": None if ours is None else round(ours / middle, 3),
        }

    def _with_all_cores(self, model: str, work: Work) -> Row:
        """Return the row of our engine with a worker or a thread for every core."""
        found = in_child(_RUNS, work)
        how = f"{work.workers} workers" if work.workers > 1 else f"{work.threads} threads"
        return row_of_rounds(f"{model}, rounds, {how}", work.population, found)


def _sizes_of(found: Found, base: float) -> Row:
    """Return how large a run was until its last round, and with its report."""
    peak, whole = float(found["peaks"][-1]), float(found["memory"]["VmHWM"])
    return {
        "peak_mb": round(peak, 1),
        "above_base_mb": round(peak - base, 1),
        "peak_with_report_mb": round(whole, 1),
    }


def _require_answers(found: Found, *, clients: int, rounds: int) -> None:
    """Require that every client answered every round: otherwise less work was timed.

    Raises:
        ClientFailed: if one did not.
    """
    if found["answered"] != [clients] * rounds:
        msg = f"{found['answered']} clients answered, expected {clients} in each of {rounds}."
        raise ClientFailed(msg)


def _cores() -> int:
    """Return how many cores this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)
    return (os.cpu_count() or 1) if affinity is None else len(affinity(0))
