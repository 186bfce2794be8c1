"""What stragglers cost: simulated time until a held-out loss, waiting, leaving out, or not waiting.

The quickstart scenario without privacy, on a mix of fast, middling and slow devices that come and
go by the day and sometimes never answer. Three ways of dealing with it, three seeds:

- ``synchronous``: a cohort of 20, everybody is waited for until the deadline;
- ``over-selected``: 30 are asked, the first 20 to answer are counted;
- ``buffered``: 30 work at the same time, the server steps on every 10 answers (FedBuff), in twice
  as many steps, so that as many answers are counted.

The losses are measured, on the same clients in all three; time is the scenario's clock's. The goal
of a seed is nine tenths of the way from the base to the last loss of its synchronous run. Nothing
is tuned: all three have the server's and the clients' settings of the synchronous run.

Every run is a run folder. An interrupted benchmark goes on with ``--resume``; ``--only`` takes an
arm or a seed. Without its synchronous run a seed has no goal.
"""

from __future__ import annotations

from pathlib import Path

from simulations.benchmarks.protocol import Asked, BenchResult
from simulations.benchmarks.stragglers_runs import DEVICES, cases, measure, table

SUMMARY = "Simulated time to a held-out loss: synchronous, over-selected and buffered rounds."
KEEPS_RUNS = True


def run(*, quick: bool, asked: Asked) -> BenchResult:
    """Run what is missing, and compare.

    Args:
        quick: two dozen clients, four rounds, one seed.
        asked: where runs are kept, and which are wanted.

    Raises:
        InvalidValue: for a word of ``asked.only`` that names nothing.
        RunFolderExists: if the folder holds runs and nobody said to go on with them.
        FedSLMError: any error of a run; finished ones stay.
    """
    chosen = cases(asked.only, quick=quick)
    found = measure(chosen, asked)
    return BenchResult(
        name="stragglers",
        parameters={
            **{key.removeprefix("clock."): str(value) for key, value in DEVICES.items()},
            "seeds": ", ".join(dict.fromkeys(str(case.seed) for case in chosen)),
            "runs": len(found),
            "quick": quick,
        },
        rows=table(found),
    )


def plot(result: BenchResult, path: Path) -> None:
    """Write loss by simulated time of every arm as an SVG file.

    Raises:
        RunFolderError: if it cannot be written.
    """
    from shared.files import write_text
    from simulations.benchmarks.stragglers_plot import draw_races
    from simulations.svg import as_file

    write_text(path, as_file(draw_races(result), title=SUMMARY))
