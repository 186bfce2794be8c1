"""The runs of the benchmark ``mixture``: texts of two kinds, the arms, and what they came to."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from shared.configfile import resolve
from shared.errors import DataFileNotFound, InvalidValue
from shared.files import write_text
from shared.registry import suggestion
from simulations import public_play, public_prose
from simulations.benchmarks.finished import open_kept
from simulations.benchmarks.protocol import PROGRESS, Asked, Scalar
from simulations.benchmarks.training import Silence
from simulations.draw import Draw
from simulations.simulate import simulate

KINDS: Final = ("medical", "play")
_SHARED: Final = Path("../shared/data")
_MODEL: Final = _SHARED / "models/stories260K"
_CLIENTS, _RECORDS = 10, 24

_ONE: Final = ("lora.r=4", "lora.alpha=4.0")
_TWO: Final = ("lora.r=2", "lora.alpha=4.0", "mixture.adapters=2")
ARMS: Final[Mapping[str, tuple[str, ...]]] = MappingProxyType(
    {"one": _ONE, "mixture": _TWO, "frozen": (*_TWO, "mixture.router=frozen"), "apart": _ONE}
)
"""The settings of each arm: with gates of one half, a mixture would be the one adapter."""

_SEEDS, _QUICK_SEEDS = (1, 2), (1,)
_RATES, _QUICK_RATES = (0.04,), (0.04,)
_BOTH: Final = "both"

Text = tuple[str, str]
"""A client's name and one text of it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What one arm came to with one seed and one rate.

    Attributes:
        arm: name of the arm.
        seed: of its runs.
        rate: of the server.
        losses: held-out loss of each client, by kind, nats per token.
        parameters: trained parameters of one adapter, or of the mixture.
        bits: mutual information of client and adapter; None without a mixture.
    """

    arm: str
    seed: int
    rate: float
    losses: Mapping[str, Sequence[float]]
    parameters: int
    bits: float | None

    @property
    def mean(self) -> float:
        """Mean loss over all clients."""
        return statistics.fmean(loss for kind in self.losses.values() for loss in kind)

    @property
    def worst(self) -> float:
        """Mean loss of the worst tenth of clients, two of twenty."""
        every = sorted((loss for kind in self.losses.values() for loss in kind), reverse=True)
        return statistics.fmean(every[: max(1, len(every) // 10)])


def arms_of(only: Sequence[str]) -> tuple[str, ...]:
    """Return the arms that are wanted; all without a word.

    Raises:
        InvalidValue: for a word that names none.
    """
    for word in only:
        if word not in ARMS:
            msg = f"only={word!r}, expected an arm: {', '.join(ARMS)}."
            raise InvalidValue(msg, hint=suggestion(word, ARMS))
    return tuple(arm for arm in ARMS if not only or arm in only)


def rates_of(*, quick: bool) -> tuple[float, ...]:
    """Return the rates of the server that every arm is run at."""
    return _QUICK_RATES if quick else _RATES


def measure(
    arms: Sequence[str], asked: Asked, *, quick: bool, base_dir: Path
) -> tuple[Outcome, ...]:
    """Run every arm that the folder does not hold finished, and read all of them.

    Args:
        arms: names of :data:`ARMS`.
        asked: where runs are kept, and whether to go on with them.
        quick: generated texts and few of everything.
        base_dir: the working directory, beside which the texts are.

    Raises:
        DataFileNotFound: if the texts are not there.
        RunFolderExists: if the folder holds runs and ``asked.resume`` is False.
    """
    open_kept(asked, of="runs")
    _write_texts(asked.folder, quick=quick, base_dir=base_dir)
    found = []
    for seed in _QUICK_SEEDS if quick else _SEEDS:
        for rate in rates_of(quick=quick):
            for arm in arms:
                found.append(_outcome(arm, seed, rate, asked.folder, quick=quick))
                PROGRESS.info("%s, seed %d, rate %g: loss %.4f", arm, seed, rate, found[-1].mean)
    return tuple(found)


def table(found: Iterable[Outcome]) -> tuple[Mapping[str, Scalar], ...]:
    """Return a row for each arm at its better rate: means over seeds, and the range of the mean."""
    by_arm: dict[str, dict[float, list[Outcome]]] = {}
    for outcome in found:
        by_arm.setdefault(outcome.arm, {}).setdefault(outcome.rate, []).append(outcome)
    return tuple(_row(arm, rates) for arm, rates in by_arm.items())


def _row(arm: str, rates: Mapping[float, Sequence[Outcome]]) -> Mapping[str, Scalar]:
    """Return what the better rate of an arm came to."""
    rate = min(rates, key=lambda r: statistics.fmean(o.mean for o in rates[r]))
    chosen = rates[rate]
    bits = [outcome.bits for outcome in chosen if outcome.bits is not None]
    return {
        "arm": arm,
        "rate": rate,
        "loss": round(statistics.fmean(o.mean for o in chosen), 4),
        "lowest": round(min(o.mean for o in chosen), 4),
        "highest": round(max(o.mean for o in chosen), 4),
        **{
            kind: round(statistics.fmean(v for o in chosen for v in o.losses[kind]), 4)
            for kind in KINDS
        },
        "worst tenth": round(statistics.fmean(o.worst for o in chosen), 4),
        "parameters": chosen[0].parameters,
        "bits": round(statistics.fmean(bits), 3) if bits else None,
    }


def _outcome(arm: str, seed: int, rate: float, folder: Path, *, quick: bool) -> Outcome:
    """Run one arm, in one federation or in one for each kind."""
    losses: dict[str, list[float]] = {kind: [] for kind in KINDS}
    parts = KINDS if arm == "apart" else (_BOTH,)
    for part in parts:
        said = [*ARMS[arm], f"run.seed={seed}", f"server.learning_rate={rate}"]
        if part != _BOTH:
            said += [f"data.path={folder / part}.jsonl", "clients.cohort=5.0"]
        place = folder / f"{arm}-{part}-{seed}-{rate:g}"
        resolved = resolve(_tables(folder, quick=quick), said, source="benchmark")
        summary = simulate(resolved, folder=place, resume=True, progress=Silence()).summary
        after = json.loads((place / "evaluation.json").read_text(encoding="utf-8"))["after"]
        for name, loss in after.items():
            # Clients are numbered in the order of their names: medical ones before plays.
            index = int(name.rpartition("-")[2])
            losses[KINDS[index >= _clients(quick=quick)] if part == _BOTH else part].append(loss)
    routing: Mapping[str, Any] = summary["routing"] or {}
    return Outcome(
        arm=arm,
        seed=seed,
        rate=rate,
        losses=losses,
        parameters=int(summary["lora"]["trainable_parameters"]),
        bits=routing.get("bits"),
    )


def _tables(folder: Path, *, quick: bool) -> dict[str, dict[str, object]]:
    """Return the scenario of all arms."""
    return {
        "run": {"name": "mixture", "rounds": 2 if quick else 12},
        "model": {"base": "demo" if quick else str(_MODEL)},
        "data": {
            "path": str(folder / f"{_BOTH}.jsonl"),
            "text": "text",
            "client": "client",
            "max_length": 48 if quick else 96,
            "holdout": 0.25,
        },
        "clients": {"cohort": float(_clients(quick=quick)), "local_steps": 2, "batch_size": 12},
        "server": {"optimizer": "adam", "momentum": 0.5, "adaptivity": 1e-4, "schedule": "linear"},
        "privacy": {"mode": "none"},
        "aggregation": {"policy": "ffa"},
        "audit": {"profile": "none", "canaries": 0, "releases": False},
        "evaluation": {"clients": 1, "final_clients": 2 * _clients(quick=quick)},
        "performance": {"threads": 1, "workers": 1},
    }


def _clients(*, quick: bool) -> int:
    """Return how many clients there are of each kind."""
    return 2 if quick else _CLIENTS


def _write_texts(folder: Path, *, quick: bool, base_dir: Path) -> None:
    """Write the texts of each kind, and of both."""
    texts = _generated() if quick else _real(base_dir)
    every: list[Text] = []
    for kind in KINDS:
        every += texts[kind]
        _write(folder / f"{kind}.jsonl", texts[kind])
    _write(folder / f"{_BOTH}.jsonl", every)


def _write(path: Path, texts: Iterable[Text]) -> None:
    """Write texts as JSONL."""
    write_text(path, "".join(json.dumps({"client": c, "text": t}) + "\n" for c, t in texts))


def _generated() -> dict[str, list[Text]]:
    """Return eight texts for each of two clients of each kind, from the public generator."""
    found: dict[str, list[Text]] = {}
    for kind, make in zip(KINDS, (public_prose.health, public_play.scene), strict=True):
        draw = Draw(0, "benchmark", kind)
        found[kind] = [(f"{kind}-{c:02d}", make(draw)) for c in range(2) for _ in range(8)]
    return found


def _real(base_dir: Path) -> dict[str, list[Text]]:
    """Return the first roles with enough speeches, and answers from all over MedQuAD."""
    folder = base_dir / _SHARED / "federated"
    roles = [r for r in _rows(folder / "shakespeare/by_role.jsonl") if len(r["lines"]) >= _RECORDS]
    plays = [
        (f"play-{c:02d}", text)
        for c, role in enumerate(roles[:_CLIENTS])
        for text in role["lines"][:_RECORDS]
    ]
    asked = list(_rows(folder / "medquad/medquad_small.jsonl"))
    asked = asked[:: max(1, len(asked) // (_CLIENTS * _RECORDS))][: _CLIENTS * _RECORDS]
    medical = [
        (f"medical-{i // _RECORDS:02d}", f"Question: {row['question']}\nAnswer: {row['answer']}")
        for i, row in enumerate(asked)
    ]
    return {"medical": medical, "play": plays}


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the objects of a JSONL file.

    Raises:
        DataFileNotFound: if it is not there.
    """
    if not path.is_file():
        msg = f"The texts of this benchmark, {path.name}, are not in {_SHARED}."
        raise DataFileNotFound(msg, hint="--quick generates texts.")
    with path.open(encoding="utf-8") as stream:
        for line in stream:
            yield json.loads(line)
