"""Unlike texts in one federation: a mixture of adapters beside one adapter of as many parameters.

Twenty clients, half of them roles of Shakespeare's plays and half with questions and answers of
MedQuAD, train the small model of the scenarios under ``ffa`` without privacy, ten of them in a
round. Four arms:

- ``one``: one adapter of rank 4;
- ``mixture``: two adapters of rank 2 and a trained router;
- ``frozen``: the same with the router as the seed draws it;
- ``apart``: two federations, one for each kind, each with one adapter of rank 4. Somebody must know
  whose text is which; it is what knowing it would be worth.

Every arm runs at each of two rates of the server, and the rate with the lower mean loss over seeds
is taken; Adam's step is the same whatever a gate makes of its effect, so one rate would not do.
Losses are means over the held-out text of each kind's clients.

Every run is a run folder. An interrupted benchmark goes on with ``--resume``.
"""

from __future__ import annotations

from pathlib import Path

from simulations.benchmarks.mixture_runs import arms_of, measure, rates_of, table
from simulations.benchmarks.protocol import Asked, BenchResult

SUMMARY = "Held-out loss of a mixture of adapters and of one adapter, on two kinds of text."
KEEPS_RUNS = True


def run(*, quick: bool, asked: Asked) -> BenchResult:
    """Run what is missing, and compare.

    Args:
        quick: generated texts, a few clients, two rounds, one seed and one rate.
        asked: where runs are kept, and which arms are wanted.

    Raises:
        InvalidValue: for a word of ``asked.only`` that names no arm.
        DataFileNotFound: if the texts are not beside the repository.
        RunFolderExists: if the folder holds runs and nobody said to go on with them.
        FedSLMError: any error of a run; finished ones stay.
    """
    arms = arms_of(asked.only)
    found = measure(arms, asked, quick=quick, base_dir=Path.cwd())
    return BenchResult(
        name="mixture",
        parameters={
            "arms": ", ".join(arms),
            "server rates": ", ".join(map(str, rates_of(quick=quick))),
            "runs": len(found),
            "quick": quick,
        },
        rows=table(found),
    )
