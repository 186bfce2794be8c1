"""One run of the simulator in a process of its own, for the benchmark ``engine``.

``python -m simulations.benchmarks.engine_runs WORK`` reads a :class:`Work` and prints JSON. A run
is a call of :func:`simulations.simulate.simulate`, with everything that it does: ledger,
checkpoints, metrics, report. Its display tells when a round ends; the clock stands still while the
centralised loop trains on the same batches between two rounds.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shared.configfile import ResolvedConfig, load_config, resolve
from simulations.benchmarks.footprintmodel import Shape

if TYPE_CHECKING:
    from simulations.benchmarks.engine_central import CentralLoop

RANK = 4
ALPHA = 8.0
LEARNING_RATE = 0.1
SEED = 11
M30 = Shape(hidden=384, inner=1024, layers=15, heads=6, kv_heads=2, vocabulary=16_384)
"""A Llama of 30 million weights."""

_QUICKSTART = Path(__file__).parents[1] / "scenarios" / "quickstart.toml"
_MB = 1e6

Found = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """One run to measure.

    Attributes:
        what: ``"rounds"`` with the centralised loop between them, ``"alone"`` without it,
            ``"quickstart"`` (that scenario up to its first client's answer, with one client
            measured before it and not 1,000), ``"base"`` (load and rest).
        base: ``"demo"`` or the folder of a base model.
        population: registered clients.
        cohort: clients a round on average; the population means everyone, every round.
        rounds: how many.
        records: records of each client, all of which are one batch.
        max_length: tokens of a record at most.
        threads: torch's threads.
        workers: processes that train clients beside each other.
    """

    what: str
    base: str = "demo"
    population: int
    cohort: int
    rounds: int
    records: int = 2
    max_length: int = 32
    threads: int = 1
    workers: int = 1

    def resolved(self, *, engine: str = "inprocess") -> ResolvedConfig:
        """Return the scenario: client-level noise, one SGD step a client, nothing held out."""
        if self.what == "quickstart":
            overrides = ("evaluation.final_clients=1", "audit.profile=none")
            return load_config(_QUICKSTART, overrides, source="quickstart")
        everyone = self.cohort == self.population
        tables: dict[str, dict[str, Any]] = {
            "run": {"name": "engine", "rounds": self.rounds, "seed": SEED, "engine": engine},
            "model": {"base": self.base},
            "lora": {"r": RANK, "alpha": ALPHA},
            "data": {
                "path": "builtin:clinics",
                "records": self.records,
                "max_length": self.max_length,
                "holdout": 0.0,
            },
            "clients": {
                "population": self.population,
                "local_steps": 1,
                "batch_size": self.records,
                "learning_rate": LEARNING_RATE,
                **({} if everyone else {"cohort": float(self.cohort)}),
            },
            "privacy": {
                "mode": "client-central",
                "neighboring_relation": "add-or-remove-one",
                "noise_multiplier": 1.0,
                "delta": min(1e-3, 0.5 / self.population),
                "clipping_norm": 0.5,
                "noise_source": "seeded-simulation",
            },
            "audit": {"profile": "none", "releases": False},
            # Nobody holds anything out, so measuring costs a message and no arithmetic.
            "evaluation": {"every": self.rounds, "clients": 1, "final_clients": 1},
            "performance": {"threads": self.threads, "workers": self.workers},
        }
        return resolve(tables, source="engine")


class Enough(Exception):
    """Ends a run whose start alone is measured."""


@dataclass(slots=True, kw_only=True)
class Clock:
    """A display that notes when what happened.

    Attributes:
        began: when the run was started, by ``time.perf_counter``.
        between: what to do after each round while the clock stands still.
        start_only: whether the first answer ends the run.
        paused: seconds that it stood still.
        first_answer: seconds from ``began`` to the first client's answer.
        rounds: seconds of each round, the first one from the charge on, the others from the end
            of the round before.
        ended: seconds from ``began`` to the end of each round.
        answered: how many clients answered in each round.
        resident: MB resident after each round.
        peaks: MB resident at most until the end of each round; the report comes after the last.
        up: bytes that one client sent, at most.
    """

    began: float
    between: Callable[[], None] | None = None
    start_only: bool = False
    paused: float = 0.0
    first_answer: float | None = None
    rounds: list[float] = field(default_factory=list)
    ended: list[float] = field(default_factory=list)
    answered: list[int] = field(default_factory=list)
    resident: list[float] = field(default_factory=list)
    peaks: list[float] = field(default_factory=list)
    up: int = 0
    _since: float | None = None

    def note(self, text: str) -> None:
        """Show nothing."""

    def started(self, server_round: int, cohort: int) -> None:
        """Start the clock of the first round."""
        del server_round, cohort
        if self._since is None:
            self._since = time.perf_counter()

    def client_done(self, server_round: int, answered: int, cohort: int) -> None:
        """Note the first answer.

        Raises:
            Enough: if that is all that was wanted.
        """
        del server_round, answered, cohort
        if self.first_answer is None:
            self.first_answer = time.perf_counter() - self.began
            if self.start_only:
                raise Enough

    def finished(self, record: Mapping[str, Any]) -> None:
        """Note the end of a round, and do what is to be done between two."""
        now = time.perf_counter()
        self.rounds.append(now - (self._since or now))
        self.ended.append(now - self.began - self.paused)
        self.answered.append(int(record["answered"]))
        found = memory()
        self.resident.append(found["VmRSS"])
        self.peaks.append(found["VmHWM"])
        self.up = max(self.up, int(record["bytes_up_per_client"]))
        if self.between is not None:
            self.between()
        self._since = time.perf_counter()
        self.paused += self._since - now

    def to_json(self) -> Found:
        """Return what was noted."""
        return {
            "first_answer": self.first_answer,
            "rounds": self.rounds,
            "ended": self.ended,
            "answered": self.answered,
            "resident": self.resident,
            "peaks": self.peaks,
            "up": self.up,
        }


def measure(work: Work) -> Found:
    """Do one run and return what was noted, with this process's memory in MB of 1e6 bytes."""
    _imports()
    if work.what == "base":
        kept = _load(work)
        gc.collect()
        return {"memory": memory(), "parameters": kept}
    central: CentralLoop | None = None
    seconds: list[float] = []
    if work.what == "rounds":
        from simulations.benchmarks.engine_central import CentralLoop, batches_of

        resolved = work.resolved()
        central = CentralLoop(resolved.config)
        batches = batches_of(resolved.config, central.tokenizer)

    def train_centrally() -> None:
        if central is not None:
            seconds.append(central.train(batches))

    clock = simulated(work, between=train_centrally if central is not None else None)
    return {**clock.to_json(), "central": seconds, "memory": memory()}


