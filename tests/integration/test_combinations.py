"""Every two features: either refused with a reason, or run together, resumed, and accounted.

A few runs have many features each, so that every pair that any mode allows is in one of them.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Mapping
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from safetensors.numpy import load_file

from shared.configfile import ResolvedConfig, resolve
from shared.errors import ConfigError
from shared.privacy.ledger import Ledger
from simulations.progress import PlainProgress
from simulations.simulate import Result, simulate
from tests.encoders import save_corpus, save_encoder
from tests.integration.scenario import TABLES
from tests.integration.test_classification import TABLES as CLASSES

CLOCK = (
    "clock.shares=[0.6, 0.4]",
    "clock.step_seconds=[2.0, 30.0]",
    "clock.upload=[1e5, 1e4]",
    "clock.download=[1e6, 1e5]",
    "clock.deadline_seconds=200.0",
    "server.quorum=0.0",
)
MIX = ("devices.mix={pi5 = 0.5, laptop = 0.5}",)
FEATURES: dict[str, tuple[str, ...]] = {
    "link": ("link.up=int8", "link.down=fp16"),
    "robust": ("aggregation.robust=trimmed-mean", "aggregation.attackers=0.25"),
    "attack": ("attack.kind=sign-flip", "attack.share=0.25", "attack.scale=2.0"),
    "buffer": (*CLOCK, "buffer.size=2", "buffer.concurrency=3"),
    "over": (*CLOCK, "server.over_selection=1.5"),
    "clock": CLOCK,
    "schedule": (
        "clients.schedule=cosine",
        "clients.warmup_rounds=1",
        "server.schedule=linear",
    ),
    "noise": ("privacy.noise_schedule=linear", "privacy.noise_final=0.5"),
    "public": ("stopping.on=public", "stopping.patience=1", "stopping.public_documents=2"),
    "vote": (
        "stopping.on=vote",
        "stopping.patience=1",
        "stopping.vote_noise_multiplier=1.0",
        "data.holdout=0.3",
    ),
    "personal": ("personal.steps=1", "personal.clients=1"),
    "classes": (),
    "rolora": ("aggregation.policy=rolora",),
    "flexlora": ("aggregation.policy=flexlora", "server.optimizer=mean"),
    "fedex": ("aggregation.policy=fedex", "server.optimizer=mean", "model.quantization=none"),
    "share": ("aggregation.policy=fedavg", "aggregation.share=A"),
    "ia3": ("lora.variant=ia3",),
    "prompt": ("lora.variant=prompt", "lora.prompt_tokens=3"),
    "mixture": ("mixture.adapters=2",),
    "devices": MIX,
    "ranks": (*MIX, "devices.ranks={pi5 = 1}"),
    "half": ("model.quantization=nf4", "model.compute_dtype=bfloat16"),
    "warm": ("lora.seed=5",),
}
HOLDS = {"buffer": {"clock"}, "over": {"clock"}, "ranks": {"devices"}}
"""What a feature cannot be without."""
ONE_KEY = ({"rolora", "flexlora", "fedex", "share"}, {"public", "vote"}, {"ia3", "prompt"})
"""Values of one setting."""
FORMS = ("classes", "ia3", "prompt", "mixture", "share")
"""Those whose adapter has a form of its own, which a warm start must have too."""
UNDER_PRIVACY = {"noise", "vote"}
"""What mode none leaves out."""
MODES = {
    "none": ("privacy.mode=none",),
    "example": ("privacy.mode=example",),
    "client-central": ("privacy.mode=client-central",),
    "client-distributed": (
        "privacy.mode=client-distributed",
        "privacy.honest_fraction=0.9",
        "privacy.survivor_fraction=0.7",
        "privacy.min_cohort=4",
    ),
}
SMALL = (
    "audit.canaries=0",
    "run.rounds=2",
    "run.seed=5",
    "clients.population=6",
    "clients.cohort=4.0",
    "clients.local_steps=1",
    "clients.batch_size=2",
    "evaluation.clients=1",
    "evaluation.final_clients=1",
)
TEXT = ("data.records=4", "data.max_length=32")
LABELLED = (
    "privacy.clipping_norm=0.5",
    "privacy.max_grad_norm=0.5",
    "privacy.sampling_probability=0.25",
)
RUNS: tuple[tuple[str, frozenset[str]], ...] = tuple(
    (mode, frozenset(features.split()))
    for mode, features in (
        ("client-central", "attack link over schedule noise vote personal rolora ranks warm half"),
        ("client-central", "classes attack link over schedule noise vote personal ranks warm"),
        (
            "example",
            "robust attack link over schedule noise public personal rolora devices warm half",
        ),
        ("example", "buffer attack link schedule noise public personal ranks warm half"),
        ("example", "flexlora attack link over noise public personal ranks warm half"),
        ("example", "classes robust attack link over schedule noise personal devices warm"),
        ("example", "classes buffer attack link schedule noise personal ranks warm"),
        ("example", "fedex attack over noise personal devices warm"),
        ("example", "share robust link over schedule noise devices warm half"),
        ("example", "share buffer link schedule noise devices warm"),
        ("client-central", "ia3 attack over schedule noise vote personal devices warm half"),
        ("example", "ia3 robust attack over schedule noise public personal devices warm"),
        ("example", "ia3 buffer attack schedule noise public personal devices warm"),
        (
            "client-central",
            "prompt attack link over schedule noise vote personal devices warm half",
        ),
        ("example", "prompt robust attack link over schedule noise public personal devices warm"),
        ("example", "prompt buffer attack link schedule noise public personal devices warm"),
        (
            "client-central",
            "mixture attack link over schedule noise vote personal devices warm half",
        ),
        ("example", "mixture robust attack link over schedule noise public personal devices warm"),
        ("example", "mixture buffer attack link schedule noise public personal devices warm"),
    )
)


def scenario(mode: str, features: Iterable[str], *more: str) -> ResolvedConfig:
    """Return a scenario with some features, or raise what its rules say."""
    chosen = set(features)
    classes = "classes" in chosen
    tables: Mapping[str, Any] = CLASSES if classes else TABLES
    said = [*SMALL, *(LABELLED if classes else TEXT), *MODES[mode]]
    said += [setting for name in FEATURES if name in chosen for setting in FEATURES[name]]
    return resolve({**tables}, [*said, *more], source="test")


def whole(features: Iterable[str]) -> set[str]:
    """Return features with those that they cannot be without."""
    chosen = set(features)
    return chosen.union(*(HOLDS.get(name, set()) for name in chosen))


@pytest.mark.parametrize(
    "pair",
    [p for p in combinations(FEATURES, 2) if not any(set(p) <= values for values in ONE_KEY)],
    ids=" ".join,
)
def test_a_pair_is_refused_with_a_reason_or_is_in_a_run(pair: tuple[str, str]) -> None:
    """In every mode; no pair falls between, and none raises anything but its reasons."""
    allowed = []
    for mode in MODES:
        if mode == "none" and UNDER_PRIVACY & set(pair):
            continue
        try:
            scenario(mode, pair)
        except ConfigError as error:
            reasons = error.problems
            assert reasons
            assert all(len(problem.message) > 20 for problem in reasons)
        else:
            allowed.append(mode)
    covered = any(set(pair) <= whole(features) for _, features in RUNS)
    assert covered == bool(allowed), f"allowed in {allowed}"


class Copying(PlainProgress):
    """Copies the run folder as a process would leave it that dies after its first round."""

    def __init__(self, rounds: int, folder: Path, copy: Path) -> None:
        super().__init__(rounds, Console(quiet=True))
        self._folder, self._copy = folder, copy

    def finished(self, record: Mapping[str, Any]) -> None:
        if record["round"] == 1:
            shutil.copytree(self._folder, self._copy)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an encoder, labelled texts, and an adapter of each form to go on from."""
    root = tmp_path_factory.mktemp("home")
    save_encoder(root / "encoder")
    save_corpus(root / "intents.csv")
    for name in ("text", *FORMS):
        features = [name] if name in FORMS else []
        policy = [] if name == "share" else ["aggregation.policy=ffa"]
        resolved = scenario("none", features, "run.rounds=1", *policy)
        quiet = PlainProgress(1, Console(quiet=True))
        simulate(resolved, folder=root / name, resume=False, progress=quiet, base_dir=root)
    return root


