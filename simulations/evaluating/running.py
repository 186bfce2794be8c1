"""An evaluation task by task: what is done is kept, so that an interrupted one goes on."""

from __future__ import annotations

import json
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shared.canonical import sha256_hex
from shared.errors import NotResumable, RunFolderExists, UsageError
from shared.files import disk_errors, write_json
from shared.registry import suggestion
from simulations.evaluating import files, questions
from simulations.evaluating.questions import Task

if TYPE_CHECKING:
    from shared.config import RunConfig
    from simulations.evaluating.clients import HeldOut
    from simulations.evaluating.subject import Named, Subject

RESULT = "eval.json"
PARTS = "parts"
FORMAT = 1
SIZE, SPEED, PERPLEXITY = "size", "speed", "perplexity"
BUILT_IN = ("word-order", "clinic-endings")
FROM_FILES = ("crows_pairs", "blimp", "copa", "arc_easy", "piqa")
TASKS = {
    SIZE: "bytes on disk and in memory, against float32",
    SPEED: "time to the first token, tokens per second, peak memory, energy",
    PERPLEXITY: "of clients' held-out text: mean, worst tenth",
    "word-order": "generated sentences against the same with two words swapped",
    "clinic-endings": "beginnings of embedded clinics' notes: which ending is theirs",
    "crows_pairs": "CrowS-Pairs by type of bias, from --data",
    "blimp": "BLiMP by law of grammar, from --data",
    "olmo_rc": "copa, arc_easy and piqa, from --data",
    "copa": "COPA, from --data",
    "arc_easy": "ARC-easy, from --data",
    "piqa": "PIQA, from --data",
}
GROUPS = {"olmo_rc": ("copa", "arc_easy", "piqa")}
DEFAULT = (SIZE, SPEED, PERPLEXITY, *BUILT_IN)
_VERSIONS = ("fedslm", "lm_eval", "peft", "torch", "transformers")

Step = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What is to be evaluated, on what, and where to.

    Attributes:
        named: model and adapter.
        tasks: names of tasks, in order.
        own: tasks of the user's own files, by name.
        data: folder of the tasks from files.
        config: the scenario whose clients' text perplexity is measured on; None without that task.
        scenario: what it is called.
        limit: questions of a task at most; None for all.
        clients: clients at most.
        watts: see :class:`shared.energy.EnergyMeter`.
        seed: of all draws.
        out: folder that is made.
        resume: keep what is done in it.
        note: called with what is being done.
        step: called with (task, done, of).
    """

    named: Named
    tasks: Sequence[str]
    out: Path
    data: Path
    own: Mapping[str, Task] = field(default_factory=dict)
    config: RunConfig | None = None
    scenario: str = ""
    limit: int | None = None
    clients: int = 200
    watts: float | None = None
    seed: int = 0
    resume: bool = False
    note: Callable[[str], None] = lambda text: None
    step: Step = lambda name, done, of: None


def expand(names: Sequence[str], own: Mapping[str, Task]) -> list[str]:
    """Return names of tasks with groups in their parts' places, each once.

    Raises:
        UsageError: for an unknown name; lists what there is. For no name at all, and for a task of
            one's own that is called like another.
    """
    taken = set(own) & {*TASKS, *GROUPS}
    if taken or not names:
        msg = f"{min(taken)!r} is a task of fedslm." if taken else "No task is named."
        raise UsageError(msg, hint="fedslm eval --list has the names.")
    known = [*DEFAULT, *FROM_FILES, *own]
    found: list[str] = []
    for name in names:
        if name not in known and name not in GROUPS:
            msg = f"There is no task {name!r}; there are {', '.join([*known, *GROUPS])}."
            raise UsageError(msg, hint=suggestion(name, [*known, *GROUPS]))
        found += GROUPS.get(name, (name,))
    return list(dict.fromkeys(found))


def evaluate(order: Order) -> dict[str, Any]:
    """Evaluate, and write ``eval.json``; return what is in it.

    Raises:
        RunFolderExists: if the folder holds an evaluation and it is not resumed.
        NotResumable: if it holds another evaluation.
        DataFileNotFound: if a task's file is missing; before anything is measured.
        MissingDependency: if questions are asked and the harness is not installed.
    """
    from simulations.evaluating.subject import load

    asked = _open_tasks(order)
    _refuse_folder(order)
    order.note("loading the model")
    subject = load(order.named)
    held = _held_out(order, subject)
    about = _about(order, subject)
    with disk_errors(order.out):
        (order.out / PARTS).mkdir(parents=True, exist_ok=True)
    results = {}
    for name in order.tasks:
        key = sha256_hex(json.dumps([about["versions"], _key(order, about, asked, held, name)]))
        found = _kept(order, name, key)
        if found is None:
            order.note(f"measuring {name}")
            found = _measure(order, subject, asked, held, name)
            write_json(order.out / PARTS / f"{name}.json", {"key": key, "result": found})
        results[name] = found
    whole = {**about, "tasks": results}
    write_json(order.out / RESULT, whole)
    return whole


def _open_tasks(order: Order) -> dict[str, Task]:
    """Read the questions of every task, before anything takes time."""
    made: dict[str, Callable[[], Task]] = {
        "word-order": lambda: questions.word_order(order.seed),
        "clinic-endings": lambda: questions.clinic_endings(order.seed),
        "crows_pairs": lambda: files.crows_pairs(order.data),
        "blimp": lambda: files.blimp(order.data),
        **{name: _olmo(order.data, name) for name in GROUPS["olmo_rc"]},
    }
    found = {}
    for name in order.tasks:
        if name in order.own:
            found[name] = order.own[name]
        elif name in made:
            found[name] = made[name]()
    if found:
        from simulations.evaluating.harness import require_harness

        require_harness()
    return found


def _olmo(data: Path, name: str) -> Callable[[], Task]:
    """Return what reads one task of OLMo's."""
    return lambda: files.olmo_task(data, name)