def simulated(
    work: Work, *, engine: str = "inprocess", between: Callable[[], None] | None = None
) -> Clock:
    """Run the simulator on the work, in a folder that goes."""
    from simulations.simulate import simulate

    with tempfile.TemporaryDirectory() as parent:
        resolved = work.resolved(engine=engine)
        only = work.what == "quickstart"
        clock = Clock(began=time.perf_counter(), between=between, start_only=only)
        with suppress(Enough):
            simulate(resolved, folder=Path(parent) / "run", resume=False, progress=clock)
    return clock


def in_child(module: str, work: Work) -> Found:
    """Do one run in a process of its own.

    Args:
        module: whose ``main`` does it.
        work: what to do.

    Returns:
        What the child printed as its last line.

    Raises:
        UsageError: if the child failed; the end of its standard error is not repeated.
    """
    import subprocess

    from shared.errors import UsageError

    run = subprocess.run(  # noqa: S603 - our own program, no shell
        [sys.executable, "-m", module, json.dumps(asdict(work))],
        capture_output=True,
        text=True,
        check=False,
        env=child_environment(work.threads),
    )
    lines = run.stdout.strip().splitlines()
    if run.returncode != 0 or not lines:
        msg = f"A run of {work.what!r} with {work.population} clients ended with {run.returncode}."
        raise UsageError(msg, hint=f"Run it by hand: python -m {module} '{asdict(work)}'.")
    found = json.loads(lines[-1])
    return dict(found)


def memory() -> dict[str, float]:
    """Return this process's resident and largest memory, in MB of 1e6 bytes; 0 if unknown."""
    status = Path("/proc/self/status")
    found = {"VmRSS": 0.0, "VmHWM": 0.0}
    if not status.exists():
        return found
    for line in status.read_text(encoding="ascii").splitlines():
        name, _, rest = line.partition(":")
        if name in found:
            found[name] = int(rest.split()[0]) * 1024 / _MB
    return found


def _load(work: Work) -> int:
    """Load the base with its adapter and return the number of its weights."""
    from simulations.assemble import load_model

    model = load_model(work.resolved().config, base_dir=Path.cwd())
    return sum(parameter.numel() for parameter in model.peft_model.parameters())


def _imports() -> None:
    """Import what a run imports, so that no clock counts it."""
    import dp_accounting.pld  # noqa: F401
    import peft  # noqa: F401
    import transformers.models.llama.modeling_llama
    import transformers.models.llama.tokenization_llama  # noqa: F401

    import simulations.report
    import simulations.simulate  # noqa: F401


def child_environment(threads: int) -> dict[str, str]:
    """Return a child's environment, in which it finds this installation."""
    root = str(Path(__file__).resolve().parents[2])
    paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(paths),
        "OMP_NUM_THREADS": str(threads),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
    }


def main(arguments: Sequence[str]) -> None:
    """Measure the work that the only argument says, and print JSON."""
    sys.stdout.write(json.dumps(measure(Work(**json.loads(arguments[0])))) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
