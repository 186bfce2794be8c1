"""An owner's own adapter: the simulator's steps on the device's text, kept on the device alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from client.adapterspec import adapter_spec
from client.adapterstore import AdapterStore
from client.home import DeviceHome, NodeConfig
from client.inference import LocalModel
from client.knownruns import FOLDER, MOST, known_scenario, remember_scenario
from client.leaving import forget
from client.model import load_base
from client.node import LocalSource
from client.personalise import personalise
from client.personalstore import NAME, PersonalStore
from client.runtime import ClientRuntime
from client.taskmodel import load_adapted
from server.adapters import write_adapter
from server.registry import AdapterVersion
from shared.config import RunConfig
from shared.configfile import resolve
from shared.errors import (
    AdapterCorrupt,
    AdapterIncompatible,
    AdapterUntrusted,
    DataFileNotFound,
    FleetError,
    NoUsableText,
    UsageError,
)
from shared.lora import Factors, initial_factors
from shared.scenarioplan import plan_of
from simulations.personal import measure_personal
from tests.adapterkit import SIGNER, files_of, open_registry, report_about
from tests.client.conftest import MakeFolder

INDEX = 2
TABLES: dict[str, dict[str, Any]] = {
    "run": {"name": "own", "rounds": 1, "seed": 4},
    "lora": {"r": 2, "alpha": 4.0, "target_modules": ["q_proj", "v_proj"]},
    "data": {
        "path": "records.jsonl",
        "text": "text",
        "max_length": 12,
        "holdout": 0.25,
        "partitioner": "iid",
    },
    "clients": {"population": 3, "local_steps": 1, "batch_size": 4, "learning_rate": 0.1},
    "privacy": {"mode": "none"},
    "aggregation": {"policy": "ffa"},
    "personal": {"steps": 3, "learning_rate": 2.0},
    "audit": {"profile": "none"},
    "performance": {"threads": 1},
}


class Owner:
    """An enrolled device with text, a verified adapter, and the scenario it came from."""

    def __init__(self, folder: Path, base: Path) -> None:
        self.folder = folder
        tables = {**TABLES, "model": {"base": str(base)}}
        self.config: RunConfig = resolve(tables, [], source="test").config
        self.data = folder / "records.jsonl"
        rng = np.random.default_rng(0)
        # A language with few rules, so that steps on some of it help with the rest.
        rows = [{"text": " ".join(f"w{n}" for n in rng.integers(3, 6, size=8))} for _ in range(24)]
        self.data.write_text("".join(json.dumps(row) + "\n" for row in rows))
        loaded = load_base(str(base))
        self.spec = adapter_spec(loaded, r=2, alpha=4.0, target_modules=["q_proj", "v_proj"])
        self.registry = open_registry(folder / "registry")
        self.base_digest = loaded.digest
        self.home = DeviceHome.create(
            folder / "home",
            NodeConfig(
                name="clinic-7",
                fleet="127.0.0.1:9092",
                control="127.0.0.1:9093",
                base=str(base),
                data=str(self.data),
                client_index=INDEX,
                adapter_key=SIGNER.public_key,
            ),
        )
        self.store = AdapterStore(
            self.home.adapters, trusted_key=SIGNER.public_key, base_digest=loaded.digest
        )

    def factors(self, seed: int) -> Factors:
        """Return an adapter with the scenario's A and some B."""
        rng = np.random.default_rng(seed)
        found = initial_factors(self.spec, self.config.adapter_seed)
        for factor in self.spec.factors:
            if factor.kind == "B":
                found[factor.name] = rng.normal(0, 0.02, factor.shape).astype(np.float32)
        return found

    def install(self, seed: int) -> AdapterVersion:
        """Put an adapter of the scenario's run in use."""
        path = self.folder / f"adapter-{seed}"
        weights = write_adapter(
            path,
            spec=self.spec,
            factors=self.factors(seed),
            base_model="tiny",
            dropout=0.0,
            manifest={"config_digest": self.config.digest()},
        )
        version = self.registry.add(
            path, name="tiny", base_digest=self.base_digest, audit=report_about(weights)
        )
        files = files_of(self.registry, version)
        self.store.install(version.manifest_bytes, version.signature, files)
        return version


@pytest.fixture
def owner(tmp_path: Path, model_folder: MakeFolder) -> Owner:
    return Owner(tmp_path, model_folder("llama"))


@pytest.fixture
def ready(owner: Owner) -> Owner:
    """A device that took part in the run of the adapter that it has."""
    remember_scenario(owner.home.state, owner.config)
    owner.install(1)
    return owner


def test_a_device_takes_the_steps_that_a_simulation_measures(ready: Owner) -> None:
    seen: list[tuple[int, int]] = []
    found = personalise(ready.home, progress=lambda done, of: seen.append((done, of)))
    assert seen == [(1, 3), (2, 3), (3, 3)]
    config = ready.config
    runtime = ClientRuntime(
        config=config,
        plan=plan_of(config, population=3),
        model=load_adapted(config, str(ready.home.config.base)),
        source=LocalSource(path=ready.data, config=config),
    )
    released = ready.spec.flatten(ready.factors(1), "B")
    wanted = measure_personal(runtime, [INDEX], released)
    name = f"client-{INDEX}"
    assert found.facts.loss_before == pytest.approx(wanted["shared"][name], rel=1e-6)
    assert found.facts.loss_after == pytest.approx(wanted["own"][name], rel=1e-6)
    assert found.kept
    assert wanted["own"][name] < wanted["shared"][name]
    assert (found.examples, found.held_out) == (18, 6)


