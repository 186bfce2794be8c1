"""What an adapter's quality costs: held-out loss against epsilon, bytes and seconds.

Every policy and codec that a scenario may name, at a few epsilons and without privacy, on the
embedded quickstart, on Shakespeare's roles and on MedQuAD's institutions; three seeds. The settings
are the scenario's own for all of them, rounds and learning rates too: nothing is tuned for another
policy, another epsilon or the non-private twin. Canaries are not planted and nothing is attacked.

The loss is the mean over the clients that the scenario measures at the end, on records that nobody
trained on; no budget pays for it. Bytes are those of the payload, as the run's metrics say them.
Seconds are this process's time in the rounds, on one core of this machine.
Medians and ranges are over seeds. A row is on a front if no other row of its scenario has a median
loss as low for as little, and less of one of the two; bytes and seconds are compared at the same
epsilon only, because leaving privacy out is no saving.

Every run is a run folder. An interrupted benchmark goes on with ``--resume``.
"""

from __future__ import annotations

from pathlib import Path

from simulations.benchmarks.protocol import PROGRESS, Asked, BenchResult
from simulations.benchmarks.quality_arms import cases, choices, require_files
from simulations.benchmarks.quality_rows import caps_kept, table
from simulations.benchmarks.quality_runs import measure

SUMMARY = "Held-out loss against epsilon, bytes and seconds of every policy; the Pareto fronts."
KEEPS_RUNS = True


def run(*, quick: bool, asked: Asked) -> BenchResult:
    """Run what is missing, and compare.

    Args:
        quick: the embedded model alone, two rounds of a few clients, two seeds.
        asked: where runs are kept, and which are wanted.

    Raises:
        InvalidValue: for a word of ``asked.only`` that names nothing.
        DataFileNotFound: if a scenario's files are not here, before anything is run.
        RunFolderExists: if the folder holds runs and nobody said to go on with them.
        FedSLMError: any error of a run; finished ones stay.
    """
    here = Path.cwd()
    chosen = cases(asked.only, quick=quick)
    wanted = [case for case in chosen if case.resolved is not None]
    refused = [case for case in chosen if case.resolved is None]
    require_files(wanted, base_dir=here)
    for case in refused:
        PROGRESS.info("left out: %s: %s", case, case.refusal)
    kept = sum((asked.folder / case.name / "summary.json").exists() for case in wanted)
    found = measure(wanted, asked, base_dir=here)
    return BenchResult(
        name="quality",
        parameters={
            **{field: ", ".join(words) for field, words in choices().items()},
            "seeds": ", ".join(dict.fromkeys(str(case.seed) for case in chosen)),
            "runs": len(found),
            "of them kept from before": kept,
            "quick": quick,
        },
        rows=table(found, refused),
        checks=caps_kept(found),
    )


def plot(result: BenchResult, path: Path) -> None:
    """Write the frontiers of a result as an SVG file.

    Raises:
        RunFolderError: if it cannot be written.
    """
    from shared.files import write_text
    from simulations.benchmarks.quality_plot import draw_frontiers
    from simulations.svg import as_file

    write_text(path, as_file(draw_frontiers(result), title=SUMMARY))