def adapter(result: Result) -> dict[str, np.ndarray]:
    return load_file(result.folder / "adapter" / "adapter_model.safetensors")


def lines(result: Result) -> list[dict[str, Any]]:
    read = (result.folder / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k != "seconds"} for line in read]


@pytest.mark.slow
@pytest.mark.parametrize(("mode", "features"), RUNS, ids=range(len(RUNS)))
def test_they_run_together_resume_to_the_same_bits_and_are_accounted(
    mode: str, features: frozenset[str], home: Path, tmp_path: Path
) -> None:
    start = next((form for form in FORMS if form in features), "text")
    resolved = scenario(mode, features, f"run.warm_start={start}")
    done, left = tmp_path / "done", tmp_path / "left"
    watched = Copying(2, done, left)
    first = simulate(resolved, folder=done, resume=False, progress=watched, base_dir=home)
    again = simulate(
        resolved,
        folder=left,
        resume=True,
        progress=PlainProgress(2, Console(quiet=True)),
        base_dir=home,
    )
    assert first.summary["status"] == "completed"
    one, other = adapter(first), adapter(again)
    assert all(np.array_equal(one[name], other[name]) for name in one)
    begun = load_file(home / start / "adapter" / "adapter_model.safetensors")
    assert any(not np.array_equal(one[name], begun[name]) for name in one)
    assert lines(first) == lines(again)
    for result in (first, again):
        with Ledger(result.folder / "ledger.sqlite", read_only=True) as ledger:
            ledger.verify()
            scope = resolved.config.data.path
            spent = max(ledger.spent(s, scope).epsilon for s, _ in ledger.subjects())
        privacy = result.summary["privacy"]
        assert spent <= privacy["epsilon"] * (1 + 1e-9) <= privacy["cap"] * (1 + 1e-6)
