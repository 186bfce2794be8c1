"""One point of the benchmark ``edge`` in a process of its own.

``python -m simulations.benchmarks.edge_case prepare|train|answer JSON``. *prepare* writes what the
device is given, where everything is installed; the other two run in one thread, load what was
prepared, and print JSON. Memory is counted from the moment when everything is imported that the
worker of such a device imports; ``process`` is all of it. Times are the processor's, the least of
the repetitions. Linux only.
"""

from __future__ import annotations

import json
import random
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Self

from shared.energy import Energy, EnergyMeter
from shared.errors import FedSLMError
from simulations.benchmarks.edge_runtimes import (
    LENGTH,
    PROMPT,
    RUNTIMES,
    SEED,
    TOKENS,
    Answer,
    Step,
)
from simulations.benchmarks.resident import forget_peak, peak


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """What is measured.

    Attributes:
        runtime: a key of :data:`simulations.benchmarks.edge_runtimes.RUNTIMES`.
        quantization: how the frozen weights are stored.
        what: ``"train"`` or ``"answer"``.
        base: folder of the base model.
        folder: what was prepared, or will be.
        vocabulary: number of token ids.
        repetitions: of what is timed.
    """

    runtime: str
    quantization: str
    what: str
    base: str
    folder: str
    vocabulary: int
    repetitions: int

    def to_json(self) -> str:
        """Return the form that :meth:`from_json` reads."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read what :meth:`to_json` wrote."""
        return cls(**json.loads(text))

    def ids(self, count: int, seed: int) -> list[int]:
        """Return random token ids."""
        drawn = random.Random(seed)  # noqa: S311 - nothing secret
        return [drawn.randrange(self.vocabulary) for _ in range(count)]


def prepare(case: Case) -> dict[str, Any]:
    """Write what the device is given."""
    module = RUNTIMES[case.runtime].load()
    module.prepare(case.what, Path(case.base), case.quantization, Path(case.folder))
    return {"status": "prepared"}


def measure(case: Case) -> dict[str, Any]:
    """Load, and train on examples or write answers.

    Returns:
        ``files_bytes``, ``resident_bytes`` (before loading), ``load_seconds``,
        ``load_peak_bytes`` and ``peak_bytes`` (above ``resident_bytes``), ``process_bytes`` (the
        largest size of the process), what was timed, and the energy of all that was timed.
    """
    module = RUNTIMES[case.runtime].load()
    module.imports(case.what)
    before = forget_peak()
    began = time.process_time()
    timed: Callable[[], dict[str, Any]]
    if case.what == "train":
        timed = partial(_train, case, module.trainer(Path(case.folder), case.quantization))
    else:
        timed = partial(_answer, case, module.speaker(Path(case.folder), case.quantization))
    loading = time.process_time() - began
    loaded = peak()
    forget_peak()
    found: dict[str, Any] = {
        "files_bytes": size_of(Path(case.folder)),
        "resident_bytes": before,
        "load_seconds": loading,
        "load_peak_bytes": max(0, loaded - before),
    }
    found |= timed()
    found |= {"peak_bytes": max(0, peak() - before), "process_bytes": max(loaded, peak())}
    return {"status": "measured", **found}


def size_of(folder: Path) -> int:
    """Return the bytes of a folder's files."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _train(case: Case, step: Step) -> dict[str, Any]:
    """Time one example after the other."""
    norms = [step(case.ids(LENGTH, SEED))]
    seconds = []
    with _energy() as energy:
        for number in range(case.repetitions):
            ids = case.ids(LENGTH, SEED + number)
            began = time.process_time()
            norms.append(step(ids))
            seconds.append(time.process_time() - began)
    said = energy[0]
    return {
        "seconds": seconds,
        "norm": norms[0],
        "energy": said.method,
        "joules": None if said.joules is None else said.joules / case.repetitions,
    }


def _answer(case: Case, answer: Answer) -> dict[str, Any]:
    """Time the first token of an answer, and those after it."""
    prompt = case.ids(PROMPT, SEED)
    list(answer(prompt, 2))
    firsts, rates = [], []
    with _energy() as energy:
        for _ in range(case.repetitions):
            began = time.process_time()
            pieces = answer(prompt, TOKENS)
            next(pieces)
            first = time.process_time()
            count = sum(1 for _ in pieces)
            rates.append(count / (time.process_time() - first))
            firsts.append(first - began)
    said = energy[0]
    return {
        "first_token_seconds": firsts,
        "tokens_per_second": rates,
        "energy": said.method,
        "joules": None if said.joules is None else said.joules / case.repetitions,
    }


@contextmanager
def _energy() -> Iterator[list[Energy]]:
    """Measure the energy of what is inside; it is in the list afterwards."""
    meter, found = EnergyMeter(), list[Energy]()
    meter.start()
    yield found
    found.append(meter.stop())


def main(arguments: list[str]) -> None:
    """Do what the program's arguments say and print what was found."""
    what, case = arguments[0], Case.from_json(arguments[1])
    found: Mapping[str, Any]
    try:
        found = prepare(case) if what == "prepare" else measure(case)
    except FedSLMError as error:
        found = {"status": error.code, "message": error.message}
    sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
