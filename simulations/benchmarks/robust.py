"""What a defence is worth: held-out loss and backdoor success under attack, by share of attackers.

Twenty clinics of the embedded corpus train the embedded model for eight rounds in mode none, all of
them in every round; 0, 10 or 30 % of them attack. Every defence assumes 30 %, whatever there is.
Three seeds; medians and ranges are over them. Nothing is tuned for a defence or for an attack: the
scale of an attack and the bound on norms are constants of ``robust_arms``.

The loss is on the clean held-out records of all clients. A backdoor succeeds on a prompt if the
greedy next tokens after the trigger are the target's, all of them; without attackers it is tried
too, which is what its success is to be compared with. A loss that is not a number is a model that
was destroyed, and stands as no number in the table.

Every run is a run folder. An interrupted benchmark goes on with ``--resume``.
"""

from __future__ import annotations

from pathlib import Path

from simulations.benchmarks.protocol import Asked, BenchResult
from simulations.benchmarks.robust_arms import ASSUMED, BOUND, arms, axes_of
from simulations.benchmarks.robust_runs import measure, table

SUMMARY = "Held-out loss and backdoor success of every robust rule under every simulated attack."
KEEPS_RUNS = True


def run(*, quick: bool, asked: Asked) -> BenchResult:
    """Run what is missing, and compare.

    Args:
        quick: one round of a few clients, one attack, two rules, one seed.
        asked: where runs are kept, and which are wanted.

    Raises:
        InvalidValue: for a word of ``asked.only`` that names nothing.
        RunFolderExists: if the folder holds runs and nobody said to go on with them.
        FedSLMError: any error of a run; finished ones stay.
    """
    wanted = arms(asked.only, quick=quick)
    found = measure(wanted, asked, base_dir=Path.cwd())
    return BenchResult(
        name="robust",
        parameters={
            **{axis: ", ".join(values) for axis, values in axes_of(quick=quick).items()},
            "runs": len(found),
            "attackers assumed": ASSUMED,
            "norm bound": BOUND,
            "quick": quick,
        },
        rows=table(found),
    )


def plot(result: BenchResult, path: Path) -> None:
    """Write losses and backdoor successes of a result as an SVG file.

    Raises:
        RunFolderError: if it cannot be written.
    """
    from shared.files import write_text
    from simulations.benchmarks.robust_plot import draw_defences
    from simulations.svg import as_file

    write_text(path, as_file(draw_defences(result), title=SUMMARY))