def _refuse_folder(order: Order) -> None:
    """Refuse a folder that is there, unless it is resumed."""
    if order.out.exists() and not order.resume:
        msg = f"{order.out.name!r} is there already."
        raise RunFolderExists(msg, hint="Give --resume to go on with it, or another --out.")


def _held_out(order: Order, subject: Subject) -> HeldOut | None:
    """Return the clients' text, if perplexity is measured."""
    if PERPLEXITY not in order.tasks:
        return None
    from simulations.evaluating.clients import held_out

    if order.config is None:
        msg = "Perplexity needs clients' text."
        raise UsageError(msg, hint="Name a scenario: --clients SCENARIO")
    return held_out(
        order.config,
        subject.base.tokenizer,
        base_dir=Path.cwd(),
        most=order.clients,
        seed=order.seed,
    )


def _about(order: Order, subject: Subject) -> dict[str, Any]:
    """Return what was evaluated, and with what."""
    source = subject.source
    adapter = None
    if source is not None:
        adapter = {
            "name": source.name,
            "digest": source.digest,
            "r": source.terms.r,
            "target_modules": list(source.terms.target_modules),
            "audit_verdict": source.verdict,
            "signed_by": source.signed_by,
            "warnings": list(source.warnings),
        }
    base = subject.base
    model = {
        "name": base.name,
        "digest": base.digest,
        "family": base.family,
        "quantization": base.quantization,
        "compute_dtype": base.compute_dtype,
    }
    settings = {
        "limit": order.limit,
        "clients": order.clients,
        "scenario": order.scenario or None,
        "seed": order.seed,
        "watts": order.watts,
    }
    return {
        "format": FORMAT,
        "model": model,
        "adapter": adapter,
        "settings": settings,
        "versions": _versions(),
    }


def _versions() -> dict[str, str | None]:
    """Return the versions of what measured."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for name in _VERSIONS:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found


def _key(
    order: Order,
    about: Mapping[str, Any],
    asked: Mapping[str, Task],
    held: HeldOut | None,
    name: str,
) -> list[Any]:
    """Return all that a task's result depends on."""
    adapter = None if about["adapter"] is None else about["adapter"]["digest"]
    found: list[Any] = [FORMAT, name, about["model"], adapter, order.seed]
    if name in asked:
        found += [asked[name].digest, order.limit]
    elif name == PERPLEXITY:
        found.append(None if held is None else held.digest)
    return [*found, order.watts if name == SPEED else None]


def _kept(order: Order, name: str, key: str) -> dict[str, Any] | None:
    """Return the result of a task that is done, of the same evaluation."""
    path = order.out / PARTS / f"{name}.json"
    if not path.exists():
        return None
    try:
        part = json.loads(path.read_text(encoding="utf-8"))
        if part["key"] == key:
            found: dict[str, Any] = part["result"]
            return found
    except (OSError, ValueError, KeyError, TypeError) as error:
        msg = f"{path.name} in {order.out.name!r} is damaged."
        raise NotResumable(msg, hint="Remove it, or give another --out.") from error
    msg = f"{order.out.name!r} holds an evaluation of something else ({name} differs)."
    raise NotResumable(msg, hint="Give another --out.")


def _measure(
    order: Order,
    subject: Subject,
    asked: Mapping[str, Task],
    held: HeldOut | None,
    name: str,
) -> dict[str, Any]:
    """Do one task."""
    if name in asked:
        return _ask(order, subject, asked[name])
    if held is not None and name == PERPLEXITY:
        from simulations.evaluating.clients import measure_clients

        count = _Counter(order, name, len(subject.views) * len(held.texts))
        found = measure_clients(subject, held, seed=order.seed, done=count)
        return {**found, "scenario": order.scenario}
    if name == SIZE:
        from simulations.evaluating.size import measure_size

        return measure_size(order.named.base, subject)
    return _speed(order, subject)


def _speed(order: Order, subject: Subject) -> dict[str, Any]:
    """Measure speed before and after the adapter."""
    from simulations.evaluating.speed import measure_speed
    from simulations.evaluating.subject import AFTER

    found: dict[str, Any] = {"kind": "speed"}
    for done, view in enumerate(subject.views, start=1):
        found[view] = measure_speed(order.named, with_adapter=view == AFTER, watts=order.watts)
        order.step(SPEED, done, len(subject.views))
    return found


def _ask(order: Order, subject: Subject, task: Task) -> dict[str, Any]:
    """Ask a task's questions before and after the adapter."""
    from simulations.evaluating.asking import ask

    taken = questions.chosen(task, limit=order.limit, seed=order.seed)
    choices = sum(len(question.choices) for question in taken)
    count = _Counter(order, task.name, len(subject.views) * choices)
    return ask(subject, task, taken, done=count)


class _Counter:
    """Adds up progress of one task."""

    def __init__(self, order: Order, name: str, total: int) -> None:
        self._order, self._name, self._total, self._done = order, name, total, 0

    def __call__(self, count: int) -> None:
        """Count so many more."""
        self._done = min(self._total, self._done + count)
        self._order.step(self._name, self._done, self._total)