def test_it_is_one_private_file_and_answers_use_it(ready: Owner) -> None:
    found = personalise(ready.home)
    path = ready.home.personal / NAME
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700
    assert [p.name for p in path.parent.iterdir()] == [NAME]
    shared = LocalModel.load(ready.home)
    own = LocalModel.load(ready.home, personal=True)
    assert shared.personal is None
    assert own.personal == found.facts
    assert own.warnings == ()
    assert own.adapted is not None
    assert shared.adapted is not None
    mine, theirs = own.adapted.factors(), shared.adapted.factors()
    kinds = {f.name: f.kind for f in ready.spec.factors}
    # ffa: A is everybody's, B is the owner's.
    for factor, kind in kinds.items():
        assert np.array_equal(mine[factor], theirs[factor]) == (kind == "A")
    ids = torch.tensor([[3, 4, 5]])
    with torch.no_grad():
        module: Any = own.adapted.peft_model
        one = module(input_ids=ids).logits
        other = shared.adapted.peft_model(input_ids=ids).logits
    assert not torch.equal(one, other)


def test_what_is_no_better_is_not_kept_unless_the_owner_says_so(ready: Owner) -> None:
    found = personalise(ready.home, steps=5, learning_rate=1e6)
    assert not found.kept
    assert PersonalStore(ready.home.personal).facts() is None
    before, after = found.facts.loss_before, found.facts.loss_after
    assert before is not None
    assert after is not None
    assert after > before
    assert personalise(ready.home, steps=5, learning_rate=1e6, keep_worse=True).kept


def test_a_newer_adapter_makes_it_stale(ready: Owner) -> None:
    made = personalise(ready.home)
    newer = ready.install(2)
    told: list[str] = []
    model = LocalModel.load(ready.home, personal=True, warn=told.append)
    assert model.personal is None
    assert model.adapter is not None
    assert model.adapter.digest == newer.digest
    assert made.facts.adapter[:12] in told[0]
    assert "fedslm client personalise" in told[0]
    assert model.warnings == tuple(told)
    again = personalise(ready.home)
    assert again.facts.adapter == newer.digest
    assert LocalModel.load(ready.home, personal=True).personal == again.facts


def test_without_an_adapter_a_scenario_or_text_it_says_what_to_do(owner: Owner) -> None:
    with pytest.raises(AdapterUntrusted, match="No adapter was fetched") as refused:
        personalise(owner.home)
    assert "fedslm client fetch" in str(refused.value.hint)
    owner.install(1)
    with pytest.raises(UsageError, match="took part in no run") as unknown:
        personalise(owner.home)
    assert "--scenario" in str(unknown.value.hint)
    assert personalise(owner.home, scenario=owner.config).kept
    owner.data.write_text('{"text": " "}\n')
    with pytest.raises(NoUsableText):
        personalise(owner.home, scenario=owner.config)
    owner.data.unlink()
    with pytest.raises(DataFileNotFound):
        personalise(owner.home, scenario=owner.config)


def test_a_scenario_of_another_adapter_is_refused(ready: Owner) -> None:
    lora = ready.config.lora.model_copy(update={"alpha": 8.0})
    other = ready.config.model_copy(update={"lora": lora})
    with pytest.raises(AdapterIncompatible, match="other factors"):
        personalise(ready.home, scenario=other)


def test_too_little_memory_is_said_before_anything_is_loaded(
    ready: Owner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("client.machine.available_memory", lambda **_: 1 << 20)
    with pytest.raises(FleetError, match="MiB are free"):
        personalise(ready.home)


def test_forgetting_a_device_forgets_its_own_adapter_and_its_runs(ready: Owner) -> None:
    personalise(ready.home)
    assert known_scenario(ready.home.state, ready.config.digest()) == ready.config
    forget(ready.home.path, ledger_too=False)
    assert not ready.home.personal.exists()
    assert not (ready.home.state / FOLDER).exists()


def test_an_adapter_that_was_changed_or_is_no_longer_private_is_not_used(ready: Owner) -> None:
    personalise(ready.home)
    path = ready.home.personal / NAME
    whole = path.read_bytes()
    for damaged in (b"", whole[:40], whole[:-4], whole.replace(b"loss_after", b"loss_aftr_")):
        path.write_bytes(damaged)
        with pytest.raises(AdapterCorrupt, match="is damaged"):
            LocalModel.load(ready.home, personal=True)
    path.write_bytes(whole)
    path.chmod(0o644)
    with pytest.raises(FleetError, match="mode 644"):
        LocalModel.load(ready.home, personal=True)
    path.chmod(0o600)
    assert PersonalStore(ready.home.personal).forget()
    assert not PersonalStore(ready.home.personal).forget()
    with pytest.raises(UsageError, match="no personal adapter"):
        LocalModel.load(ready.home, personal=True)
    with pytest.raises(UsageError, match="on top of"):
        LocalModel.load(ready.home, personal=True, base_only=True)


def test_the_newest_scenarios_are_remembered_and_no_other_file_is_believed(owner: Owner) -> None:
    state, config = owner.home.state, owner.config
    seeds = [
        config.model_copy(update={"run": config.run.model_copy(update={"seed": seed})})
        for seed in range(MOST + 2)
    ]
    for one in seeds:
        remember_scenario(state, one)
    assert known_scenario(state, seeds[0].digest()) is None
    assert [known_scenario(state, one.digest()) for one in seeds[2:]] == seeds[2:]
    path = state / FOLDER / f"{seeds[-1].digest()}.json"
    path.write_bytes((state / FOLDER / f"{seeds[-2].digest()}.json").read_bytes())
    assert known_scenario(state, seeds[-1].digest()) is None
    path.write_text("{")
    assert known_scenario(state, seeds[-1].digest()) is None
    assert known_scenario(state, "../node") is None
    assert known_scenario(state, None) is None
